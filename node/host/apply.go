package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Wanted is the state of the machine that a node needs.
type Wanted struct {
	Link       string         // the tunnel's; "": there is none yet
	Closed     []netip.Prefix // where packets go by Link or nowhere; host bits zero
	Subnet     netip.Prefix   // this server's own: routes inside it are its containers'
	Routes     []Route        // by Link
	Forwarding bool           // IPv4 packets pass between the tunnel and the containers
}

// A Route is one wanted route over the tunnel.
type Route struct {
	Dst netip.Prefix // required, host bits zero
	Src netip.Addr   // preferred source; zero: the kernel's choice
	MTU int          // bytes; 0: the link's
}

// A Change is one thing that was done to the machine.
type Change struct {
	What   string // for one log line: "route 10.210.2.0/24 dev jiji0 added"
	Reason Reason
}

// ErrNoLink is wrapped by what Apply returns when the tunnel's interface does
// not exist, at least not by its name.
var ErrNoLink = errors.New("interface does not exist")

type verb int

const (
	add verb = iota
	replace
	remove
)

func (v verb) String() string { return [...]string{"add", "replace", "remove"}[v] }

// A step is one change of the routes.
type step struct {
	verb  verb
	route RouteInfo
	old   RouteInfo // replace: what is there
	note  string    // added to what is logged
}

// thing is what the step is about, the same whenever that is the same.
func (s step) thing() any {
	if s.verb == remove {
		return struct{ unwanted RouteInfo }{s.route}
	}
	return s.route
}

// closedMetric puts what is closed behind every route of the same prefix: a
// packet gets there when no tunnel takes it.
const closedMetric = 2_000_000_000

// diff returns the steps that bring n's routes to w, none of which takes away a
// route before those that are missing are there, the routes that are there as
// wanted, and the faults it cannot mend.
// What is closed comes first. Routes that are not ours are left alone, except
// on the very prefix that is wanted and on our own link.
func diff(n Network, w Wanted) (steps []step, there []RouteInfo, err error) {
	steps, there, err = n.diffClosed(w)
	if w.Link == "" {
		return steps, there, err
	}
	link, ok := n.link(w.Link)
	if !ok {
		return steps, there, errors.Join(err, fmt.Errorf("set routes: %s: %w", w.Link, ErrNoLink))
	}
	more, also, lerr := n.diffLink(w, link)
	return append(steps, more...), append(there, also...), errors.Join(err, lerr)
}

// diffClosed is diff for w.Closed. A route inside that leads elsewhere is a
// fault: its packets leave in the clear.
func (n Network) diffClosed(w Wanted) (steps []step, there []RouteInfo, err error) {
	link, _ := n.link(w.Link)
	var stale []step
	for _, closed := range w.Closed {
		want := RouteInfo{Dst: closed, Type: typeUnreachable, Protocol: Protocol, Table: tableMain, Metric: closedMetric}
		found := false
		for _, have := range n.Routes {
			switch {
			case have.Table != tableMain:
			case have.Protocol == Protocol && have.Type == typeUnreachable:
				have.Link = 0 // of IPv6 the kernel says lo
				if have == want {
					found = true
				} else if have.Dst == closed { // another version's metric
					stale = append(stale, step{verb: remove, route: have})
				}
			case have.Type != typeUnicast || have.Link == link.Index || have.Protocol == Protocol:
			case have.Dst.Bits() < closed.Bits() || !closed.Contains(have.Dst.Addr()) || inside(have.Dst, w.Subnet) || wanted(have.Dst, w.Routes):
			default:
				err = errors.Join(err, fmt.Errorf("route %s is not ours and leads packets for the mesh out of it: take it away, or choose another cluster CIDR", n.describe(have)))
			}
		}
		if found {
			there = append(there, want)
		} else {
			steps = append(steps, step{verb: add, route: want})
		}
	}
	return append(steps, stale...), there, err
}

// inside reports whether all of p is in outer, which may be zero.
func inside(p, outer netip.Prefix) bool {
	return outer.IsValid() && p.Bits() >= outer.Bits() && outer.Contains(p.Addr())
}

func wanted(dst netip.Prefix, routes []Route) bool {
	return slices.ContainsFunc(routes, func(r Route) bool { return r.Dst == dst })
}

// diffLink is diff for w.Routes.
func (n Network) diffLink(w Wanted, link LinkInfo) (steps []step, there []RouteInfo, err error) {
	type key struct {
		dst    netip.Prefix
		metric int
	}
	wanted := map[key]bool{}
	for _, r := range w.Routes {
		if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() {
			err = errors.Join(err, fmt.Errorf("route %v dev %s: expected a prefix whose host bits are zero", r.Dst, w.Link))
			continue
		}
		want := RouteInfo{Dst: r.Dst, Src: r.Src, Link: link.Index, Type: typeUnicast, Protocol: Protocol, Table: tableMain, MTU: r.MTU}
		if r.Dst.Addr().Is6() {
			want.Metric = 1024 // what the kernel makes of 0
		}
		if k := (key{want.Dst, want.Metric}); wanted[k] {
			err = errors.Join(err, fmt.Errorf("route %v dev %s is wanted twice", r.Dst, w.Link))
			continue
		} else {
			wanted[k] = true
		}

		s, found, blocked := step{verb: add, route: want}, false, false
		for _, have := range n.Routes {
			switch {
			case have.Table != tableMain || have.Dst != want.Dst:
			case have == want:
				found = true
			case have.Link == link.Index && have.Metric == want.Metric:
				s.verb, s.old = replace, have
			case have.Link == link.Index:
			case have.Metric > want.Metric:
				s.note = fmt.Sprintf(", ahead of %s", n.describe(have))
			default:
				blocked = blocked || have.Metric == want.Metric
				err = errors.Join(err, fmt.Errorf("route %v dev %s: a route that is not ours has this prefix: %s: take it away, or choose another cluster CIDR",
					want.Dst, w.Link, n.describe(have)))
			}
		}
		switch {
		case found:
			there = append(there, want)
		case !blocked: // to replace might hit the other one
			steps = append(steps, s)
		}
	}
	for _, have := range n.Routes {
		if have.Link == link.Index && have.Protocol == Protocol && have.Table == tableMain && !wanted[key{have.Dst, have.Metric}] {
			steps = append(steps, step{verb: remove, route: have})
		}
	}
	return steps, there, err
}

// done says what a step did; repair, that it was so before.
func (n Network) done(s step, repair bool) string {
	switch {
	case s.verb == replace:
		return fmt.Sprintf("route %s put in place of %s", n.describe(s.route), n.describe(s.old))
	case s.verb == remove:
		return fmt.Sprintf("route %s removed", n.describe(s.route))
	case repair:
		return fmt.Sprintf("route %s was gone, added again%s", n.describe(s.route), s.note)
	default:
		return fmt.Sprintf("route %s added%s", n.describe(s.route), s.note)
	}
}

// describe writes a route as ip(8) does; what is ours goes without saying.
func (n Network) describe(r RouteInfo) string {
	var b strings.Builder
	switch r.Type {
	case typeUnicast:
	case typeUnreachable:
		b.WriteString("unreachable ")
	default:
		fmt.Fprintf(&b, "(type %d) ", r.Type)
	}
	b.WriteString(r.Dst.String())
	if r.Gateway.IsValid() {
		fmt.Fprintf(&b, " via %v", r.Gateway)
	}
	if l, ok := n.byIndex(r.Link); ok {
		fmt.Fprintf(&b, " dev %s", l.Name)
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %v", r.Src)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	if r.Protocol != Protocol {
		fmt.Fprintf(&b, " proto %s metric %d", protocolName(r.Protocol), r.Metric)
	}
	if r.Table != tableMain {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	return b.String()
}

// protocolName is iproute2's name of a route's protocol, or its number.
func protocolName(p int) string {
	switch p {
	case protoKernel:
		return "kernel"
	case 3:
		return "boot"
	case 4:
		return "static"
	case 9:
		return "ra"
	case 12:
		return "bird"
	case 16:
		return "dhcp"
	case 186:
		return "bgp"
	}
	return fmt.Sprint(p)
}
