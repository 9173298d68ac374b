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

// Uplinks returns n's uplinks, those with a default route first.
func (n Network) Uplinks() []Uplink {
	var ups []Uplink
	for _, l := range n.Links {
		if !l.DefaultRoute && len(candidates(l, n.Links, nil)) == 0 {
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

// Uplinks observes the machine's uplinks.
func Uplinks() ([]Uplink, error) {
	n, err := ReadNetwork()
	if err != nil {
		return nil, err
	}
	return n.Uplinks(), nil
}

// Links observes the machine's interfaces.
func Links() ([]LinkInfo, error) {
	n, err := ReadNetwork()
	return n.Links, err
}

// MTU returns the tunnel's MTU: what the smallest uplink leaves for it, or
// explicit unless that is 0. With ipv6Candidates a packet may have to travel in IPv6.
// The error says why the result would be too small.
func MTU(uplinks []Uplink, ipv6Candidates bool, explicit int) (int, error) {
	if explicit != 0 {
		if explicit < minMTU || explicit > maxMTU {
			return 0, fmt.Errorf("mtu %d: expected %d (the least that IPv6 works with) to %d, or 0 for what the uplinks allow", explicit, minMTU, maxMTU)
		}
		return explicit, nil
	}
	overhead, outer := overhead4, "IPv4"
	if ipv6Candidates {
		overhead, outer = overhead6, "IPv6"
	}
	smallest := Uplink{Name: "unknown", MTU: defaultMTU}
	for i, u := range uplinks {
		if i == 0 || u.MTU < smallest.MTU {
			smallest = u
		}
	}
	mtu := smallest.MTU - overhead
	if mtu < minMTU {
		return 0, fmt.Errorf("mtu of uplink %s is %d, which leaves %d bytes for a packet in WireGuard over %s: expected at least %d: set the uplink's to %d or more",
			smallest.Name, smallest.MTU, mtu, outer, minMTU, minMTU+overhead)
	}
	return min(mtu, maxMTU), nil
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
