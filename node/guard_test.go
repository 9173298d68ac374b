package node

import (
	"net/netip"
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
