package host

import (
	"errors"
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
