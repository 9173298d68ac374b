package forward

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var (
	up1    = netip.MustParseAddrPort("192.0.2.1:53")
	up2    = netip.MustParseAddrPort("192.0.2.2:53")
	up3    = netip.MustParseAddrPort("192.0.2.3:53")
	up4    = netip.MustParseAddrPort("192.0.2.4:53")
	client = netip.MustParseAddr("10.210.0.9")
)

// question reads "name class type" into a question as stub resolvers ask it.
func question(t testing.TB, text string) *dns.Msg {
	t.Helper()
	fields := strings.Fields(text)
	if len(fields) != 3 || fields[1] != "IN" || dns.StringToType[fields[2]] == 0 {
		t.Fatalf("question %q", text)
	}
	return new(dns.Msg).SetQuestion(fields[0], dns.StringToType[fields[2]])
}

// A server is an upstream in memory, to be asked in virtual time.
type server struct {
	udp func(q *dns.Msg) (after time.Duration, m *dns.Msg) // nil: silent; m nil: no answer
	tcp func(q *dns.Msg) *dns.Msg                          // nil: refused
	err error                                              // of a connection by either
}

// A network is what a forwarder under test can reach, by address.
type network struct {
	mu      sync.Mutex
	servers map[netip.AddrPort]server
	asked   []string // "192.0.2.1@250ms"; by TCP "192.0.2.1/tcp@…"
	start   time.Time
	quiet   bool // asked is not kept
	open    int  // connections now
	most    int  // and at most
}

// newForwarder returns a forwarder that asks ups on n, which is in use until
// the test ends.
func newForwarder(t *testing.T, n *network, ups ...netip.AddrPort) *Forwarder {
	f := New(Config{
		Upstreams: func() []netip.AddrPort { return ups },
		Own:       func(netip.AddrPort) bool { return false },
		Mesh:      []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Log:       slog.New(slog.DiscardHandler),
	})
	n.start = time.Now()
	f.dial = n.dial
	t.Cleanup(f.Close)
	return f
}

func (n *network) dial(ctx context.Context, proto string, up netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	s := n.servers[up]
	if !n.quiet {
		name := up.Addr().String()
		if proto == "tcp" {
			name += "/tcp"
		}
		n.asked = append(n.asked, fmt.Sprintf("%s@%v", name, time.Since(n.start)))
	}
	n.mu.Unlock()
	if s.err != nil {
		return nil, &net.OpError{Op: "dial", Net: proto, Err: s.err}
	}
	ours, theirs := net.Pipe()
	n.count(1)
	go func() {
		defer n.count(-1)
		defer theirs.Close()
		if proto == "tcp" {
			n.stream(theirs, s)
		} else {
			n.datagrams(theirs, s)
		}
	}()
	return ours, nil
}

func (n *network) count(by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open += by
	n.most = max(n.most, n.open)
}

func (n *network) datagrams(c net.Conn, s server) {
	b := make([]byte, 512)
	for {
		size, err := c.Read(b)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(b[:size]) != nil || s.udp == nil {
			continue
		}
		after, m := s.udp(q)
		if m == nil {
			continue
		}
		if packet, err := m.Pack(); err == nil {
			time.AfterFunc(after, func() { c.Write(packet) }) // until c is closed
		}
	}
}

func (n *network) stream(c net.Conn, s server) {
	conn := &dns.Conn{Conn: c}
	q, err := conn.ReadMsg()
	if err != nil || s.tcp == nil {
		return
	}
	if packet, err := s.tcp(q).Pack(); err == nil {
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...))
	}
}

func (n *network) set(up netip.AddrPort, s server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers == nil {
		n.servers = make(map[netip.AddrPort]server)
	}
	n.servers[up] = s
}

// taken returns who was asked since the last call, in order.
func (n *network) taken() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := strings.Join(n.asked, " ")
	n.asked = nil
	return s
}

// says returns a server that gives records, in zone-file text, after a while;
// SOA records in the authority section.
func says(after time.Duration, rcode int, records ...string) server {
	answer := func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetRcode(q, rcode)
		m.RecursionAvailable = true
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			if rr.Header().Rrtype == dns.TypeSOA {
				m.Ns = append(m.Ns, rr)
			} else {
				m.Answer = append(m.Answer, rr)
			}
		}
		if q.IsEdns0() != nil {
			m.SetEdns0(1232, false)
		}
		return m
	}
	return server{
		udp: func(q *dns.Msg) (time.Duration, *dns.Msg) { return after, answer(q) },
		tcp: answer,
	}
}

// told returns what a reply says: rcode, records, and what it is.
func told(r Reply) string {
	s := dns.RcodeToString[r.Msg.Rcode]
	for _, rr := range append(r.Msg.Answer[:len(r.Msg.Answer):len(r.Msg.Answer)], r.Msg.Ns...) {
		s += " " + strings.Join(strings.Fields(rr.String()), " ") + ";"
	}
	if r.Upstream.IsValid() {
		s += " " + r.Upstream.Addr().String()
	}
	if r.Stale {
		s += " stale"
	} else if r.Cached {
		s += " cached"
	}
	return s
}
