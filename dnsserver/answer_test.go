package dnsserver

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// testConfig is a mesh of three servers, seen from web1.
func testConfig() ZoneConfig {
	ip := netip.MustParseAddr
	return ZoneConfig{
		Apex:   "jiji",
		Server: "web1.node",
		Serial: 42,
		Names: []Name{
			{Owner: "api", PTR: true, Addrs: []Addr{{ip("10.210.1.15"), 1}, {ip("10.210.0.9"), 0}, {ip("10.210.2.30"), 2}}},
			{Owner: "one", Addrs: []Addr{{ip("10.210.0.9"), 0}}},
			{Owner: "sick"},
			{Owner: "shop-api_v2", Addrs: []Addr{{ip("10.210.0.20"), 0}}},
			{Owner: "_acme-challenge.api", Addrs: []Addr{{ip("10.210.0.21"), 0}}},
			{Owner: "web1.node", PTR: true, Addrs: []Addr{{ip("10.210.0.1"), 0}, {ip("fdcc:630d:cd29:66c4:3366:9112:5448:bbb2"), 0}}},
			{Owner: "web2.node", PTR: true, Addrs: []Addr{{ip("10.210.1.1"), 0}}},
			{Owner: "legacy", PTR: true, Addrs: []Addr{{ip("192.0.2.7"), 0}}}, // outside the mesh
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

const (
	soa        = "jiji. 5 IN SOA web1.node.jiji. hostmaster.jiji. 42 3600 600 86400 5"
	reverseSOA = "210.10.in-addr.arpa. 5 IN SOA web1.node.jiji. hostmaster.jiji. 42 3600 600 86400 5"
	nibbleSOA  = "c.c.d.f.ip6.arpa. 5 IN SOA web1.node.jiji. hostmaster.jiji. 42 3600 600 86400 5"
)

// zoneCases are questions to testConfig's zone, in zone-file text: what is
// asked, the rcode with the flag AA, and the records of answer and authority.
var zoneCases = []struct {
	name      string
	question  string
	rcode     string
	answer    []string
	authority []string
}{
	{"addresses by rank", "api.jiji. IN A", "NOERROR aa",
		[]string{"api.jiji. 5 IN A 10.210.0.9", "api.jiji. 5 IN A 10.210.1.15", "api.jiji. 5 IN A 10.210.2.30"}, nil},
	{"case is ignored and repeated", "ApI.jIJi. IN A", "NOERROR aa",
		[]string{"ApI.jIJi. 5 IN A 10.210.0.9", "ApI.jIJi. 5 IN A 10.210.1.15", "ApI.jIJi. 5 IN A 10.210.2.30"}, nil},
	{"AAAA of an IPv4 service is NODATA", "api.jiji. IN AAAA", "NOERROR aa", nil, []string{soa}},
	{"SOA of a negative answer repeats the case", "api.JiJi. IN AAAA", "NOERROR aa", nil,
		[]string{"JiJi. 5 IN SOA web1.node.jiji. hostmaster.jiji. 42 3600 600 86400 5"}},
	{"MX is NODATA", "api.jiji. IN MX", "NOERROR aa", nil, []string{soa}},
	{"HTTPS is NODATA", "api.jiji. IN HTTPS", "NOERROR aa", nil, []string{soa}},
	{"unknown type is NODATA", "api.jiji. IN TYPE4711", "NOERROR aa", nil, []string{soa}},
	{"CNAME is NODATA", "api.jiji. IN CNAME", "NOERROR aa", nil, []string{soa}},
	{"no healthy address is NODATA", "sick.jiji. IN A", "NOERROR aa", nil, []string{soa}},
	{"underscore", "shop-api_v2.jiji. IN A", "NOERROR aa", []string{"shop-api_v2.jiji. 5 IN A 10.210.0.20"}, nil},
	{"underscore first", "_acme-challenge.api.jiji. IN A", "NOERROR aa", []string{"_acme-challenge.api.jiji. 5 IN A 10.210.0.21"}, nil},
	{"server A", "web1.node.jiji. IN A", "NOERROR aa", []string{"web1.node.jiji. 5 IN A 10.210.0.1"}, nil},
	{"server AAAA", "web1.node.jiji. IN AAAA", "NOERROR aa",
		[]string{"web1.node.jiji. 5 IN AAAA fdcc:630d:cd29:66c4:3366:9112:5448:bbb2"}, nil},
	{"empty non-terminal", "node.jiji. IN A", "NOERROR aa", nil, []string{soa}},
	{"unknown name", "nope.jiji. IN A", "NXDOMAIN aa", nil, []string{soa}},
	{"unknown name, AAAA", "nope.jiji. IN AAAA", "NXDOMAIN aa", nil, []string{soa}},
	{"below a name", "x.api.jiji. IN A", "NXDOMAIN aa", nil, []string{soa}},
	{"below an empty non-terminal", "x.node.jiji. IN A", "NXDOMAIN aa", nil, []string{soa}},
	{"no wildcard", "*.jiji. IN A", "NXDOMAIN aa", nil, []string{soa}},
	{"a dot inside a label", `web1\.node.jiji. IN A`, "NXDOMAIN aa", nil, []string{soa}},
	{"bytes in a label", `\000\255.jiji. IN A`, "NXDOMAIN aa", nil, []string{soa}},
	{"SOA", "jiji. IN SOA", "NOERROR aa", []string{soa}, nil},
	{"NS", "jiji. IN NS", "NOERROR aa", []string{"jiji. 5 IN NS web1.node.jiji."}, nil},
	{"apex A is NODATA", "jiji. IN A", "NOERROR aa", nil, []string{soa}},
	{"SOA below the apex is NODATA", "api.jiji. IN SOA", "NOERROR aa", nil, []string{soa}},
	{"NS below the apex is NODATA", "node.jiji. IN NS", "NOERROR aa", nil, []string{soa}},
	{"PTR of a container", "15.1.210.10.in-addr.arpa. IN PTR", "NOERROR aa", []string{"15.1.210.10.in-addr.arpa. 5 IN PTR api.jiji."}, nil},
	{"PTR of a server", "1.1.210.10.in-addr.arpa. IN PTR", "NOERROR aa", []string{"1.1.210.10.in-addr.arpa. 5 IN PTR web2.node.jiji."}, nil},
	{"PTR in capitals", "1.1.210.10.IN-ADDR.ARPA. IN PTR", "NOERROR aa", []string{"1.1.210.10.IN-ADDR.ARPA. 5 IN PTR web2.node.jiji."}, nil},
	{"PTR of a management address", "2.b.b.b.8.4.4.5.2.1.1.9.6.6.3.3.4.c.6.6.9.2.d.c.d.0.3.6.c.c.d.f.ip6.arpa. IN PTR", "NOERROR aa",
		[]string{"2.b.b.b.8.4.4.5.2.1.1.9.6.6.3.3.4.c.6.6.9.2.d.c.d.0.3.6.c.c.d.f.ip6.arpa. 5 IN PTR web1.node.jiji."}, nil},
	{"A of a reverse name is NODATA", "15.1.210.10.in-addr.arpa. IN A", "NOERROR aa", nil, []string{reverseSOA}},
	{"PTR nobody has", "99.1.210.10.in-addr.arpa. IN PTR", "NXDOMAIN aa", nil, []string{reverseSOA}},
	{"PTR of a name without one", "20.0.210.10.in-addr.arpa. IN PTR", "NXDOMAIN aa", nil, []string{reverseSOA}},
	{"IPv6 PTR nobody has", "1.c.c.d.f.ip6.arpa. IN PTR", "NXDOMAIN aa", nil, []string{nibbleSOA}},
	{"reverse non-terminal", "1.210.10.in-addr.arpa. IN PTR", "NOERROR aa", nil, []string{reverseSOA}},
	{"reverse SOA", "210.10.in-addr.arpa. IN SOA", "NOERROR aa", []string{reverseSOA}, nil},
	{"reverse NS", "210.10.in-addr.arpa. IN NS", "NOERROR aa", []string{"210.10.in-addr.arpa. 5 IN NS web1.node.jiji."}, nil},
	{"junk below the reverse tree", "x.210.10.in-addr.arpa. IN PTR", "NXDOMAIN aa", nil, []string{reverseSOA}},
	{"one label stays here, without a SOA", "localdb. IN A", "NXDOMAIN", nil, nil},
	{"one label with a dot in it", `api\.jiji. IN A`, "NXDOMAIN", nil, nil},
	{"ANY", "api.jiji. IN ANY", "REFUSED", nil, nil},
	{"ANY outside", "example.com. IN ANY", "REFUSED", nil, nil},
	{"AXFR", "jiji. IN AXFR", "REFUSED", nil, nil},
	{"IXFR", "jiji. IN IXFR", "REFUSED", nil, nil},
	{"CHAOS", "version.bind. CH TXT", "REFUSED", nil, nil},
	{"class ANY", "api.jiji. ANY A", "REFUSED", nil, nil},
	{"outside", "example.com. IN A", "forward", nil, nil},
	{"outside with our name in front", "jiji.example.com. IN A", "forward", nil, nil},
	{"outside with our name at the end of a label", "notjiji.nojiji.com. IN A", "forward", nil, nil},
	{"reverse of others", "1.0.168.192.in-addr.arpa. IN PTR", "forward", nil, nil},
	{"reverse of the neighbour", "1.1.211.10.in-addr.arpa. IN PTR", "forward", nil, nil},
	{"reverse above ours", "10.in-addr.arpa. IN NS", "forward", nil, nil},
	{"reverse of an external address", "7.2.0.192.in-addr.arpa. IN PTR", "forward", nil, nil},
	{"the root", ". IN NS", "forward", nil, nil},
}

// question reads "name class type".
func question(t testing.TB, text string) *dns.Msg {
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

func TestZone(t *testing.T) {
	z := newTestZone(t)
	for _, c := range zoneCases {
		t.Run(c.name, func(t *testing.T) {
			q := question(t, c.question)
			m := respond(z, q, 0)
			if c.rcode == "forward" {
				if m != nil {
					t.Fatalf("answered, want it forwarded:\n%v", m)
				}
				return
			}
			if m == nil {
				t.Fatal("forwarded, want an answer")
			}
			checkReply(t, q, m, c.rcode, c.answer, c.authority)
		})
	}
}

// checkReply checks all of m, an answer to q.
func checkReply(t *testing.T, q, m *dns.Msg, wantRcode string, answer, authority []string) {
	t.Helper()
	if got := rcode(m); got != wantRcode {
		t.Errorf("rcode %s, want %s", got, wantRcode)
	}
	if got := text(m.Answer); !slices.Equal(got, answer) {
		t.Errorf("answer\n%v\nwant\n%v", strings.Join(got, "\n"), strings.Join(answer, "\n"))
	}
	if got := text(m.Ns); !slices.Equal(got, authority) {
		t.Errorf("authority\n%v\nwant\n%v", strings.Join(got, "\n"), strings.Join(authority, "\n"))
	}
	if !m.Response || m.Id != q.Id || !slices.Equal(m.Question, q.Question) {
		t.Errorf("header does not repeat the question: %v", m)
	}
	if !m.RecursionAvailable || m.RecursionDesired != q.RecursionDesired || m.Truncated {
		t.Errorf("flags: %v", m.MsgHdr.String())
	}
}

func TestFlagsAreCopied(t *testing.T) {
	z := newTestZone(t)
	for _, rd := range []bool{false, true} {
		q := question(t, "api.jiji. IN A")
		q.RecursionDesired = rd
		m := respond(z, q, 0)
		if m.RecursionDesired != rd || !m.RecursionAvailable {
			t.Errorf("RD %v: answered with %v", rd, m.MsgHdr.String())
		}
	}
}

func TestMalformed(t *testing.T) {
	z := newTestZone(t)
	with := func(change func(*dns.Msg)) *dns.Msg {
		q := question(t, "api.jiji. IN A")
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
			m := respond(z, c.query, 0)
			if m == nil || m.Rcode != c.want || len(m.Answer) > 0 {
				t.Fatalf("got %v, want %s", m, dns.RcodeToString[c.want])
			}
			b, err := pack(m, limit(c.query, false))
			if err != nil {
				t.Fatal(err)
			}
			back := new(dns.Msg)
			if err := back.Unpack(b); err != nil || back.Rcode != c.want {
				t.Errorf("on the wire: %v, %v", back, err)
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	z := newTestZone(t)
	q := question(t, "api.jiji. IN A")
	if m := respond(z, q, 0); m.IsEdns0() != nil {
		t.Error("OPT in the answer to a query without one")
	}
	q.SetEdns0(4096, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	opt := respond(z, q, 0).IsEdns0()
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
		q := question(t, "api.jiji. IN A")
		if c.edns >= 0 {
			q.SetEdns0(uint16(c.edns), false)
		}
		if got := limit(q, c.tcp); got != c.want {
			t.Errorf("EDNS %d, TCP %v: %d, want %d", c.edns, c.tcp, got, c.want)
		}
	}
}

// crowd is n addresses of one rank from 10.210.4.0 on.
func crowd(n int) []Addr {
	var addrs []Addr
	ip := netip.MustParseAddr("10.210.4.0")
	for range n {
		addrs = append(addrs, Addr{IP: ip})
		ip = ip.Next()
	}
	return addrs
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
			z, err := NewZone(ZoneConfig{Apex: "jiji", Server: "a.node", Names: []Name{{Owner: "crowd", Addrs: crowd(c.addrs)}}})
			if err != nil {
				t.Fatal(err)
			}
			q := question(t, "crowd.jiji. IN A")
			if c.edns >= 0 {
				q.SetEdns0(uint16(c.edns), false)
			}
			b, err := pack(respond(z, q, 7), limit(q, c.tcp))
			if err != nil {
				t.Fatal(err)
			}
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

func TestRotation(t *testing.T) {
	ip := netip.MustParseAddr
	z, err := NewZone(ZoneConfig{Apex: "jiji", Server: "a.node", Names: []Name{{Owner: "x", Addrs: []Addr{
		{ip("10.0.0.5"), 7}, {ip("10.0.0.3"), 1}, {ip("10.0.0.2"), 1}, {ip("10.0.0.1"), 0}, {ip("10.0.0.4"), 1}, {ip("10.0.0.4"), 9},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	for spin, want := range []string{"1 2 3 4 5", "1 3 4 2 5", "1 4 2 3 5", "1 2 3 4 5"} {
		var got []string
		for _, rr := range z.answer("x.jiji.", dns.TypeA, uint32(spin)).records {
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
		{"10.210.0.0/16", 1, "210.10.in-addr.arpa.", "210.10.in-addr.arpa."},
		{"10.0.0.0/8", 1, "10.in-addr.arpa.", "10.in-addr.arpa."},
		{"172.16.0.0/12", 16, "16.172.in-addr.arpa.", "31.172.in-addr.arpa."},
		{"10.128.0.0/9", 128, "128.10.in-addr.arpa.", "255.10.in-addr.arpa."},
		{"10.1.2.0/23", 2, "2.1.10.in-addr.arpa.", "3.1.10.in-addr.arpa."},
		{"10.1.2.3/32", 1, "3.2.1.10.in-addr.arpa.", "3.2.1.10.in-addr.arpa."},
		{"fdcc::/16", 1, "c.c.d.f.ip6.arpa.", "c.c.d.f.ip6.arpa."},
		{"fd00::/10", 4, "0.d.f.ip6.arpa.", "3.d.f.ip6.arpa."},
		{"2001:db8::/35", 2, "0.8.b.d.0.1.0.0.2.ip6.arpa.", "1.8.b.d.0.1.0.0.2.ip6.arpa."},
	} {
		got := reverseApexes(netip.MustParsePrefix(c.prefix))
		if len(got) != c.count || got[0] != c.first || got[len(got)-1] != c.last {
			t.Errorf("%s: %d names, %s to %s; want %d, %s to %s", c.prefix, len(got), got[0], got[len(got)-1], c.count, c.first, c.last)
		}
	}
}

func TestReverseOfUnalignedPrefix(t *testing.T) {
	z, err := NewZone(ZoneConfig{
		Apex: "Mesh.Example.ORG.", Server: "a.node", Reverse: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")},
		Names: []Name{{Owner: "API", PTR: true, Addrs: []Addr{{IP: netip.MustParseAddr("172.20.0.2")}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ question, want string }{
		{"2.0.20.172.in-addr.arpa. IN PTR", "2.0.20.172.in-addr.arpa. 5 IN PTR api.mesh.example.org."},
		{"3.0.20.172.in-addr.arpa. IN PTR", "20.172.in-addr.arpa. 5 IN SOA a.node.mesh.example.org. hostmaster.mesh.example.org. 0 3600 600 86400 5"},
		{"api.mesh.example.org. IN A", "api.mesh.example.org. 5 IN A 172.20.0.2"},
		{"1.0.32.172.in-addr.arpa. IN PTR", "forward"},
		{"172.in-addr.arpa. IN NS", "forward"},
		{"example.org. IN A", "forward"},
	} {
		got := "forward"
		if m := respond(z, question(t, c.question), 0); m != nil {
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
		{"no server", func(c *ZoneConfig) { c.Server = "" }, `name of this server: "" has a label of 0 characters, want 1 to 63`},
		{"space", func(c *ZoneConfig) { c.Names = []Name{{Owner: "a b"}} }, `owner name: "a b" contains ' ', want letters, digits, "-" and "_"`},
		{"wildcard", func(c *ZoneConfig) { c.Names = []Name{{Owner: "*"}} }, `owner name: "*" contains '*', want letters, digits, "-" and "_"`},
		{"empty label", func(c *ZoneConfig) { c.Names = []Name{{Owner: "a..b"}} }, `owner name: "a..b" has a label of 0 characters, want 1 to 63`},
		{"final dot", func(c *ZoneConfig) { c.Names = []Name{{Owner: "a."}} }, `owner name: "a." has a label of 0 characters, want 1 to 63`},
		{"long label", func(c *ZoneConfig) { c.Names = []Name{{Owner: long}} }, `owner name: "` + long + `" has a label of 64 characters, want 1 to 63`},
		{"no address", func(c *ZoneConfig) { c.Names = []Name{{Owner: "a", Addrs: []Addr{{}}}} },
			"address invalid IP of a.jiji.: want an IPv4 or IPv6 address without a zone"},
		{"reverse of everything", func(c *ZoneConfig) { c.Reverse = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
			"reverse tree of 0.0.0.0/0: want an IPv4 or IPv6 prefix of 1 bit or more"},
	} {
		cfg := testConfig()
		c.change(&cfg)
		if _, err := NewZone(cfg); err == nil || err.Error() != c.want {
			t.Errorf("%s: error %v\nwant %s", c.name, err, c.want)
		}
	}
	cfg := testConfig()
	cfg.Names = []Name{{Owner: strings.Repeat("abcdefg.", 31) + "ab"}}
	if _, err := NewZone(cfg); err == nil || !strings.Contains(err.Error(), "has 255 characters, want at most 253") {
		t.Errorf("long name: error %v", err)
	}
}

func TestUnknownZone(t *testing.T) {
	z, _, err := newZone("jiji", []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	z.unknown = true
	for q, want := range map[string]int{
		"api.jiji. IN A": dns.RcodeServerFailure, "jiji. IN SOA": dns.RcodeServerFailure, "api. IN A": dns.RcodeServerFailure,
		"1.0.210.10.in-addr.arpa. IN PTR": dns.RcodeServerFailure, "api.jiji. IN ANY": dns.RcodeRefused,
	} {
		if m := respond(z, question(t, q), 0); m == nil || m.Rcode != want || m.Authoritative {
			t.Errorf("%s: %v, want %s", q, m, dns.RcodeToString[want])
		}
	}
	if m := respond(z, question(t, "example.com. IN A"), 0); m != nil {
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
		{"one.jiji", dns.TypeA, "ours aa NOERROR 5s [one.jiji.\t5\tIN\tA\t10.210.0.9]"},
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

// FuzzRespond: whatever arrives, the answer to it fits, repeats the question
// and can be parsed.
func FuzzRespond(f *testing.F) {
	cfg := testConfig()
	cfg.Names = append(cfg.Names, Name{Owner: "crowd", Addrs: crowd(3000)})
	z, err := NewZone(cfg)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range zoneCases {
		q := question(f, c.question)
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
	q := question(f, "crowd.jiji. IN A")
	b, _ := q.Pack()
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		q := new(dns.Msg)
		if q.Unpack(packet) != nil {
			return
		}
		if b, err := failure(q, dns.RcodeRefused).Pack(); err == nil && len(b) > 3*len(packet) {
			t.Fatalf("%d bytes to a stranger who sent %d", len(b), len(packet))
		}
		m := respond(z, q, 1)
		if m == nil {
			m = relay(q, q)
		}
		b, err := pack(m, limit(q, tcp))
		if err != nil {
			return // a server failure is sent instead
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
	for _, name := range []string{"one.jiji. IN A", "api.jiji. IN A", "api.jiji. IN AAAA", "nope.jiji. IN A"} {
		q := question(b, name)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := pack(respond(z, q, 3), 512); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewZone builds the largest zone that a /16 holds: 64,768 containers
// of 2,000 services on 256 servers.
func BenchmarkNewZone(b *testing.B) {
	c := ZoneConfig{Apex: "jiji", Server: "web0.node", Reverse: []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16")}}
	services := make([]Name, 2000)
	for i := range 64768 {
		ip := netip.AddrFrom4([4]byte{10, 210, byte(i / 253), byte(2 + i%253)})
		s := &services[i%len(services)]
		s.Owner = fmt.Sprintf("service%d", i%len(services))
		s.Addrs = append(s.Addrs, Addr{IP: ip})
		c.Names = append(c.Names, Name{Owner: fmt.Sprintf("%012x.%s", i*7919, s.Owner), Addrs: []Addr{{IP: ip}}, PTR: true})
	}
	c.Names = append(c.Names, services...)
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var z *Zone
	for b.Loop() {
		var err error
		if z, err = NewZone(c); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB-live")
	runtime.KeepAlive(z)
}
