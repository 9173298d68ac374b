package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrs(list ...string) (out []AddrInfo) {
	for _, s := range list {
		out = append(out, AddrInfo{Prefix: pfx(s)})
	}
	return out
}

func TestEndpoints(t *testing.T) {
	many := LinkInfo{Index: 2, Name: "eth0", Kind: "device", Up: true, DefaultRoute: true}
	for i := range 20 {
		many.Addrs = append(many.Addrs, AddrInfo{Prefix: pfx(fmt.Sprintf("203.0.113.%d/24", 40-i)), Secondary: i > 0})
	}
	for _, c := range []struct {
		name  string
		links []LinkInfo
		mesh  []netip.Prefix
		want  string
	}{
		{"none", nil, nil, ""},
		{"a server with a public and a private link", []LinkInfo{
			{Index: 1, Name: "lo", Kind: "device", Up: true, Loopback: true, Addrs: addrs("127.0.0.1/8", "::1/128", "203.0.113.99/32")},
			{Index: 3, Name: "ens10", Kind: "device", Up: true, Addrs: addrs("10.0.0.3/32", "fe80::3/64")},
			{Index: 2, Name: "eth0", Kind: "device", Up: true, DefaultRoute: true, Addrs: addrs("203.0.113.5/32", "2001:db8::5/64", "fe80::2/64", "fd00::5/64")},
		}, nil, "203.0.113.5 2001:db8::5 fd00::5 10.0.0.3"},
		{"the default route's link first", []LinkInfo{
			{Index: 2, Name: "eth0", Kind: "veth", Up: true, Addrs: addrs("192.168.1.5/24")},
			{Index: 3, Name: "eth1", Kind: "veth", Up: true, DefaultRoute: true, Addrs: addrs("192.168.9.5/24")},
		}, nil, "192.168.9.5 192.168.1.5"},
		{"NAT of a carrier is not public", []LinkInfo{
			{Index: 2, Name: "wwan0", Kind: "device", Up: true, DefaultRoute: true, Addrs: addrs("100.70.1.1/30")},
			{Index: 3, Name: "eth1", Kind: "device", Up: true, Addrs: addrs("2001:db8::9/64")},
		}, nil, "2001:db8::9 100.70.1.1"},
		{"addresses that come and go", []LinkInfo{{Index: 2, Name: "eth0", Kind: "device", Up: true, Addrs: []AddrInfo{
			{Prefix: pfx("2001:db8::1/64"), Secondary: true}, {Prefix: pfx("2001:db8::2/64"), Unusable: true}, {Prefix: pfx("2001:db8::3/64")},
		}}}, nil, "2001:db8::3"},
		{"down", []LinkInfo{{Index: 2, Name: "eth0", Kind: "device", Addrs: addrs("203.0.113.5/24")}}, nil, ""},
		{"overlays and engines", []LinkInfo{
			{Index: 2, Name: "wg0", Kind: "wireguard", Up: true, Addrs: addrs("10.1.0.1/24")},
			{Index: 3, Name: "jiji0", Kind: "tuntap", Up: true, Addrs: addrs("10.2.0.1/32")},
			{Index: 4, Name: "tailscale0", Kind: "tuntap", Up: true, Addrs: addrs("100.101.102.103/32")},
			{Index: 5, Name: "ztabcdef12", Kind: "tuntap", Up: true, Addrs: addrs("10.3.0.1/24")},
			{Index: 6, Name: "docker0", Kind: "bridge", Up: true, Addrs: addrs("172.17.0.1/16")},
			{Index: 7, Name: "br-0123456789ab", Kind: "bridge", Up: true, Addrs: addrs("172.18.0.1/16")},
			{Index: 8, Name: "veth1", Kind: "veth", Up: true, Master: 7, Addrs: addrs("172.18.0.9/16")},
			{Index: 9, Name: "virbr0", Kind: "bridge", Up: true, Addrs: addrs("192.168.122.1/24")},
			{Index: 10, Name: "vnet0", Kind: "tuntap", Up: true, Master: 9},
			{Index: 11, Name: "flannel.1", Kind: "vxlan", Up: true, Addrs: addrs("10.42.0.0/32")},
			{Index: 12, Name: "cilium_host", Kind: "veth", Up: true, Addrs: addrs("10.0.0.7/32")},
			{Index: 13, Name: "kube-ipvs0", Kind: "dummy", Up: true, Addrs: addrs("10.96.0.1/32")},
		}, nil, ""},
		{"a bridge that is the uplink", []LinkInfo{
			{Index: 2, Name: "eno1", Kind: "device", Up: true, Master: 3},
			{Index: 3, Name: "vmbr0", Kind: "bridge", Up: true, DefaultRoute: true, Addrs: addrs("203.0.113.5/24")},
			{Index: 4, Name: "eno2", Kind: "device", Up: true, Master: 5},
			{Index: 5, Name: "vmbr1", Kind: "bridge", Up: true, Addrs: addrs("192.168.50.5/24")},
			{Index: 6, Name: "bond0", Kind: "bond", Up: true, Addrs: addrs("192.168.60.5/24")},
		}, nil, "203.0.113.5 192.168.50.5 192.168.60.5"},
		{"mesh addresses", []LinkInfo{{Index: 2, Name: "eth0", Kind: "device", Up: true, Addrs: addrs("10.210.1.1/24", "fdcc::1/128", "10.211.1.1/24")}},
			[]netip.Prefix{pfx("10.210.0.0/16")}, "10.211.1.1"},
		{"aliases", []LinkInfo{many, {Index: 3, Name: "eth1", Kind: "device", Up: true, Addrs: addrs("10.0.0.1/24", "203.0.113.40/24")}}, nil,
			"203.0.113.40 203.0.113.38 203.0.113.39 10.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, ep := range Endpoints(51820, c.links, c.mesh...) {
				if ep.Port() != 51820 {
					t.Errorf("port of %v", ep)
				}
				got = append(got, ep.Addr().String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			reversed := slices.Clone(c.links)
			slices.Reverse(reversed)
			if !slices.Equal(Endpoints(51820, reversed, c.mesh...), Endpoints(51820, c.links, c.mesh...)) {
				t.Error("depends on the order of the links")
			}
		})
	}

	var links []LinkInfo
	for i := range 20 {
		links = append(links, LinkInfo{Index: i + 2, Name: fmt.Sprintf("eth%d", i), Kind: "device", Up: true, Addrs: addrs(fmt.Sprintf("192.168.%d.1/24", i))})
	}
	if got := len(Endpoints(1, links)); got != maxEndpoints {
		t.Errorf("%d endpoints, want %d", got, maxEndpoints)
	}
}

func TestUplinks(t *testing.T) {
	n := Network{Links: []LinkInfo{
		{Index: 1, Name: "lo", Kind: "device", Up: true, Loopback: true, MTU: 65536, Addrs: addrs("127.0.0.1/8")},
		{Index: 2, Name: "eth1", Kind: "device", Up: true, MTU: 1400, Addrs: addrs("10.0.0.3/24")},
		{Index: 3, Name: "eth0", Kind: "device", Up: true, MTU: 1500, DefaultRoute: true, Addrs: addrs("203.0.113.5/24", "fe80::1/64")},
		{Index: 4, Name: "docker0", Kind: "bridge", Up: true, MTU: 1500, Addrs: addrs("172.17.0.1/16")},
		{Index: 5, Name: "jiji0", Kind: "tuntap", Up: true, MTU: 1340, Addrs: addrs("10.210.1.1/32")},
		{Index: 6, Name: "eth2", Kind: "device", Up: true, MTU: 1280, Addrs: addrs("fe80::2/64")},
		{Index: 7, Name: "tun0", Kind: "tuntap", Up: true, MTU: 1420, DefaultRoute: true}, // a VPN that carries everything
	}}
	var got []string
	for _, u := range n.Uplinks() {
		got = append(got, fmt.Sprintf("%s %d %d %v %v", u.Name, u.Index, u.MTU, u.Default, u.Addrs))
	}
	want := []string{"eth0 3 1500 true [203.0.113.5 fe80::1]", "tun0 7 1420 true []", "eth1 2 1400 false [10.0.0.3]"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	n.Links[0].DefaultRoute, n.Links[4].DefaultRoute = true, true // of somebody who was unlucky
	if all := n.Uplinks("jiji0"); len(all) != 3 || all[0].Name != "eth0" || all[1].Name != "tun0" || all[2].Name != "eth1" {
		t.Errorf("with default routes of loopback and the mesh: %v", all)
	}
}

func TestMTU(t *testing.T) {
	up := func(mtus ...int) (ups []Uplink) {
		for i, m := range mtus {
			ups = append(ups, Uplink{Name: fmt.Sprintf("eth%d", i), MTU: m})
		}
		return ups
	}
	for _, c := range []struct {
		ups      []Uplink
		v6       bool
		explicit int
		want     int
		err      string
	}{
		{up(1500), false, 0, 1440, ""},
		{up(1500), true, 0, 1420, ""},
		{up(9000, 1400), false, 0, 1340, ""},
		{up(1400, 9000), true, 0, 1320, ""},
		{up(9000), false, 0, 8921, ""},
		{up(9000), true, 0, 8920, ""},
		{up(9001), true, 0, 8921, ""},
		{up(65535), false, 0, 8921, ""},
		{up(1340), false, 0, 1280, ""},
		{up(1360), true, 0, 1280, ""},
		{nil, false, 0, 1440, ""},
		{nil, true, 0, 1420, ""},
		{up(1500, 1339), false, 0, 1280, ""}, // larger packets than it carries at once
		{up(1300), true, 0, 1280, ""},
		{up(1280), true, 0, 1280, ""},
		{up(1500, 1279), false, 0, 0, "mtu of uplink eth1 is 1279: expected at least 1280, the least that IPv6 works with: run `ip link set eth1 mtu 1280`"},
		{up(1279), true, 0, 0, "mtu of uplink eth0 is 1279"},
		{up(1200), false, 1280, 1280, ""},
		{up(1300), true, 1280, 1280, ""},
		{up(1500), true, 8921, 8921, ""},
		{up(1500), true, 1279, 0, "mtu 1279: expected 1280"},
		{up(1500), true, 8922, 0, "mtu 8922: expected 1280"},
		{up(1500), true, -1, 0, "mtu -1"},
	} {
		got, err := MTU(c.ups, c.v6, c.explicit)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("MTU(%v, %v, %d) = %d, %v; want %d, %s", c.ups, c.v6, c.explicit, got, err, c.want, c.err)
		}
	}
}

func TestPeerMTU(t *testing.T) {
	for _, c := range []struct {
		tunnel, path int
		ipv6         bool
		want         int
	}{
		{1440, 1500, false, 0}, {1420, 1500, true, 0}, {1420, 1500, false, 0}, {1440, 9000, false, 0}, {8921, 8981, false, 0},
		{1440, 1500, true, 1408}, {1440, 1499, false, 1424}, {1440, 1492, false, 1424}, {1440, 1420, false, 1360},
		{1280, 1300, false, 1232}, {1280, 1300, true, 1216}, {1280, 1340, false, 0}, {1280, 1339, false, 1264},
		{8920, 1500, true, 1408}, {1280, 636, false, 576}, {1280, 600, false, 576}, {1280, 0, true, 576},
	} {
		got := PeerMTU(c.tunnel, c.path, c.ipv6)
		if got != c.want {
			t.Errorf("PeerMTU(%d, %d, %v) = %d, want %d", c.tunnel, c.path, c.ipv6, got, c.want)
		}
		padded := min((got+15)/16*16, c.tunnel)
		if got == 0 {
			padded = c.tunnel
		}
		if c.path >= 656 && padded+map[bool]int{false: 60, true: 80}[c.ipv6] > c.path {
			t.Errorf("PeerMTU(%d, %d, %v) = %d does not fit", c.tunnel, c.path, c.ipv6, got)
		}
	}
}

func TestClasses(t *testing.T) {
	links := []LinkInfo{
		{Index: 1, Name: "lo", Kind: "device", Loopback: true},
		{Index: 2, Name: "eth0", Kind: "device", DefaultRoute: true},
		{Index: 3, Name: "eth1", Kind: "device"},
		{Index: 4, Name: "docker0", Kind: "bridge"},
		{Index: 5, Name: "veth1", Kind: "veth", Master: 4},
		{Index: 6, Name: "vmbr0", Kind: "bridge", DefaultRoute: true},
		{Index: 7, Name: "vmbr1", Kind: "bridge"},
		{Index: 8, Name: "eno2.7", Kind: "vlan", Master: 7},
		{Index: 9, Name: "jiji0", Kind: "tuntap"},
		{Index: 10, Name: "tun0", Kind: "tuntap"},
		{Index: 11, Name: "jiji-br0", Kind: "bridge"}, // no container yet
	}
	readings := 0
	c := &Classes{link: "jiji0", read: func() (Network, error) {
		readings++
		return Network{Links: links}, nil
	}}
	c.local.Store(&map[int]bool{})
	var got []string
	for _, l := range links {
		if c.Answer(l.Index) {
			got = append(got, l.Name)
		}
	}
	if want := []string{"lo", "docker0", "jiji0", "jiji-br0"}; !slices.Equal(got, want) {
		t.Errorf("answered on %v, want %v", got, want)
	}
	for _, unknown := range []int{0, -1, 12} {
		if c.Answer(unknown) {
			t.Errorf("answered on unknown interface %d", unknown)
		}
	}
	if readings != 2 { // for lo, and for 12, which may have come since
		t.Errorf("%d readings, want 2", readings)
	}
	links = append(links, LinkInfo{Index: 12, Name: "docker1", Kind: "bridge"})
	for range 2 {
		if !c.Answer(12) || readings != 3 {
			t.Errorf("a bridge that was made a moment ago is not answered, after %d readings", readings)
		}
	}
}
