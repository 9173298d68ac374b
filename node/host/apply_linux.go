package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// do makes the step. What is added never replaces what appeared meanwhile.
func (s step) do() error {
	r := netlink.Route{
		Dst:       &net.IPNet{IP: s.route.Dst.Addr().AsSlice(), Mask: net.CIDRMask(s.route.Dst.Bits(), s.route.Dst.Addr().BitLen())},
		LinkIndex: s.route.Link,
		Type:      s.route.Type,
		Protocol:  netlink.RouteProtocol(s.route.Protocol),
		Table:     s.route.Table,
		Priority:  s.route.Metric,
		MTU:       s.route.MTU,
	}
	if s.route.Link != 0 {
		r.Scope = netlink.SCOPE_LINK
	}
	if s.route.Src != (netip.Addr{}) {
		r.Src = s.route.Src.AsSlice()
	}
	switch s.verb {
	case add:
		err := netlink.RouteAdd(&r)
		if s.route.Type == typeUnreachable && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)) {
			return nil // a kernel without this family lets nothing out by it
		}
		return err
	case replace:
		return netlink.RouteReplace(&r)
	default:
		err := netlink.RouteDel(&r)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
			return nil // gone already
		}
		return err
	}
}

// steered names the packets that rules of routing lead elsewhere than w's routes do,
// nil if there are none.
func (n Network) steered(w Wanted) error {
	link, ok := n.link(w.Link)
	if !n.Policy || !ok {
		return nil
	}
	var (
		first string
		count int
	)
	for _, r := range w.Routes {
		options := &netlink.RouteGetOptions{}
		if r.Src.IsValid() {
			options.SrcAddr = r.Src.AsSlice()
		}
		got, err := netlink.RouteGetWithOptions(r.Dst.Addr().AsSlice(), options)
		if err != nil || len(got) == 0 || got[0].LinkIndex == link.Index {
			continue // without any route it is not a rule's fault
		}
		if count++; count == 1 {
			other, _ := n.byIndex(got[0].LinkIndex)
			first = fmt.Sprintf("packets for %v leave by %s and not by %s, by table %d", r.Dst, other.Name, w.Link, got[0].Table)
		}
	}
	if count == 0 {
		return nil
	}
	if count > 1 {
		first += fmt.Sprintf(", and so do those for %d other prefixes", count-1)
	}
	return errors.New(first + ": take away the rule that leads there, which `ip rule` shows")
}
