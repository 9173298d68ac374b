package forward

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/dnstest"
)

// onLoopback returns a forwarder that asks real sockets.
func onLoopback(t testing.TB, ups ...netip.AddrPort) *Forwarder {
	f := New(Config{
		Upstreams: func() []netip.AddrPort { return ups },
		Own:       func(netip.AddrPort) bool { return false },
		Log:       slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.Close)
	return f
}

func newTestQuery(t testing.TB, text string) *query {
	t.Helper()
	q, err := newQuery(keyOf(question(t, text)), []mark{1})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestAsk(t *testing.T) {
	good := func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 3, nil) }
	other := func(change func(*dns.Msg)) func(q *dns.Msg) []byte {
		return func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 9, change) }
	}
	wrongID := other(func(m *dns.Msg) { m.Id++ })
	wrongName := other(func(m *dns.Msg) { m.Question[0].Name = "evil.example." })
	wrongType := other(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT })
	wrongClass := other(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	query := other(func(m *dns.Msg) { m.Response = false })
	update := other(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate })
	noQuestion := other(func(m *dns.Msg) { m.Question = nil })
	lowerCase := other(func(m *dns.Msg) { m.Question[0].Name = strings.ToLower(m.Question[0].Name) })
	truncated := func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 0, func(m *dns.Msg) { m.Truncated = true }) }
	cut := func(q *dns.Msg) []byte { // in the middle of a record
		b := dnstest.Answer(t, q, 9, func(m *dns.Msg) { m.Truncated = true })
		return b[:len(b)-5]
	}
	damaged := func(q *dns.Msg) []byte { // and does not say so
		b := dnstest.Answer(t, q, 9, nil)
		return b[:len(b)-5]
	}
	flood := append(slices.Repeat([]func(*dns.Msg) []byte{wrongID}, maxStray), good)
	for _, c := range []struct {
		name    string
		packets []func(*dns.Msg) []byte
		full    func(*dns.Msg) []byte
		want    string // records or error
	}{
		{"good", []func(*dns.Msg) []byte{good}, nil, "3"},
		{"in lower case, and nobody contradicts", []func(*dns.Msg) []byte{lowerCase}, nil, "9"},
		{"in lower case, forged", []func(*dns.Msg) []byte{lowerCase, good}, good, "3"},
		{"wrong ones before it", []func(*dns.Msg) []byte{wrongID, wrongName, wrongType, wrongClass, query, update, noQuestion,
			func(*dns.Msg) []byte { return []byte{1, 2, 3} }, good}, nil, "3"},
		{"only wrong ones", []func(*dns.Msg) []byte{wrongID, wrongName}, nil, "context deadline exceeded"},
		{"a flood of wrong ones", flood, nil, "too many packets that answer something else"},
		{"truncated", []func(*dns.Msg) []byte{truncated}, func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 200, nil) }, "200"},
		{"as long as can be", []func(*dns.Msg) []byte{truncated}, func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 4000, nil) }, "4000"},
		{"longer by UDP than we take", []func(*dns.Msg) []byte{func(q *dns.Msg) []byte { return dnstest.Answer(t, q, 400, nil) }}, good, "3"},
		{"cut anywhere", []func(*dns.Msg) []byte{cut}, good, "3"},
		{"damaged", []func(*dns.Msg) []byte{damaged}, nil, "overflow unpacking"},
		{"truncated, and closes TCP", []func(*dns.Msg) []byte{truncated}, nil, "EOF"},
		{"truncated, and wrong by TCP", []func(*dns.Msg) []byte{truncated}, wrongID, "the answer by TCP is to something else, or truncated"},
		{"truncated, and by TCP as well", []func(*dns.Msg) []byte{truncated}, truncated, "the answer by TCP is to something else, or truncated"},
		{"truncated, and nothing by TCP", []func(*dns.Msg) []byte{truncated}, func(*dns.Msg) []byte { return nil }, "the answer by TCP is to something else, or truncated"},
		{"silent", nil, nil, "context deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte {
				var ps [][]byte
				for _, p := range c.packets {
					ps = append(ps, p(q))
				}
				return ps
			}, c.full)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			m, err := onLoopback(t).ask(ctx, u.Addr, newTestQuery(t, "Example.COM. IN A"))
			got := fmt.Sprint(err)
			if err == nil {
				got = fmt.Sprint(len(m.Answer))
				if m.Question[0].Name != "example.com." {
					t.Errorf("the question keeps the case that was sent: %v", m)
				}
			}
			if !strings.Contains(got, c.want) || err != nil && !strings.Contains(got, u.Addr.String()) {
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
		stranger.WriteTo(dnstest.Answer(t, q, 9, nil), from)
		pc.WriteTo(dnstest.Answer(t, q, 1, nil), from)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	m, err := onLoopback(t).ask(ctx, pc.LocalAddr().(*net.UDPAddr).AddrPort(), newTestQuery(t, "example.com. IN A"))
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("got %v, %v; want the one address of the upstream", m, err)
	}
}

// TestAskIsUnpredictable: a new port, ID and case for each question.
func TestAskIsUnpredictable(t *testing.T) {
	const queries = 40
	ports, ids, cases := make(map[uint16]bool), make(map[uint16]bool), make(map[string]bool)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
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
			ports[uint16(from.(*net.UDPAddr).Port)], ids[q.Id], cases[q.Question[0].Name] = true, true, true
			pc.WriteTo(dnstest.Answer(t, q, 1, nil), from)
		}
	}()
	f := onLoopback(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range queries {
		if _, err := f.ask(ctx, pc.LocalAddr().(*net.UDPAddr).AddrPort(), newTestQuery(t, "a-rather-long-name.example.com. IN A")); err != nil {
			t.Fatal(err)
		}
	}
	<-ended
	if len(ports) < queries*3/4 || len(ids) < queries*3/4 || len(cases) < queries*3/4 {
		t.Errorf("%d ports, %d IDs and %d spellings in %d queries", len(ports), len(ids), len(cases), queries)
	}
}

func TestQueryOnTheWire(t *testing.T) {
	r := question(t, `wWw.eXample.com. IN AAAA`)
	r.CheckingDisabled = true
	r.SetEdns0(4096, true)
	r.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(203, 0, 113, 0)},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
	}
	q, err := newQuery(keyOf(r), []mark{7, 8})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		edns, marked bool
		marks        []mark
	}{{true, true, []mark{7, 8}}, {true, false, nil}, {false, false, nil}} {
		b, err := q.pack(c.edns, c.marked)
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		opt := m.IsEdns0()
		if !m.RecursionDesired || !m.CheckingDisabled || m.AuthenticatedData != c.edns || m.Question[0].Qtype != dns.TypeAAAA ||
			!strings.EqualFold(m.Question[0].Name, "www.example.com.") || m.Question[0].Name == "www.example.com." || m.Question[0].Name != q.spelled() ||
			(opt != nil) != c.edns || opt != nil && (opt.UDPSize() != EDNSSize || !opt.Do() || len(opt.Option) > 1) || !slices.Equal(marksOf(m), c.marks) {
			t.Errorf("%+v: %v", c, m)
		}
	}
	digits := newTestQuery(t, "1.2.3.4. IN A")
	if digits.spelled() != "1.2.3.4." {
		t.Errorf("a name without letters becomes %s", digits.spelled())
	}
	if one := newTestQuery(t, "t.1. IN A"); one.spelled() != "T.1." {
		t.Errorf("the only letter stays %s", one.spelled())
	}
	odd := newTestQuery(t, `\000\255\.x\065\@\195\159.com. IN A`)
	if !strings.EqualFold(odd.spelled(), `\000\255\.xa\@\195\159.com.`) {
		t.Errorf("odd bytes become %s", odd.spelled())
	}
}

// FuzzReply: whatever an upstream sends, what is kept of it and told can be
// parsed, is about the question, and lasts no longer than it may.
func FuzzReply(f *testing.F) {
	q := newTestQuery(f, "www.example.com. IN A")
	sent, err := q.pack(true, false)
	if err != nil {
		f.Fatal(err)
	}
	asked := new(dns.Msg)
	if err := asked.Unpack(sent); err != nil {
		f.Fatal(err)
	}
	for _, records := range [][]string{
		nil,
		{"www.example.com. 300 IN A 198.51.100.1"},
		{"www.example.com. 4294967295 IN CNAME web.example.com.", "web.example.com. 0 IN A 198.51.100.1"},
		{"example.com. 900 IN SOA ns.example.com. root.example.com. 1 2 3 4 5"},
		{"www.example.com. 300 IN TXT \"hello\"", "www.example.com. 300 IN MX 10 mail.example.com.", `www.example.com. 300 IN TYPE65280 \# 4 0a000001`},
	} {
		for _, rcode := range []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeRefused} {
			_, m := says(0, rcode, records...).udp(asked)
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b[2:], true)
			f.Add(b[2:len(b)-3], false)
		}
	}
	f.Fuzz(func(t *testing.T, rest []byte, edns bool) {
		packet := append(slices.Clone(sent[:2]), rest...)
		if v := q.match(sent, packet); v == stray {
			return
		}
		m, err := q.parse(packet)
		if err != nil {
			return
		}
		now := time.Now()
		a, err := newAnswer(q.key, m, up1, now)
		if err != nil {
			return // an upstream of no use
		}
		if a.ttl < 0 || a.ttl > maxTTL*time.Second || a.ttl > 0 && !good(a.rcode) {
			t.Fatalf("kept for %v", a.ttl)
		}
		r := question(t, "wWW.example.COM. IN A")
		if edns {
			r.SetEdns0(1232, true)
		}
		for _, stale := range []bool{false, true} {
			reply, err := a.reply(r, now.Add(a.ttl/2), stale)
			if err != nil {
				t.Fatalf("what was kept does not parse: %v", err)
			}
			reply.Compress = true
			b, err := reply.Pack()
			if err != nil {
				t.Fatalf("what is told does not pack: %v", err)
			}
			back := new(dns.Msg)
			if err := back.Unpack(b); err != nil {
				t.Fatalf("what is told does not parse: %v", err)
			}
			if back.Id != r.Id || back.Question[0] != r.Question[0] || !back.Response || back.Truncated || (back.IsEdns0() != nil) != edns {
				t.Fatalf("told %v", back)
			}
			for _, rr := range append(back.Answer, back.Ns...) {
				if rr.Header().Ttl > maxTTL {
					t.Fatalf("TTL of %v", rr)
				}
			}
		}
	})
}

// FuzzMarks: whatever option a query has, its marks are few and whole.
func FuzzMarks(f *testing.F) {
	f.Add(option([]mark{1, 2}).Data)
	f.Add([]byte("jiji"))
	f.Add([]byte("jij"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := question(t, "example.com. IN A")
		r.SetEdns0(1232, false)
		r.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: markCode, Data: data}}
		marks := marksOf(r)
		if len(marks) > 0 && (len(data) != len(markMagic)+8*len(marks) || mark(binary.BigEndian.Uint64(data[len(data)-8:])) != marks[len(marks)-1]) {
			t.Fatalf("%v from %x", marks, data)
		}
	})
}
