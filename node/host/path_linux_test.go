package host

import (
	"net/netip"
	"testing"
)

func TestPathMTU(t *testing.T) {
	namespace(t)
	ip(t,
		"link add eth0 type veth peer name far0", "link set eth0 up mtu 1400", "link set far0 up",
		"addr add 203.0.113.5/24 dev eth0", "addr add 2001:db8::5/64 dev eth0 nodad",
		"route add 198.51.100.0/24 via 203.0.113.1 mtu 1300", "route add 2001:db8:1::/64 via 2001:db8::1 mtu 1320",
	)
	for endpoint, want := range map[string]int{
		"203.0.113.9:51820": 1400, "198.51.100.1:51820": 1300, "[::ffff:198.51.100.1]:51820": 1300,
		"[2001:db8::9]:51820": 1400, "[2001:db8:1::9]:51820": 1320,
		"192.0.2.1:51820": 0, "[2001:db8:2::9]:51820": 0, // no route
	} {
		got, err := PathMTU(netip.MustParseAddrPort(endpoint))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("PathMTU(%s) = %d, %v; want %d", endpoint, got, err, want)
		}
	}
}
