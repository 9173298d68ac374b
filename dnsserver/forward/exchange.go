package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// EDNSSize is the UDP payload that we take and the most that we send: larger ones
	// are fragmented on some paths (DNS flag day 2020).
	EDNSSize = 1232

	bufferSize = 4096                   // for upstreams that send more all the same
	headerSize = 12                     // of a message
	againAfter = 750 * time.Millisecond // a datagram may be lost: send it once more
	foldedTCP  = 500 * time.Millisecond // for the second opinion on an answer whose case is wrong
	maxStray   = 32                     // packets that are not the answer, before an upstream is given up
)

var errStray = errors.New("too many packets that answer something else")

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// A query is a question as upstreams are asked.
type query struct {
	key       key
	canonical []byte // name on the wire, in lower case
	name      []byte // the same with its letters in random case (draft-vixie-dnsext-dns0x20)
	marks     []mark // of the nodes that the question went through, this one last
}

// newQuery returns the query for k, whose name is not all in lower case.
func newQuery(k key, marks []mark) (*query, error) {
	b := make([]byte, 255)
	n, err := dns.PackDomainName(k.name, b, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("name %.300q: %w", k.name, err)
	}
	q := &query{key: k, canonical: b[:n], name: bytes.Clone(b[:n]), marks: marks}
	first, upper := -1, false
	for i, c := range q.name { // the lengths of labels are less than any letter
		if c < 'a' || c > 'z' {
			continue
		}
		if first < 0 {
			first = i
		}
		if rand.Uint32()&1 == 1 {
			q.name[i], upper = c-'a'+'A', true
		}
	}
	if first >= 0 && !upper {
		q.name[first] -= 'a' - 'A'
	}
	return q, nil
}

// spelled returns q's name as text, in the case in which it is sent.
func (q *query) spelled() string {
	name, _, _ := dns.UnpackDomainName(q.name, 0)
	return name
}

// pack returns q as a message with an ID that nobody can guess.
func (q *query) pack(edns, marked bool) ([]byte, error) {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.Question = []dns.Question{{Name: q.key.name, Qtype: q.key.qtype, Qclass: dns.ClassINET}}
	m.RecursionDesired = q.key.flags&flagRD != 0
	m.CheckingDisabled = q.key.flags&flagCD != 0
	if edns {
		m.AuthenticatedData = true // tell us (RFC 6840, section 5.7)
		m.SetEdns0(EDNSSize, q.key.flags&flagDO != 0)
		if marked {
			m.IsEdns0().Option = []dns.EDNS0{option(q.marks)}
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	copy(b[headerSize:], q.name)
	return b, nil
}

// A verdict says what a packet is to a query.
type verdict int

const (
	stray     verdict = iota // none of its answers
	answering                // its answer
	truncated                // its answer, which has to be fetched by TCP
	folded                   // its answer, if it may spell the name in another case
)

// match compares packet, which came from the upstream that was asked, with q
// as it was sent (RFC 5452, section 9.1).
func (q *query) match(sent, packet []byte) verdict {
	if len(packet) < headerSize || packet[0] != sent[0] || packet[1] != sent[1] {
		return stray
	}
	bits := binary.BigEndian.Uint16(packet[2:])
	if bits>>15 == 0 || bits>>11&0xf != dns.OpcodeQuery {
		return stray
	}
	tc, rcode := bits>>9&1 == 1, int(bits&0xf)
	name, class := headerSize+len(q.name), headerSize+len(q.name)+4 // where they end
	questions := binary.BigEndian.Uint16(packet[4:])
	switch {
	case questions == 0 && (rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented):
		return answering // with these some leave it out
	case questions != 1 || len(packet) < class || !bytes.Equal(packet[name:class], sent[name:class]):
		return stray
	case !bytes.Equal(lower(packet[headerSize:name]), q.canonical):
		return stray
	case tc:
		return truncated
	case !bytes.Equal(packet[headerSize:name], q.name):
		return folded
	}
	return answering
}

// parse returns the message in packet, which match takes for an answer. Names
// that refer to the question are in lower case.
func (q *query) parse(packet []byte) (*dns.Msg, error) {
	if binary.BigEndian.Uint16(packet[4:]) == 1 {
		copy(packet[headerSize:], q.canonical)
	}
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		return nil, err
	}
	return m, nil
}

// lower returns b with its ASCII letters in lower case.
func lower(b []byte) []byte {
	l := bytes.Clone(b)
	for i, c := range l {
		if c >= 'A' && c <= 'Z' {
			l[i] = c - 'A' + 'a'
		}
	}
	return l
}

// ask sends q to one upstream, and again by TCP if the answer does not fit, or
// without EDNS if that is what the upstream does not understand.
func (f *Forwarder) ask(ctx context.Context, up netip.AddrPort, q *query) (*dns.Msg, error) {
	m, err := f.askWith(ctx, up, q, true)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		m, err = f.askWith(ctx, up, q, false)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %v: %w", up, err)
	}
	return m, nil
}

func (f *Forwarder) askWith(ctx context.Context, up netip.AddrPort, q *query, edns bool) (*dns.Msg, error) {
	sent, err := q.pack(edns, f.marked(up.Addr()))
	if err != nil {
		return nil, err
	}
	packet, v, err := f.byUDP(ctx, up, q, sent)
	if err != nil {
		return nil, err
	}
	switch v {
	case truncated:
		packet, err = f.byTCP(ctx, up, q, sent)
	case folded:
		// Either a forger who could not know the case, or an upstream that does
		// not keep it. TCP tells; an upstream without it is believed.
		ctx, cancel := context.WithTimeout(ctx, foldedTCP)
		defer cancel()
		if second, err := f.byTCP(ctx, up, q, sent); err == nil {
			packet = second
		}
	}
	if err != nil {
		return nil, err
	}
	return q.parse(packet)
}

// byUDP returns the first datagram that is an answer to q as it was sent.
func (f *Forwarder) byUDP(ctx context.Context, up netip.AddrPort, q *query, sent []byte) ([]byte, verdict, error) {
	nc, err := f.dial(ctx, "udp", up) // connected, from a port of its own: the kernel takes packets of up alone
	if err != nil {
		return nil, stray, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	for try := 0; ; try++ { // the second has no deadline
		if _, err := nc.Write(sent); err != nil {
			return nil, stray, ended(ctx, err)
		}
		var until time.Time
		if try == 0 {
			until = time.Now().Add(againAfter)
		}
		nc.SetReadDeadline(until)
		for strays := 0; ; {
			n, err := nc.Read(b[:])
			if errors.Is(err, os.ErrDeadlineExceeded) && try == 0 {
				break
			}
			if err != nil {
				return nil, stray, ended(ctx, err)
			}
			v := q.match(sent, b[:n])
			if v != stray && n == len(b) {
				v = truncated // by us
			}
			if v != stray {
				return bytes.Clone(b[:n]), v, nil
			}
			if strays++; strays == maxStray {
				return nil, stray, errStray
			}
		}
	}
}

// byTCP returns the answer to q as it was sent, whatever its case.
func (f *Forwarder) byTCP(ctx context.Context, up netip.AddrPort, q *query, sent []byte) ([]byte, error) {
	nc, err := f.dial(ctx, "tcp", up)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(sent)), uint16(len(sent)))
	if _, err := nc.Write(append(frame, sent...)); err != nil {
		return nil, ended(ctx, err)
	}
	var size [2]byte
	if _, err := io.ReadFull(nc, size[:]); err != nil {
		return nil, ended(ctx, err)
	}
	packet := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(nc, packet); err != nil {
		return nil, ended(ctx, err)
	}
	if v := q.match(sent, packet); v != answering && v != folded {
		return nil, errors.New("the answer by TCP is to something else, or truncated")
	}
	return packet, nil
}

// ended returns why ctx ended if it did: that has closed the connection.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// dial connects to an upstream.
func dial(ctx context.Context, network string, up netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, up.String())
}
