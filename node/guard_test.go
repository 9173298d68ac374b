package node

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/acidtib/jiji-node/node/host"
)

func TestBridgeOf(t *testing.T) {
	subnet := netip.MustParsePrefix("10.210.1.0/24")
	link := func(name, kind, addr string) host.LinkInfo {
		return host.LinkInfo{Name: name, Kind: kind, Addrs: []host.AddrInfo{{Prefix: netip.MustParsePrefix(addr)}}}
	}
	for _, c := range []struct {
		name  string
		links []host.LinkInfo
		want  string
	}{
		{"none yet", []host.LinkInfo{link("docker0", "bridge", "172.17.0.1/16"), link("jiji0", "tuntap", "10.210.1.1/32")}, "jiji-br0"},
		{"ours", []host.LinkInfo{link("jiji-br0", "bridge", "10.210.1.1/24")}, "jiji-br0"},
		{"the predecessor's", []host.LinkInfo{link("docker0", "bridge", "172.17.0.1/16"), link("br-0123456789ab", "bridge", "10.210.1.1/24")}, "br-0123456789ab"},
		{"another's address", []host.LinkInfo{link("br-0123456789ab", "bridge", "10.210.1.2/24")}, "jiji-br0"},
	} {
		if got := bridgeOf(c.links, subnet); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// An uplink that goes down stays one until it is gone: a cable that comes and goes is no
// reason to write the rules anew each time.
func TestUplinkNames(t *testing.T) {
	up := func(names ...string) (ups []host.Uplink, links []host.LinkInfo) {
		for _, name := range names {
			ups, links = append(ups, host.Uplink{Name: name}), append(links, host.LinkInfo{Name: name, Up: true})
		}
		return ups, links
	}
	check := func(what string, ups []host.Uplink, links []host.LinkInfo, before []string, want ...string) {
		t.Helper()
		if got := uplinkNames(ups, links, before); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	ups, links := up("eth1", "eth0")
	check("at first", ups, links, nil, "eth0", "eth1")
	down := []host.LinkInfo{{Name: "eth0", Up: true}, {Name: "eth1"}, {Name: "other"}}
	check("one is down", ups[1:], down, []string{"eth0", "eth1"}, "eth0", "eth1")
	check("one is down, and has its default route still", ups, down, []string{"eth0", "eth1"}, "eth0", "eth1")
	check("one is renamed or gone", ups[1:], links[1:], []string{"eth0", "eth1"}, "eth0")
	check("one is up and no uplink any more", ups[1:], links, []string{"eth0", "eth1"}, "eth0")
}
