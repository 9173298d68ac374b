// Package host brings the machine into the state that a node wants and observes
// what the node has to know of it: routes, forwarding, uplinks, interface
// classes, and what stands in the way of a start. Wanted state comes in as
// values, a pure function finds the difference, a thin applier makes it.
package host

import (
	"net/netip"
	"strings"
)

// Protocol marks the routes that are ours, in the protocol field where daemons
// sign what they install (rtnetlink(7); `ip route show proto 86`). No entry of
// iproute2's rt_protos has this number.
const Protocol = 86

// What rtnetlink(7) calls them; defined here so that pure code builds anywhere.
const (
	protoKernel = 2   // a route that came with an address
	typeUnicast = 1   // a route that packets leave by
	tableMain   = 254 // the table of `ip route show`

	typeUnreachable = 7 // a route that packets end at, and their sender is told
)

// A Network is the machine's links and routes, as observed at one instant.
type Network struct {
	Links  []LinkInfo
	Routes []RouteInfo // of the main table and of those that a rule names, not of the local table
	Policy bool        // there are rules of routing (ip-rule(8)) besides the kernel's own
}

// A LinkInfo is one network interface.
type LinkInfo struct {
	Index        int
	Name         string
	Kind         string // in netlink's words: device, veth, bridge, tuntap, wireguard, ...
	Master       int    // index of the bridge or bond that it is a port of; 0 if none
	MTU          int    // bytes
	Up           bool   // set up, and has a carrier
	Loopback     bool
	DefaultRoute bool       // a default route of the main table leaves by it
	Addrs        []AddrInfo // in the kernel's order
}

// An AddrInfo is one address of an interface.
type AddrInfo struct {
	Prefix    netip.Prefix // the address itself, with the length of its subnet
	Secondary bool         // IPv4: not the first of its subnet; IPv6: temporary (RFC 8981)
	Unusable  bool         // IPv6: deprecated, or not yet or never found to be unique
}

// A RouteInfo is one route; one with several next hops is several of them.
type RouteInfo struct {
	Dst      netip.Prefix // a default route has no bits
	Gateway  netip.Addr   // zero if none
	Src      netip.Addr   // preferred source; zero if none
	Link     int          // index; 0 if none
	Type     int          // RTN_*
	Protocol int          // RTPROT_*; Protocol for ours
	Table    int
	Metric   int
	MTU      int // bytes; 0: the link's
}

// link returns the link named name.
func (n Network) link(name string) (LinkInfo, bool) {
	for _, l := range n.Links {
		if l.Name == name {
			return l, true
		}
	}
	return LinkInfo{}, false
}

// byIndex returns the link with the given index.
func (n Network) byIndex(index int) (LinkInfo, bool) {
	for _, l := range n.Links {
		if l.Index == index {
			return l, true
		}
	}
	return LinkInfo{}, false
}

// localBridge reports whether l is a bridge that leads nowhere but to containers
// and virtual machines here. One with a default route, or with a port that may
// be a wire, is part of somebody's network.
func localBridge(l LinkInfo, links []LinkInfo) bool {
	if l.Kind != "bridge" || l.DefaultRoute {
		return false
	}
	for _, port := range links {
		if port.Master != l.Index {
			continue
		}
		switch port.Kind {
		case "veth", "tuntap", "netkit", "dummy":
		default:
			return false
		}
	}
	return true
}

// leadsToUnderlay reports whether other machines may reach this one by l
// without an overlay's help.
func leadsToUnderlay(l LinkInfo, links []LinkInfo) bool {
	switch l.Kind {
	case "tuntap", "wireguard", "vxlan", "geneve", "gre", "ipip", "sit", "ip6tnl", "vti", "xfrm":
		return false
	case "bridge":
		return l.Up && !localBridge(l, links)
	}
	if !l.Up || l.Loopback {
		return false
	}
	// By name, what other overlays and engines build of ordinary kinds.
	for _, prefix := range []string{"wg", "tailscale", "zt", "docker", "virbr", "cni", "podman", "flannel", "cilium", "cali", "kube-"} {
		if strings.HasPrefix(l.Name, prefix) {
			return false
		}
	}
	for _, master := range links { // a port's addresses are its bridge's affair
		if master.Index == l.Master && master.Kind == "bridge" {
			return false
		}
	}
	return true
}
