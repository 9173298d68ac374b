package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var (
	up1 = netip.MustParseAddrPort("192.0.2.1:53")
	up2 = netip.MustParseAddrPort("192.0.2.2:53")
	up3 = netip.MustParseAddrPort("192.0.2.3:53")
)

// A scripted upstream answers after a delay with an rcode, or fails, or
// (rcode -1) is silent until it is given up.
type scripted struct {
	after time.Duration
	rcode int
	err   error
}

const silence = -1

// askScript returns a forwarder's ask that follows a script; asked collects
// who was asked, and when.
func askScript(script map[netip.AddrPort]scripted, asked *[]string) func(context.Context, netip.AddrPort, *dns.Msg) (*dns.Msg, error) {
	start := time.Now()
	var mu sync.Mutex // guards asked
	return func(ctx context.Context, up netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		mu.Lock()
		*asked = append(*asked, fmt.Sprintf("%v@%v", up.Addr(), time.Since(start)))
		mu.Unlock()
		s := script[up]
		if s.rcode == silence {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(s.after):
		}
		if s.err != nil {
			return nil, s.err
		}
		return new(dns.Msg).SetRcode(q, s.rcode), nil
	}
}

func TestRace(t *testing.T) {
	for _, c := range []struct {
		name   string
		ups    []netip.AddrPort
		script map[netip.AddrPort]scripted
		want   string // who answered what, when
		asked  string
	}{
		{"the first is quick", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {after: 20 * time.Millisecond}},
			"192.0.2.1:53 NOERROR 20ms", "192.0.2.1@0s"},
		{"NXDOMAIN is an answer", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: dns.RcodeNameError}},
			"192.0.2.1:53 NXDOMAIN 0s", "192.0.2.1@0s"},
		{"the first is silent", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: silence}, up2: {after: 30 * time.Millisecond}},
			"192.0.2.2:53 NOERROR 280ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the first is slow and wins", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {after: 300 * time.Millisecond}, up2: {after: time.Second}},
			"192.0.2.1:53 NOERROR 300ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the first is dead", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {err: syscall.ECONNREFUSED}, up2: {after: 10 * time.Millisecond}},
			"192.0.2.2:53 NOERROR 10ms", "192.0.2.1@0s 192.0.2.2@0s"},
		{"the first refuses", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {after: 40 * time.Millisecond, rcode: dns.RcodeRefused}, up2: {after: 10 * time.Millisecond}},
			"192.0.2.2:53 NOERROR 50ms", "192.0.2.1@0s 192.0.2.2@40ms"},
		{"the third of three", []netip.AddrPort{up1, up2, up3},
			map[netip.AddrPort]scripted{up1: {rcode: silence}, up2: {rcode: dns.RcodeServerFailure}, up3: {}},
			"192.0.2.3:53 NOERROR 250ms", "192.0.2.1@0s 192.0.2.2@250ms 192.0.2.3@250ms"},
		{"all refuse", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: dns.RcodeServerFailure}, up2: {rcode: dns.RcodeRefused}},
			"192.0.2.2:53 REFUSED 0s", "192.0.2.1@0s 192.0.2.2@0s"},
		{"an answer is told rather than a failure", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: dns.RcodeServerFailure}, up2: {err: syscall.ECONNREFUSED}},
			"192.0.2.1:53 SERVFAIL 0s", "192.0.2.1@0s 192.0.2.2@0s"},
		{"all dead", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {err: syscall.ECONNREFUSED}, up2: {err: syscall.ECONNREFUSED}},
			"connection refused 0s", "192.0.2.1@0s 192.0.2.2@0s"},
		{"all silent", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: silence}, up2: {rcode: silence}},
			"no answer from [192.0.2.1:53 192.0.2.2:53]: context deadline exceeded 2s",
			"192.0.2.1@0s 192.0.2.2@250ms 192.0.2.1@1s 192.0.2.2@1.25s"},
		{"the only one is silent", []netip.AddrPort{up1},
			map[netip.AddrPort]scripted{up1: {rcode: silence}},
			"no answer from [192.0.2.1:53]: context deadline exceeded 2s", "192.0.2.1@0s 192.0.2.1@750ms"},
		{"one silent, one refuses", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]scripted{up1: {rcode: silence}, up2: {rcode: dns.RcodeRefused}},
			"192.0.2.2:53 REFUSED 2s", "192.0.2.1@0s 192.0.2.2@250ms 192.0.2.1@1s 192.0.2.2@1.25s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []string
				f := forwarder{ask: askScript(c.script, &asked)}
				start := time.Now()
				reply, up, err := f.race(t.Context(), question(t, "example.com. IN A"), c.ups)
				got := fmt.Sprintf("%v %v", err, time.Since(start))
				if err == nil {
					got = fmt.Sprintf("%v %s %v", up, dns.RcodeToString[reply.Rcode], time.Since(start))
				}
				if got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
				if a := strings.Join(asked, " "); a != c.asked {
					t.Errorf("asked %s, want %s", a, c.asked)
				}
			})
		})
	}
}

func TestRaceEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		f := forwarder{ask: askScript(map[netip.AddrPort]scripted{up1: {rcode: silence}}, &asked)}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, _, err := f.race(ctx, question(t, "example.com. IN A"), []netip.AddrPort{up1}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d != 100*time.Millisecond {
			t.Errorf("ended after %v, want 100ms", d)
		}
	})
}

func TestForwardAsksNeitherItselfNorTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		list := []netip.AddrPort{up1, up2, up3, netip.MustParseAddrPort("192.0.2.4:53"), netip.MustParseAddrPort("192.0.2.5:53")}
		f := forwarder{
			upstreams: func() []netip.AddrPort { return list },
			own:       func(up netip.AddrPort) bool { return up == up1 },
			ask:       askScript(map[netip.AddrPort]scripted{up2: {err: syscall.ECONNREFUSED}, up3: {err: syscall.ECONNREFUSED}, list[3]: {err: syscall.ECONNREFUSED}}, &asked),
		}
		f.forward(t.Context(), question(t, "example.com. IN A"))
		if got := strings.Join(asked, " "); got != "192.0.2.2@0s 192.0.2.3@0s 192.0.2.4@0s" {
			t.Errorf("asked %s", got)
		}
		f.own = func(netip.AddrPort) bool { return true }
		if _, _, err := f.forward(t.Context(), question(t, "example.com. IN A")); !errors.Is(err, errNoUpstream) {
			t.Errorf("only ourselves: error %v", err)
		}
	})
}

func TestForwardPassesFlagsAndEDNS(t *testing.T) {
	var sent *dns.Msg
	f := forwarder{
		upstreams: func() []netip.AddrPort { return []netip.AddrPort{up1} },
		own:       func(netip.AddrPort) bool { return false },
		ask: func(_ context.Context, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
			sent = q
			m := new(dns.Msg).SetReply(q)
			m.Authoritative, m.AuthenticatedData = true, true
			m.SetEdns0(4096, true)
			rr, err := dns.NewRR("example.com. 300 IN A 198.51.100.1")
			m.Answer = []dns.RR{rr}
			return m, err
		},
	}
	r := question(t, "eXample.com. IN A")
	r.CheckingDisabled, r.AuthenticatedData = true, true
	r.SetEdns0(4096, true)
	r.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001}}
	m, up, err := f.forward(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if o := sent.IsEdns0(); !sent.RecursionDesired || !sent.CheckingDisabled || !sent.AuthenticatedData || o == nil || !o.Do() || o.UDPSize() != 1232 || len(o.Option) > 0 {
		t.Errorf("sent %v", sent)
	}
	if o := m.IsEdns0(); m.Id != r.Id || m.Authoritative || !m.AuthenticatedData || !m.RecursionAvailable || !m.CheckingDisabled ||
		m.Question[0] != r.Question[0] || o == nil || o.UDPSize() != 1232 || len(m.Answer) != 1 || up != up1 {
		t.Errorf("from %v: %v", up, m)
	}
	r = question(t, "example.com. IN A")
	r.RecursionDesired = false
	if m, _, err = f.forward(t.Context(), r); err != nil || sent.IsEdns0() != nil || sent.RecursionDesired || m.IsEdns0() != nil {
		t.Errorf("sent %v, answered %v, %v", sent, m, err)
	}
}

// An upstream on loopback whose UDP answers a test makes up.
type fakeUpstream struct {
	addr netip.AddrPort
	udp  atomic.Int64 // queries
	tcp  atomic.Int64
}

// newUpstream answers datagrams with what packets makes of the query and
// connections with full, nil: with nothing.
func newUpstream(t *testing.T, packets func(q *dns.Msg) [][]byte, full func(q *dns.Msg) []byte) *fakeUpstream {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &fakeUpstream{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	l, err := net.Listen("tcp4", u.addr.String())
	if err != nil {
		pc.Close()
		t.Skipf("port of the upstream is taken for TCP: %v", err)
	}
	t.Cleanup(func() { pc.Close(); l.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if err := q.Unpack(b[:n]); err != nil {
				t.Errorf("query does not parse: %v", err)
				continue
			}
			u.udp.Add(1)
			for _, p := range packets(q) {
				pc.WriteTo(p, from)
			}
		}
	}()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			u.tcp.Add(1)
			c := &dns.Conn{Conn: nc}
			if q, err := c.ReadMsg(); err == nil && full != nil {
				b := binary.BigEndian.AppendUint16(nil, uint16(len(full(q))))
				nc.Write(append(b, full(q)...))
			}
			nc.Close()
		}
	}()
	return u
}

// wire returns an answer to q with n addresses, changed.
func wire(t *testing.T, q *dns.Msg, n int, change func(*dns.Msg)) []byte {
	m := new(dns.Msg).SetReply(q)
	for i := range n {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300},
			A:   net.IPv4(198, 51, 100, byte(i)),
		})
	}
	m.Compress = true
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

func TestAsk(t *testing.T) {
	good := func(q *dns.Msg) []byte { return wire(t, q, 3, nil) }
	other := func(change func(*dns.Msg)) func(q *dns.Msg) []byte {
		return func(q *dns.Msg) []byte { return wire(t, q, 9, change) }
	}
	wrongID := other(func(m *dns.Msg) { m.Id++ })
	wrongName := other(func(m *dns.Msg) { m.Question[0].Name = "evil.example." })
	wrongType := other(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT })
	wrongClass := other(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	query := other(func(m *dns.Msg) { m.Response = false })
	noQuestion := other(func(m *dns.Msg) { m.Question = nil })
	truncated := func(q *dns.Msg) []byte { return wire(t, q, 0, func(m *dns.Msg) { m.Truncated = true }) }
	cut := func(q *dns.Msg) []byte { // in the middle of a record
		b := wire(t, q, 9, func(m *dns.Msg) { m.Truncated = true })
		return b[:len(b)-5]
	}
	for _, c := range []struct {
		name    string
		packets []func(*dns.Msg) []byte
		full    func(*dns.Msg) []byte
		want    string // records or error
	}{
		{"good", []func(*dns.Msg) []byte{good}, nil, "3"},
		{"in lower case", []func(*dns.Msg) []byte{other(func(m *dns.Msg) { m.Question[0].Name = strings.ToLower(m.Question[0].Name) })}, nil, "9"},
		{"wrong ones before it", []func(*dns.Msg) []byte{wrongID, wrongName, wrongType, wrongClass, query, noQuestion,
			func(*dns.Msg) []byte { return []byte{1, 2, 3} }, good}, nil, "3"},
		{"only wrong ones", []func(*dns.Msg) []byte{wrongID, wrongName}, nil, "i/o timeout"},
		{"a flood of wrong ones", []func(*dns.Msg) []byte{wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID,
			wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID,
			wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, wrongID, good}, nil, "too many packets that answer something else"},
		{"truncated", []func(*dns.Msg) []byte{truncated}, func(q *dns.Msg) []byte { return wire(t, q, 200, nil) }, "200"},
		{"cut anywhere", []func(*dns.Msg) []byte{cut}, good, "3"},
		{"truncated, and closes TCP", []func(*dns.Msg) []byte{truncated}, nil, "EOF"},
		{"truncated, and wrong by TCP", []func(*dns.Msg) []byte{truncated}, wrongID, "too many packets that answer something else"},
		{"silent", nil, nil, "i/o timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUpstream(t, func(q *dns.Msg) [][]byte {
				var ps [][]byte
				for _, p := range c.packets {
					ps = append(ps, p(q))
				}
				return ps
			}, c.full)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			m, err := ask(ctx, u.addr, question(t, "Example.COM. IN A"))
			got := fmt.Sprint(err)
			if err == nil {
				got = fmt.Sprint(len(m.Answer))
			}
			if !strings.HasSuffix(got, c.want) || err != nil && !strings.Contains(got, u.addr.String()) {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestAskIgnoresOthers has a second socket answer first, with the right ID and
// question: the source of an answer counts.
func TestAskIgnoresOthers(t *testing.T) {
	stranger, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 512)
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if err := q.Unpack(b[:n]); err != nil {
			return
		}
		stranger.WriteTo(wire(t, q, 9, nil), from)
		pc.WriteTo(wire(t, q, 1, nil), from)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	m, err := ask(ctx, pc.LocalAddr().(*net.UDPAddr).AddrPort(), question(t, "example.com. IN A"))
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("got %v, %v; want the one address of the upstream", m, err)
	}
}

// TestAskIsUnpredictable: a new port and ID for each question.
func TestAskIsUnpredictable(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	const queries = 40
	ports, ids := make(map[string]bool), make(map[uint16]bool)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for range queries {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if err := q.Unpack(b[:n]); err != nil {
				return
			}
			ports[from.String()], ids[q.Id] = true, true
			pc.WriteTo(wire(t, q, 1, nil), from)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range queries {
		if _, err := ask(ctx, pc.LocalAddr().(*net.UDPAddr).AddrPort(), question(t, "example.com. IN A")); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	if len(ports) < queries*3/4 || len(ids) < queries*3/4 {
		t.Errorf("%d ports and %d IDs in %d queries", len(ports), len(ids), queries)
	}
}

// FuzzReply: whatever an upstream sends, what is passed on fits and parses.
func FuzzReply(f *testing.F) {
	q := question(f, "example.com. IN A")
	for _, n := range []int{0, 1, 40} {
		m := new(dns.Msg).SetReply(q)
		for range n {
			rr, err := dns.NewRR("example.com. 300 IN TXT hello")
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		m.SetEdns0(4096, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[2:], true, true)
		f.Add(b[2:len(b)-3], false, false)
	}
	f.Fuzz(func(t *testing.T, packet []byte, edns, tcp bool) {
		r := q.Copy()
		if edns {
			r.SetEdns0(1232, true)
		}
		reply := new(dns.Msg)
		if reply.Unpack(append(binary.BigEndian.AppendUint16(nil, q.Id), packet...)) != nil || !answers(reply, q) {
			return
		}
		b, err := pack(relay(r, reply), limit(r, tcp))
		if err != nil {
			return // a server failure is sent instead
		}
		if len(b) > limit(r, tcp) {
			t.Fatalf("%d bytes, want at most %d", len(b), limit(r, tcp))
		}
		if err := new(dns.Msg).Unpack(b); err != nil {
			t.Fatalf("answer does not parse: %v", err)
		}
		result(relay(r, reply))
	})
}
