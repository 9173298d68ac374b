package host

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

const (
	maxEndpoints = 12 // candidates that one server publishes
	perLink      = 3  // of one address family on one link, so that aliases crowd out nothing

	minMTU     = 1280 // IPv6 needs it (RFC 8200, section 5)
	maxMTU     = 8921 // of what common jumbo frames (9001) leave
	defaultMTU = 1500 // of an uplink, where none is known

	overhead4 = 60 // IPv4 20, UDP 8, WireGuard 32
	overhead6 = 80 // IPv6 40, UDP 8, WireGuard 32
)

// An Uplink is an interface that leads to the underlay: it holds a default
// route, or an address that Endpoints names.
type Uplink struct {
	Name    string
	Index   int
	MTU     int  // bytes
	Default bool // holds a default route
	Addrs   []netip.Addr
}

// Uplinks returns n's uplinks, those with a default route first. Those named own are
// the mesh's, and loopback leads nowhere, whatever routes somebody gives them.
func (n Network) Uplinks(own ...string) []Uplink {
	var ups []Uplink
	for _, l := range n.Links {
		if l.Loopback || slices.Contains(own, l.Name) || !l.DefaultRoute && len(candidates(l, n.Links, nil)) == 0 {
			continue
		}
		u := Uplink{Name: l.Name, Index: l.Index, MTU: l.MTU, Default: l.DefaultRoute}
		for _, a := range l.Addrs {
			u.Addrs = append(u.Addrs, a.Prefix.Addr())
		}
		ups = append(ups, u)
	}
	slices.SortStableFunc(ups, func(a, b Uplink) int { return first(a.Default, b.Default) })
	return ups
}

// Uplinks observes the machine's uplinks, but own.
func Uplinks(own ...string) ([]Uplink, error) {
	n, err := ReadNetwork()
	if err != nil {
		return nil, err
	}
	return n.Uplinks(own...), nil
}

// Links observes the machine's interfaces.
func Links() ([]LinkInfo, error) {
	n, err := ReadNetwork()
	return n.Links, err
}

// MTU returns the tunnel's MTU: what the smallest uplink leaves for it, or
// explicit unless that is 0. With ipv6Candidates a packet may have to travel in
// IPv6. IPv6 inside needs 1280 bytes: on an uplink that leaves less, WireGuard's
// datagrams are fragmented, but for what PeerMTU keeps smaller. An uplink below
// 1280 itself is an error, which says so.
func MTU(uplinks []Uplink, ipv6Candidates bool, explicit int) (int, error) {
	if explicit != 0 {
		if explicit < minMTU || explicit > maxMTU {
			return 0, fmt.Errorf("mtu %d: expected %d (the least that IPv6 works with) to %d, or 0 for what the uplinks allow", explicit, minMTU, maxMTU)
		}
		return explicit, nil
	}
	u := smallest(uplinks)
	if u.MTU < minMTU {
		return 0, fmt.Errorf("mtu of uplink %s is %d: expected at least %d, the least that IPv6 works with: run `ip link set %[1]s mtu %[3]d`, or more where its network carries more, or have --mtu say what to use",
			u.Name, u.MTU, minMTU)
	}
	return min(max(u.MTU-overhead(ipv6Candidates), minMTU), maxMTU), nil
}

// SmallestMTU returns the MTU of the smallest uplink.
func SmallestMTU(uplinks []Uplink) int { return smallest(uplinks).MTU }

func smallest(uplinks []Uplink) Uplink {
	if len(uplinks) == 0 {
		return Uplink{Name: "unknown", MTU: defaultMTU}
	}
	return slices.MinFunc(uplinks, func(a, b Uplink) int { return cmp.Compare(a.MTU, b.MTU) })
}

// overhead is what WireGuard and the underlay add to a packet.
func overhead(ipv6 bool) int {
	if ipv6 {
		return overhead6
	}
	return overhead4
}

// Endpoints returns the endpoints under which other servers might reach port on
// this machine, the best first, at most 12: public addresses before private
// ones (a peer on the same network finds those by their prefix, one elsewhere
// would waste its first tries on them), links with a default route before
// others, IPv4 before IPv6. Addresses inside mesh are none; the prefix
// fdcc::/16 need not be named.
func Endpoints(port uint16, links []LinkInfo, mesh ...netip.Prefix) []netip.AddrPort {
	type candidate struct {
		netip.Addr
		byDefault, secondary bool
	}
	var all []candidate
	for _, l := range links {
		for _, a := range candidates(l, links, mesh) {
			all = append(all, candidate{a.Prefix.Addr(), l.DefaultRoute, a.Secondary})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(
			first(!a.IsPrivate() && !shared.Contains(a.Addr), !b.IsPrivate() && !shared.Contains(b.Addr)),
			first(a.byDefault, b.byDefault),
			first(a.Is4(), b.Is4()),
			first(!a.secondary, !b.secondary),
			a.Compare(b.Addr),
		)
	})
	var out []netip.AddrPort
	for _, c := range all {
		if ep := netip.AddrPortFrom(c.Addr, port); len(out) < maxEndpoints && !slices.Contains(out, ep) {
			out = append(out, ep)
		}
	}
	return out
}

var (
	shared     = netip.MustParsePrefix("100.64.0.0/10") // carrier-grade NAT (RFC 6598)
	management = netip.MustParsePrefix("fdcc::/16")     // every node's management address
)

// candidates returns the addresses of l that Endpoints chooses from: at most
// perLink of each family, in the order of their preference.
func candidates(l LinkInfo, links []LinkInfo, mesh []netip.Prefix) []AddrInfo {
	if !leadsToUnderlay(l, links) {
		return nil
	}
	addrs := slices.Clone(l.Addrs)
	slices.SortStableFunc(addrs, func(a, b AddrInfo) int { return first(!a.Secondary, !b.Secondary) })
	count := map[bool]int{}
	var out []AddrInfo
	for _, a := range addrs {
		addr := a.Prefix.Addr()
		inside := func(p netip.Prefix) bool { return p.Contains(addr) }
		if !addr.IsGlobalUnicast() || a.Unusable || addr.Is6() && a.Secondary || inside(management) || slices.ContainsFunc(mesh, inside) {
			continue
		}
		if count[addr.Is4()]++; count[addr.Is4()] <= perLink {
			out = append(out, a)
		}
	}
	return out
}

// first orders what is true before what is not.
func first(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}
