// Package dnstest has name servers on loopback that answer as a test wants.
package dnstest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// An Upstream is a name server whose answers a test makes up.
type Upstream struct {
	Addr netip.AddrPort
	UDP  atomic.Int64 // queries
	TCP  atomic.Int64 // connections
}

// NewUpstream answers datagrams with what packets makes of the query, and
// connections with full; nil: with nothing. It ends with the test.
func NewUpstream(t testing.TB, packets func(q *dns.Msg) [][]byte, full func(q *dns.Msg) []byte) *Upstream {
	t.Helper()
	pc, l := listen(t)
	u := &Upstream{Addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
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
			u.UDP.Add(1)
			go func() { // one may take its time
				for _, p := range packets(q) {
					pc.WriteTo(p, from)
				}
			}()
		}
	}()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			u.TCP.Add(1)
			c := &dns.Conn{Conn: nc}
			if q, err := c.ReadMsg(); err == nil && full != nil {
				answer := full(q)
				nc.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
			nc.Close()
		}
	}()
	return u
}

// listen opens a port that is free for both.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for tries := 10; ; tries-- {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp4", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		pc.Close()
		if tries == 0 {
			t.Fatal(err)
		}
	}
}

// Answer returns an answer to q with n addresses and a TTL of five minutes,
// changed.
func Answer(t testing.TB, q *dns.Msg, n int, change func(*dns.Msg)) []byte {
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
