package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply brings the machine to w and returns what it had to change: nothing, if
// it was so already. It goes on after a fault and reports all of them; what it
// could not do, the next call tries again.
func Apply(w Wanted) ([]Change, error) {
	n, err := ReadNetwork()
	if err != nil {
		return nil, err
	}
	var changes []Change
	steps, err := diff(n, w)
	for _, s := range steps {
		if serr := s.do(); serr != nil {
			err = errors.Join(err, fmt.Errorf("%s route %s: %w", s.verb, n.describe(s.route), serr))
			continue
		}
		changes = append(changes, n.change(s))
	}
	if w.Forwarding {
		more, ferr := forward("/", w.Link)
		changes, err = append(changes, more...), errors.Join(err, ferr)
	}
	return changes, err
}

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
		Scope:     netlink.SCOPE_LINK,
	}
	if s.route.Src != (netip.Addr{}) {
		r.Src = s.route.Src.AsSlice()
	}
	switch s.verb {
	case add:
		return netlink.RouteAdd(&r)
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
