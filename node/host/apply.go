package host

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A Wanted is the state of the machine that a node needs.
type Wanted struct {
	Link       string // the tunnel's; required
	Routes     []Route
	Forwarding bool // IPv4 packets pass between the tunnel and the containers
}

// A Route is one wanted route over the tunnel.
type Route struct {
	Dst netip.Prefix // required, host bits zero
	Src netip.Addr   // preferred source; zero: the kernel's choice
	MTU int          // bytes; 0: the link's
}

// A Change is one thing that Apply did.
type Change struct {
	What string // for one log line: "route 10.210.2.0/24 dev jiji0 added"
}

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

// diff returns the steps that bring n's routes over w.Link to w.Routes, none of
// which takes away a route before those that are missing are there, and the
// faults it cannot mend. Routes that are not ours are left alone, except on the
// very prefix that is wanted and on our own link.
func diff(n Network, w Wanted) ([]step, error) {
	link, ok := n.link(w.Link)
	if !ok {
		return nil, fmt.Errorf("set routes: interface %s does not exist", w.Link)
	}
	type key struct {
		dst    netip.Prefix
		metric int
	}
	var (
		steps  []step
		faults []error
		wanted = map[key]bool{}
	)
	for _, r := range w.Routes {
		if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() {
			faults = append(faults, fmt.Errorf("route %v dev %s: expected a prefix whose host bits are zero", r.Dst, w.Link))
			continue
		}
		want := RouteInfo{Dst: r.Dst, Src: r.Src, Link: link.Index, Type: typeUnicast, Protocol: Protocol, Table: tableMain, MTU: r.MTU}
		if r.Dst.Addr().Is6() {
			want.Metric = 1024 // what the kernel makes of 0
		}
		if k := (key{want.Dst, want.Metric}); wanted[k] {
			faults = append(faults, fmt.Errorf("route %v dev %s is wanted twice", r.Dst, w.Link))
			continue
		} else {
			wanted[k] = true
		}

		s, there, blocked := step{verb: add, route: want}, false, false
		for _, have := range n.Routes {
			switch {
			case have.Table != tableMain || have.Dst != want.Dst:
			case have == want:
				there = true
			case have.Link == link.Index && have.Metric == want.Metric:
				s.verb, s.old = replace, have
			case have.Link == link.Index:
			case have.Metric > want.Metric:
				s.note = fmt.Sprintf(", ahead of %s", n.describe(have))
			default:
				blocked = blocked || have.Metric == want.Metric
				faults = append(faults, fmt.Errorf("route %v dev %s: a route that is not ours has this prefix: %s: take it away, or choose another cluster CIDR",
					want.Dst, w.Link, n.describe(have)))
			}
		}
		if !there && !blocked { // to replace might hit the other one
			steps = append(steps, s)
		}
	}
	for _, have := range n.Routes {
		if have.Link == link.Index && have.Protocol == Protocol && have.Table == tableMain && !wanted[key{have.Dst, have.Metric}] {
			steps = append(steps, step{verb: remove, route: have})
		}
	}
	return steps, errors.Join(faults...)
}

// change says what a step did.
func (n Network) change(s step) Change {
	switch s.verb {
	case add:
		return Change{fmt.Sprintf("route %s added%s", n.describe(s.route), s.note)}
	case replace:
		return Change{fmt.Sprintf("route %s put in place of %s", n.describe(s.route), n.describe(s.old))}
	default:
		return Change{fmt.Sprintf("route %s removed", n.describe(s.route))}
	}
}

// describe writes a route as ip(8) does; what is ours goes without saying.
func (n Network) describe(r RouteInfo) string {
	var b strings.Builder
	if r.Type != typeUnicast {
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
