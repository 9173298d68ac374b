package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestHostDNSWay(t *testing.T) {
	stub, own, other := netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("10.210.0.1"), netip.MustParseAddr("192.0.2.1")
	local := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name       string
		runs, stub bool
		servers    []netip.Addr
		port       uint16
		by, hint   string
	}{
		{"resolved", true, true, []netip.Addr{stub}, 53, "systemd-resolved", ""},
		{"resolved, another port", true, true, []netip.Addr{stub}, 5300, "systemd-resolved", ""},
		{"resolved, and not asked", true, false, []netip.Addr{other}, 53, "", "systemd-resolved knows jiji, but /etc/resolv.conf does not lead to it: make that a link to"},
		{"resolved, and we are asked", true, false, []netip.Addr{own, other}, 53, "/etc/resolv.conf", ""},
		{"a stub without resolved", false, true, []netip.Addr{stub}, 53, "", "not known: have the resolver on 127.0.0.53 ask 10.210.0.1:53 for jiji"},
		{"dnsmasq", false, false, []netip.Addr{local}, 53, "", "not known: have the resolver on 127.0.0.1 ask 10.210.0.1:53 for jiji"},
		{"plain", false, false, []netip.Addr{other}, 53, "", "no: put `nameserver 10.210.0.1` above the others"},
		{"plain, after another", false, false, []netip.Addr{other, own}, 53, "", "no: put `nameserver 10.210.0.1` above the others"},
		{"plain, we first", false, false, []netip.Addr{own, other}, 53, "/etc/resolv.conf", ""},
		{"plain, another port", false, false, []netip.Addr{own, other}, 5300, "", "no: /etc/resolv.conf cannot name port 5300"},
		{"none", false, false, nil, 53, "", "no: put `nameserver 10.210.0.1` above the others"},
	} {
		by, hint := hostDNSWay(c.runs, c.stub, c.servers, netip.AddrPortFrom(own, c.port), "jiji")
		if by != c.by || !strings.HasPrefix(hint, c.hint) || (hint == "") != (c.hint == "") {
			t.Errorf("%s: %q, %q; want %q, %q", c.name, by, hint, c.by, c.hint)
		}
	}
}

func TestReverseZones(t *testing.T) {
	for _, c := range []struct {
		prefix      string
		n           int
		first, last string
	}{
		{"10.0.0.0/8", 1, "10.in-addr.arpa", ""},
		{"10.210.0.0/16", 1, "210.10.in-addr.arpa", ""},
		{"10.210.7.0/24", 1, "7.210.10.in-addr.arpa", ""},
		{"172.16.0.0/12", 16, "16.172.in-addr.arpa", "31.172.in-addr.arpa"},
		{"10.210.128.0/17", 128, "128.210.10.in-addr.arpa", "255.210.10.in-addr.arpa"},
		{"10.0.0.0/9", 128, "0.10.in-addr.arpa", "127.10.in-addr.arpa"},
		{"fdcc::/16", 1, "c.c.d.f.ip6.arpa", ""},
		{"fdcc:8000::/18", 4, "8.c.c.d.f.ip6.arpa", "b.c.c.d.f.ip6.arpa"},
	} {
		zones := reverseZones(netip.MustParsePrefix(c.prefix))
		if c.last == "" {
			c.last = c.first
		}
		if len(zones) != c.n || zones[0] != c.first || zones[c.n-1] != c.last || len(slices.Compact(slices.Sorted(slices.Values(zones)))) != c.n {
			t.Errorf("%s: %s, want %s", c.prefix, fmt.Sprint(zones), fmt.Sprint(c.n, c.first, c.last))
		}
	}
}
