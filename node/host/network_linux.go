package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ReadNetwork observes the machine's links and routes.
func ReadNetwork() (Network, error) {
	links, err := complete(netlink.LinkList)
	if err != nil {
		return Network{}, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := complete(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Network{}, fmt.Errorf("list addresses: %w", err)
	}
	var n Network
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, policy, err := readRoutes(family)
		if err != nil {
			return Network{}, err
		}
		n.Routes, n.Policy = append(n.Routes, routes...), n.Policy || policy
	}
	for _, l := range links {
		n.Links = append(n.Links, linkInfo(l, addrs, n.Routes))
	}
	return n, nil
}

func linkInfo(l netlink.Link, addrs []netlink.Addr, routes []RouteInfo) LinkInfo {
	a := l.Attrs()
	info := LinkInfo{
		Index:    a.Index,
		Name:     a.Name,
		Kind:     l.Type(),
		Master:   a.MasterIndex,
		MTU:      a.MTU,
		Up:       a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
		Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
	}
	for _, addr := range addrs {
		if p := prefix(addr.IPNet); addr.LinkIndex == a.Index && p.IsValid() {
			info.Addrs = append(info.Addrs, AddrInfo{
				Prefix:    p,
				Secondary: addr.Flags&unix.IFA_F_SECONDARY != 0,
				Unusable:  addr.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
			})
		}
	}
	for _, r := range routes {
		if r.Link == a.Index && r.Dst.Bits() == 0 && r.Type == typeUnicast && r.Table == tableMain {
			info.DefaultRoute = true
		}
	}
	return info
}

// readRoutes lists the routes of the main table and of those that a rule names, and
// says whether there are rules besides the kernel's own.
func readRoutes(family int) (out []RouteInfo, policy bool, err error) {
	rules, err := complete(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		rules, err = nil, nil // a kernel without policy routing or without this family
	}
	if err != nil {
		return nil, false, fmt.Errorf("list routing rules: %w", err)
	}
	tables := map[int]bool{tableMain: true}
	for _, r := range rules {
		tables[r.Table] = true
		policy = policy || !slices.Contains([]int{unix.RT_TABLE_LOCAL, tableMain, unix.RT_TABLE_DEFAULT}, r.Table)
	}
	delete(tables, unix.RT_TABLE_LOCAL)

	routes, err := complete(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if !tables[r.Table] {
			continue
		}
		info := RouteInfo{
			Dst:      prefix(r.Dst),
			Gateway:  addr(r.Gw),
			Src:      addr(r.Src),
			Link:     r.LinkIndex,
			Type:     r.Type,
			Protocol: int(r.Protocol),
			Table:    r.Table,
			Metric:   r.Priority,
			MTU:      r.MTU,
		}
		if r.Dst == nil {
			info.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if family == netlink.FAMILY_V6 {
				info.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		if len(r.MultiPath) == 0 {
			out = append(out, info)
		}
		for _, hop := range r.MultiPath {
			info.Link, info.Gateway = hop.LinkIndex, addr(hop.Gw)
			out = append(out, info)
		}
	}
	return out, policy, nil
}

// complete lists again while the kernel says that the list changed meanwhile.
// On a machine that never rests the last answer has to do: a change brings an
// event, and that another reading.
func complete[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil
}

// addr returns ip without its IPv4-in-IPv6 form; zero if there is none.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}
