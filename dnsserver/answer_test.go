package dnsserver

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/forward"
)

// testConfig is a mesh of four servers, seen from web1, of which web3 is down.
func testConfig() ZoneConfig {
	ip := netip.MustParseAddr
	http := []Port{{8080, "tcp"}}
	return ZoneConfig{
		Apex:   "jiji",
		Server: "web1",
		Serial: 42,
		Nodes: []Node{
			{ID: "web1", Addrs: []netip.Addr{ip("10.210.0.1"), ip("fdcc:630d:cd29:66c4:3366:9112:5448:bbb2")}},
			{ID: "Web2", Addrs: []netip.Addr{ip("10.210.1.1")}, Rank: 1},
			{ID: "web3", Addrs: []netip.Addr{ip("10.210.2.1")}, Rank: 1, Down: true},
			{ID: "edge.example.net", Addrs: []netip.Addr{ip("10.210.3.1")}, Rank: 2},
		},
		Services: []Service{
			{"api", []Container{
				{ID: "aaaa1111aaaa0000", Server: "web1", Project: "shop", Instance: "1", IP: ip("10.210.0.9"), Ports: http},
				{ID: "BBBB2222bbbb0000", Server: "web2", Project: "Shop", Instance: "2", IP: ip("10.210.1.15"), Ports: http},
				{ID: "cccc3333cccc0000", Server: "edge.example.net", Project: "blog", IP: ip("10.210.3.30"), Ports: []Port{{8080, "tcp"}, {53, "udp"}}},
			}},
			{"one", []Container{{ID: "short", Server: "web1", IP: ip("10.210.0.10")}}},
			{"sick", []Container{{ID: "dddd4444dddd", Server: "web1", Project: "shop", IP: ip("10.210.0.11"), Ports: http, Unfit: "unhealthy"}}},
			{"far", []Container{
				{ID: "eeee5555eeee", Server: "web3", IP: ip("10.210.2.5")},
				{ID: "eeee6666eeee", Server: "web3", IP: ip("10.210.2.6"), Unfit: "starting"},
			}},
			{"mixed", []Container{
				{ID: "f001.dotted.id", Server: "web2", IP: ip("10.210.1.20")},
				{ID: "f002", Server: "web3", IP: ip("10.210.2.20")},
			}},
			{"shop-api_v2", []Container{{ID: "a7", Server: "web1", IP: ip("10.210.0.20")}}},
			{"shop-api", []Container{{ID: "a8", Server: "web2", IP: ip("10.210.1.21")}}},
			{"b-c", []Container{{ID: "a9", Server: "web1", Project: "a", IP: ip("10.210.0.22")}}},
			{"c", []Container{{ID: "b1", Server: "web1", Project: "a-b", IP: ip("10.210.0.23")}}},
			{"b", []Container{{ID: "b2", Server: "web1", Project: "a", Instance: "c", IP: ip("10.210.0.24")}}},
			{"blogger", []Container{{ID: "b3", Server: "web1", Project: "blog", IP: ip("10.210.0.25")}}},
			{"alone", []Container{{ID: "b4", Server: "web1", Project: "alone", IP: ip("10.210.0.26")}}},
			{"legacy", []Container{{ID: "b5", Server: "web1", IP: ip("192.0.2.7")}}},
			{"twice", []Container{
				{ID: "b6", Server: "web1", IP: ip("192.0.2.8")},
				{ID: "b7", Server: "web2", IP: ip("192.0.2.8")},
			}},
			{"router", []Container{{ID: "b8", Server: "web1", IP: ip("10.210.0.1")}}},
			{"web1", []Container{{ID: "b9", Server: "web2", IP: ip("10.210.1.22")}}},
			{"lost", []Container{{ID: "c1", Server: "web9", IP: ip("10.210.9.9")}}},
		},
		Reverse: []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16"), netip.MustParsePrefix("fdcc::/16")},
	}
}

func newTestZone(t testing.TB) *Zone {
	t.Helper()
	z, err := NewZone(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// asking reads "name class type".
func asking(t testing.TB, text string) *dns.Msg {
	t.Helper()
	f := strings.Fields(text)
	class, ok := dns.StringToClass[f[1]]
	if !ok {
		t.Fatalf("class in %q", text)
	}
	qtype, ok := dns.StringToType[f[2]]
	if !ok {
		if _, err := fmt.Sscanf(f[2], "TYPE%d", &qtype); err != nil {
			t.Fatalf("type in %q", text)
		}
	}
	m := new(dns.Msg).SetQuestion(f[0], qtype)
	m.Question[0].Qclass = class
	return m
}

func rcode(m *dns.Msg) string {
	text := dns.RcodeToString[m.Rcode]
	if m.Authoritative {
		text += " aa"
	}
	return text
}

func text(rrs []dns.RR) []string {
	var lines []string
	for _, rr := range rrs {
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	return lines
}

// checkHeader checks what m, an answer to q, repeats.
func checkHeader(t *testing.T, q, m *dns.Msg) {
	t.Helper()
	if !m.Response || m.Id != q.Id || !slices.Equal(m.Question, q.Question) {
		t.Errorf("header does not repeat the question: %v", m)
	}
	if !m.RecursionAvailable || m.RecursionDesired != q.RecursionDesired || m.Truncated {
		t.Errorf("flags: %v", m.MsgHdr.String())
	}
}

// answered returns z's answer to q by UDP; nil if it is to be forwarded.
func answered(t testing.TB, z *Zone, q *dns.Msg, spin uint32) *dns.Msg {
	t.Helper()
	b := respond(z, q, netip.Addr{}, false, spin)
	if b == nil {
		return nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer to %v does not parse: %v", q, err)
	}
	return m
}

func TestFlagsAreCopied(t *testing.T) {
	z := newTestZone(t)
	for _, rd := range []bool{false, true} {
		q := asking(t, "api.jiji. IN A")
		q.RecursionDesired = rd
		m := answered(t, z, q, 0)
		if m.RecursionDesired != rd || !m.RecursionAvailable {
			t.Errorf("RD %v: answered with %v", rd, m.MsgHdr.String())
		}
	}
}

func TestMalformed(t *testing.T) {
	z := newTestZone(t)
	with := func(change func(*dns.Msg)) *dns.Msg {
		q := asking(t, "api.jiji. IN A")
		change(q)
		return q
	}
	for _, c := range []struct {
		name  string
		query *dns.Msg
		want  int
	}{
		{"no question", with(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"two OPT", with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(1232, false) }), dns.RcodeFormatError},
		{"EDNS version 1", with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		{"NOTIFY", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"UPDATE", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"STATUS", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := answered(t, z, c.query, 0)
			if m == nil || m.Rcode != c.want || len(m.Answer) > 0 {
				t.Fatalf("got %v, want %s", m, dns.RcodeToString[c.want])
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	z := newTestZone(t)
	q := asking(t, "api.jiji. IN A")
	if m := answered(t, z, q, 0); m.IsEdns0() != nil {
		t.Error("OPT in the answer to a query without one")
	}
	q.SetEdns0(4096, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	opt := answered(t, z, q, 0).IsEdns0()
	if opt == nil || opt.UDPSize() != 1232 || !opt.Do() || opt.Version() != 0 || len(opt.Option) != 0 {
		t.Errorf("OPT %v, want version 0, DO, 1232 bytes, no options", opt)
	}
}

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		edns int // -1: none
		tcp  bool
		want int
	}{
		{-1, false, 512}, {0, false, 512}, {100, false, 512}, {512, false, 512}, {1000, false, 1000},
		{1232, false, 1232}, {4096, false, 1232}, {65535, false, 1232}, {-1, true, 65535}, {512, true, 65535},
	} {
		q := asking(t, "api.jiji. IN A")
		if c.edns >= 0 {
			q.SetEdns0(uint16(c.edns), false)
		}
		if got := limit(q, c.tcp); got != c.want {
			t.Errorf("EDNS %d, TCP %v: %d, want %d", c.edns, c.tcp, got, c.want)
		}
	}
}

// crowd is a service of n containers of one server, from 10.210.4.0 on.
func crowd(n int) Service {
	s := Service{Name: "crowd"}
	ip := netip.MustParseAddr("10.210.4.0")
	for i := range n {
		s.Containers = append(s.Containers, Container{ID: fmt.Sprint("c", i), Server: "a", IP: ip})
		ip = ip.Next()
	}
	return s
}

// crowdZone is a zone of a server a with these services.
func crowdZone(t testing.TB, services ...Service) *Zone {
	t.Helper()
	z, err := NewZone(ZoneConfig{Apex: "jiji", Server: "a", Nodes: []Node{{ID: "a"}, {ID: "b", Rank: 1}, {ID: "c", Rank: 7}}, Services: services})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestTruncation(t *testing.T) {
	for _, c := range []struct {
		addrs, edns int
		tcp         bool
		truncated   bool
		records     int
	}{
		{29, -1, false, false, 29}, // 12 header, 16 question, 16 each
		{30, -1, false, false, 30},
		{31, -1, false, true, 30},
		{31, 512, false, true, 29}, // 11 for OPT
		{74, 1232, false, false, 74},
		{80, 4096, false, true, 74},
		{400, -1, true, false, 400},
		{5000, -1, true, false, 1024},
	} {
		t.Run(fmt.Sprintf("%d addresses, EDNS %d, TCP %v", c.addrs, c.edns, c.tcp), func(t *testing.T) {
			z := crowdZone(t, crowd(c.addrs))
			q := asking(t, "crowd.jiji. IN A")
			if c.edns >= 0 {
				q.SetEdns0(uint16(c.edns), false)
			}
			b := respond(z, q, netip.Addr{}, c.tcp, 7)
			if len(b) > limit(q, c.tcp) {
				t.Errorf("%d bytes, want at most %d", len(b), limit(q, c.tcp))
			}
			m := new(dns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			if m.Truncated != c.truncated || len(m.Answer) != c.records {
				t.Errorf("TC %v with %d records, want %v with %d", m.Truncated, len(m.Answer), c.truncated, c.records)
			}
			if c.edns >= 0 && m.IsEdns0() == nil {
				t.Error("OPT was lost")
			}
		})
	}
}

// Of SRV records the first that fit are sent, and their addresses if these fit too.
func TestTruncationOfServices(t *testing.T) {
	for _, c := range []struct {
		containers, edns int
		tcp, truncated   bool
		srv, glue        int
	}{
		{3, -1, false, false, 3, 3},
		{10, -1, false, false, 10, 9}, // 37 of header and question, 33 each; then 16 each
		{20, -1, false, true, 14, 0},
		{20, 1232, false, false, 20, 20},
		{80, 4096, false, true, 35, 0},
		{400, -1, true, false, 64, 64},
	} {
		t.Run(fmt.Sprintf("%d containers, EDNS %d, TCP %v", c.containers, c.edns, c.tcp), func(t *testing.T) {
			s := crowd(c.containers)
			for i := range s.Containers {
				s.Containers[i].Ports = []Port{{80, "tcp"}}
			}
			q := asking(t, "_80._tcp.crowd.jiji. IN SRV")
			if c.edns >= 0 {
				q.SetEdns0(uint16(c.edns), false)
			}
			b := respond(crowdZone(t, s), q, netip.Addr{}, c.tcp, 0)
			if len(b) > limit(q, c.tcp) {
				t.Errorf("%d bytes, want at most %d", len(b), limit(q, c.tcp))
			}
			m := new(dns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			glue := len(m.Extra)
			if m.IsEdns0() != nil {
				glue--
			}
			if m.Truncated != c.truncated || len(m.Answer) != c.srv || glue != c.glue {
				t.Errorf("TC %v, %d records, %d addresses; want %v, %d, %d", m.Truncated, len(m.Answer), glue, c.truncated, c.srv, c.glue)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	at := func(id, server, ip string) Container {
		return Container{ID: id, Server: server, IP: netip.MustParseAddr(ip)}
	}
	z := crowdZone(t, Service{"x", []Container{
		at("5", "c", "10.0.0.5"), at("3", "b", "10.0.0.3"), at("2", "b", "10.0.0.2"), at("1", "a", "10.0.0.1"), at("4", "b", "10.0.0.4"), at("4", "c", "10.0.0.4"),
	}})
	for spin, want := range []string{"1 2 3 4 5", "1 3 4 2 5", "1 4 2 3 5", "1 2 3 4 5"} {
		var got []string
		for _, rr := range answered(t, z, asking(t, "x.jiji. IN A"), uint32(spin)).Answer {
			got = append(got, strings.TrimPrefix(rr.(*dns.A).A.String(), "10.0.0."))
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("spin %d: %s, want %s", spin, g, want)
		}
	}
}

func TestReverseApexes(t *testing.T) {
	for _, c := range []struct {
		prefix string
		count  int
		first  string
		last   string
	}{
		{"10.210.0.0/16", 1, "210.10.in-addr.arpa", "210.10.in-addr.arpa"},
		{"10.0.0.0/8", 1, "10.in-addr.arpa", "10.in-addr.arpa"},
		{"172.16.0.0/12", 16, "16.172.in-addr.arpa", "31.172.in-addr.arpa"},
		{"10.128.0.0/9", 128, "128.10.in-addr.arpa", "255.10.in-addr.arpa"},
		{"10.1.2.0/23", 2, "2.1.10.in-addr.arpa", "3.1.10.in-addr.arpa"},
		{"10.1.2.3/32", 1, "3.2.1.10.in-addr.arpa", "3.2.1.10.in-addr.arpa"},
		{"fdcc::/16", 1, "c.c.d.f.ip6.arpa", "c.c.d.f.ip6.arpa"},
		{"fd00::/10", 4, "0.d.f.ip6.arpa", "3.d.f.ip6.arpa"},
		{"2001:db8::/35", 2, "0.8.b.d.0.1.0.0.2.ip6.arpa", "1.8.b.d.0.1.0.0.2.ip6.arpa"},
	} {
		got := reverseApexes(netip.MustParsePrefix(c.prefix))
		if len(got) != c.count || got[0] != c.first || got[len(got)-1] != c.last {
			t.Errorf("%s: %d names, %s to %s; want %d, %s to %s", c.prefix, len(got), got[0], got[len(got)-1], c.count, c.first, c.last)
		}
	}
}

func TestReverseOfUnalignedPrefix(t *testing.T) {
	z, err := NewZone(ZoneConfig{
		Apex: "Mesh.Example.ORG.", Server: "a", Nodes: []Node{{ID: "a"}}, Reverse: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")},
		Services: []Service{{"API", []Container{{ID: "ID", Server: "A", IP: netip.MustParseAddr("172.20.0.2")}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ question, want string }{
		{"2.0.20.172.in-addr.arpa. IN PTR", "2.0.20.172.in-addr.arpa. 5 IN PTR id.api.mesh.example.org."},
		{"3.0.20.172.in-addr.arpa. IN PTR", "20.172.in-addr.arpa. 5 IN SOA a.node.mesh.example.org. hostmaster.mesh.example.org. 0 3600 600 86400 5"},
		{"api.mesh.example.org. IN A", "api.mesh.example.org. 5 IN A 172.20.0.2"},
		{"1.0.32.172.in-addr.arpa. IN PTR", "forward"},
		{"172.in-addr.arpa. IN NS", "forward"},
		{"example.org. IN A", "forward"},
	} {
		got := "forward"
		if m := answered(t, z, asking(t, c.question), 0); m != nil {
			got = strings.Join(text(append(m.Answer, m.Ns...)), "\n")
		}
		if got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.question, got, c.want)
		}
	}
}

func TestNewZoneRefuses(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct {
		name   string
		change func(*ZoneConfig)
		want   string
	}{
		{"no apex", func(c *ZoneConfig) { c.Apex = "" }, `apex: "" has a label of 0 characters, want 1 to 63`},
		{"root as apex", func(c *ZoneConfig) { c.Apex = "." }, `apex: "" has a label of 0 characters, want 1 to 63`},
		{"long label", func(c *ZoneConfig) { c.Apex = long }, `apex: "` + long + `" has a label of 64 characters, want 1 to 63`},
		{"space", func(c *ZoneConfig) { c.Apex = "a b" }, `apex: "a b" contains ' ', want letters, digits, "-" and "_"`},
		{"no server", func(c *ZoneConfig) { c.Server = "" }, `name of this server: ".node" has a label of 0 characters, want 1 to 63`},
		{"long server", func(c *ZoneConfig) { c.Server = strings.Repeat("abcdefg.", 31) + "a" }, `name of this server: "` + strings.Repeat("abcdefg.", 31) + `a.node" has 254 characters, want at most 253`},
		{"long apex", func(c *ZoneConfig) { c.Apex = strings.Repeat("abcdefg.", 31) + "abcd" }, `apex: "` + strings.Repeat("abcdefg.", 31) + `abcd" has 252 characters, want room for names below it`},
		{"reverse of everything", func(c *ZoneConfig) { c.Reverse = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
			"reverse tree of 0.0.0.0/0: want an IPv4 or IPv6 prefix of 1 bit or more"},
	} {
		cfg := testConfig()
		c.change(&cfg)
		if _, err := NewZone(cfg); err == nil || err.Error() != c.want {
			t.Errorf("%s: error %v\nwant %s", c.name, err, c.want)
		}
	}
}

// What cannot be named does no harm to the rest.
func TestUnnameable(t *testing.T) {
	ip := netip.MustParseAddr
	long := strings.Repeat("a", 64)
	z := crowdZone(t,
		Service{long, []Container{{ID: "a", Server: "a", IP: ip("10.210.4.1")}}},
		Service{"", []Container{{ID: "b", Server: "a", IP: ip("10.210.4.2")}}},
		Service{"ok", []Container{
			{ID: "", Server: "a", IP: ip("10.210.4.3")}, {ID: "d", Server: "a"},
			{ID: "e", Server: "a", IP: ip("fd00::1")}, {ID: "f", Server: "a", IP: ip("10.210.4.4")},
		}},
		Service{Name: "none"},
	)
	if got := text(answered(t, z, asking(t, "ok.jiji. IN A"), 0).Answer); len(got) != 1 || got[0] != "ok.jiji. 5 IN A 10.210.4.4" {
		t.Errorf("ok.jiji is %v", got)
	}
	if m := answered(t, z, asking(t, "none.jiji. IN A"), 0); m.Rcode != dns.RcodeNameError {
		t.Errorf("none.jiji: %v", m)
	}
	if z.Len() != 3+3 {
		t.Errorf("%d names, want those of three nodes and three of a container", z.Len())
	}
}

func TestUnknownZone(t *testing.T) {
	z, err := emptyZone("jiji", []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	z.unknown = true
	for q, want := range map[string]int{
		"api.jiji. IN A": dns.RcodeServerFailure, "jiji. IN SOA": dns.RcodeServerFailure, "api. IN A": dns.RcodeServerFailure,
		"1.0.210.10.in-addr.arpa. IN PTR": dns.RcodeServerFailure, "api.jiji. IN ANY": dns.RcodeRefused,
	} {
		if m := answered(t, z, asking(t, q), 0); m == nil || m.Rcode != want || m.Authoritative {
			t.Errorf("%s: %v, want %s", q, m, dns.RcodeToString[want])
		}
	}
	if m := answered(t, z, asking(t, "example.com. IN A"), 0); m != nil {
		t.Errorf("outside name: %v, want it forwarded", m)
	}
}

func TestLookup(t *testing.T) {
	z := newTestZone(t)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"one.jiji", dns.TypeA, "ours aa NOERROR 5s [one.jiji.\t5\tIN\tA\t10.210.0.10]"},
		{"ONE.jiji.", dns.TypeAAAA, "ours aa NOERROR 5s []"},
		{"nope.jiji", dns.TypeA, "ours aa NXDOMAIN 5s []"},
		{"one", dns.TypeA, "ours NXDOMAIN 0s []"},
		{"example.com", dns.TypeA, " 0s []"},
	} {
		r := z.Lookup(c.name, c.qtype)
		got := fmt.Sprintf("%s %v %v", r.Rcode, r.TTL, r.Records)
		if r.Authoritative {
			got = "aa " + got
		}
		if r.Ours {
			got = "ours " + got
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// FuzzDNSShow5: whatever arrives, the answer to it fits, repeats the question
// and can be parsed; and a datagram is answered as the library would have it.
func FuzzDNSShow5(f *testing.F) {
	cfg := testConfig()
	cfg.Services = append(cfg.Services, crowd(3000))
	z, err := NewZone(cfg)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range append(readCorpus(f), corpusCase{question: "crowd.jiji. IN A"}) {
		q := asking(f, c.question)
		for _, edns := range []bool{false, true} {
			if edns {
				q.SetEdns0(1232, true)
			}
			b, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, edns)
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		var room [maxName]byte
		plain, isPlain := parseQuery(packet, &room)
		var fast []byte
		if isPlain {
			fast = z.reply(nil, &plain, netip.Addr{}, 1)
			if b := z.appendReply(nil, &plain, &answer{rcode: dns.RcodeRefused}, 0); len(b) > 3*len(packet) {
				t.Fatalf("%d bytes to a stranger who sent %d", len(b), len(packet))
			}
		}
		q := new(dns.Msg)
		if err := q.Unpack(packet); err != nil {
			if isPlain {
				t.Fatalf("taken for a query, but the library says %v", err)
			}
			return
		}
		if b := pack(forward.Failure(q, dns.RcodeRefused), q, false); len(b) > 3*len(packet) {
			t.Fatalf("%d bytes to a stranger who sent %d", len(b), len(packet))
		}
		b := respond(z, q, netip.Addr{}, tcp, 1)
		if isPlain && !tcp && !bytes.Equal(fast, b) {
			t.Fatalf("answered with\n%x, by the library's reading with\n%x", fast, b)
		}
		if b == nil {
			return // the forwarder's: FuzzReply
		}
		if len(b) > limit(q, tcp) {
			t.Fatalf("%d bytes, want at most %d", len(b), limit(q, tcp))
		}
		back := new(dns.Msg)
		if err := back.Unpack(b); err != nil {
			t.Fatalf("answer does not parse: %v", err)
		}
		if back.Id != q.Id || len(back.Question) > 1 {
			t.Fatalf("answer is to something else: %v", back)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	z := newTestZone(b)
	for _, name := range []string{"one.jiji. IN A", "api.jiji. IN A", "blog-api.jiji. IN A", "api.web2.jiji. IN A", "aaaa1111aaaa.api.jiji. IN A", "api.jiji. IN AAAA", "nope.jiji. IN A", "9.0.210.10.in-addr.arpa. IN PTR", "_8080._tcp.api.jiji. IN SRV"} {
		p, err := asking(b, name).Pack()
		if err != nil {
			b.Fatal(err)
		}
		reply := make([]byte, 0, forward.EDNSSize)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var room [maxName]byte
				q, ok := parseQuery(p, &room)
				if !ok || z.reply(reply[:0], &q, netip.Addr{}, 3) == nil {
					b.Fatal("no reply")
				}
			}
		})
	}
}

// fullServices are those of the largest cluster that a /16 holds: 64,768
// containers of 2,000 services on 256 servers.
func fullServices() []Service {
	services := make([]Service, 2000)
	for i := range 64768 {
		s := &services[i%len(services)]
		s.Name = fmt.Sprintf("service%d", i%len(services))
		s.Containers = append(s.Containers, Container{
			ID: fmt.Sprintf("%012x%052x", i*7919, i), Server: fmt.Sprintf("web%d", i/253), Project: "shop", Instance: fmt.Sprint(i % 40),
			IP: netip.AddrFrom4([4]byte{10, 210, byte(i / 253), byte(2 + i%253)}), Ports: []Port{{8080, "tcp"}},
		})
	}
	return services
}

func fullConfig() ZoneConfig {
	c := ZoneConfig{Apex: "jiji", Server: "web0", Reverse: []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16"), netip.MustParsePrefix("fdcc::/16")}}
	for i := range 256 {
		c.Nodes = append(c.Nodes, Node{ID: fmt.Sprintf("web%d", i), Rank: min(i, 1), Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 210, byte(i), 1}), netip.AddrFrom16([16]byte{0xfd, 0xcc, byte(i), byte(i), 15: 1})}})
	}
	return c
}

// TestDNSShow2Memory: what the zone of the largest cluster takes, with every name
// of a service asked for, is 24 MB at most.
func TestDNSShow2Memory(t *testing.T) {
	c := fullConfig()
	empty, err := NewZone(c)
	if err != nil {
		t.Fatal(err)
	}
	before := liveHeap()
	z := empty.With(1, false, fullServices()...)
	plain := liveHeap() - before
	for i := range 2000 {
		if m := answered(t, z, asking(t, fmt.Sprintf("service%d.jiji. IN A", i)), 0); len(m.Answer) == 0 {
			t.Fatalf("service%d: %v", i, m)
		}
	}
	asked := liveHeap() - before
	t.Logf("%.1f MB, %.1f MB when each service was asked for; %d names", float64(plain)/1e6, float64(asked)/1e6, z.Len())
	if asked > 24e6 {
		t.Errorf("%d bytes, want 24 MB at most", asked)
	}
	runtime.KeepAlive(z)
	runtime.KeepAlive(empty)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkNewZone builds the largest zone.
func BenchmarkNewZone(b *testing.B) {
	c := fullConfig()
	c.Services = fullServices()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := NewZone(c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkZoneChange changes one service in zones of different sizes: it has to
// cost the same.
func BenchmarkZoneChange(b *testing.B) {
	all := fullServices()
	for _, services := range []int{1, 20, 200, 2000} {
		c := fullConfig()
		c.Services = all[:services]
		z, err := NewZone(c)
		if err != nil {
			b.Fatal(err)
		}
		changed := all[0]
		changed.Containers = slices.Clone(changed.Containers)
		b.Run(fmt.Sprintf("of %d services", services), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				changed.Containers[3].Unfit = map[string]string{"": "unhealthy"}[changed.Containers[3].Unfit]
				z = z.With(1, false, changed)
			}
		})
	}
}
