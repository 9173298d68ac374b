package firewall

import (
	"net/netip"
	"slices"
)

// A hook is where in a packet's way a rule stands.
type hook uint8

const (
	prerouting  hook = iota // before connection tracking: iptables' raw table
	input                   // to this machine
	forward                 // through this machine
	leaving                 // out of this machine, its own packets and others': iptables' mangle table
	postrouting             // where source addresses change: iptables' nat table
)

// A verdict is what a rule does with a packet.
type verdict uint8

const (
	accept  verdict = iota // go on, past all that follows in the same table
	leave                  // go on, to what others have to say
	drop                   //
	keep                   // keep the source address, whatever others have to say
	rewrite                // give it the source address to
)

// A state narrows a rule to some connections.
type state uint8

const (
	anyState    state = iota
	established       // and what is related to one
	redirected        // whose destination was changed: a published port
)

// A rule is one line of the firewall. All that is not zero has to match.
type rule struct {
	hook     hook
	v4, v6   bool // the families it is for
	in, out  string
	src, dst netip.Prefix
	proto    string // udp or tcp, with port
	port     uint16 // destination
	state    state
	do       verdict
	to       netip.Addr // for rewrite
	mark     bool       // with EngineMark, before accept, in nftables
	note     string     // why, for who reads the rules
}

// plan returns the rules of w, in order. Each says all of its conditions, so that
// it means the same at the head of a base chain as behind a jump.
func plan(w Wanted) []rule {
	return slices.Concat(w.prerouting(), w.input(), w.forward(), w.leaving(), w.postrouting())
}

// prerouting guards the mesh's addresses on the way in. A machine answers on all of
// its addresses whatever interface a packet comes in by, and believes any source.
func (w Wanted) prerouting() (rules []rule) {
	add := func(r rule) { r.hook = prerouting; rules = append(rules, r) }
	v4 := func(r rule) { r.v4 = true; add(r) }
	v6 := func(r rule) { r.v6 = true; add(r) }

	add(rule{v4: true, v6: true, in: "lo", do: leave}) // first, as it is much of what passes
	v4(rule{in: w.Link, src: w.Cluster, dst: w.Subnet, do: accept, note: "ahead of an engine's drops"})
	if w.DNSPort != 0 {
		for _, u := range w.Uplinks {
			for _, proto := range []string{"udp", "tcp"} {
				v4(rule{in: u, dst: host(w.WireGuardIP), proto: proto, port: w.DNSPort, do: drop, note: "no open resolver"})
			}
		}
	}
	v4(rule{in: w.Link, do: leave})
	if w.Bridge != "" {
		v4(rule{in: w.Bridge, src: w.Subnet, do: leave})
	}
	for _, f := range w.ForwardFrom {
		if !slices.Contains(w.Uplinks, f) { // a network behind it may be part of the mesh
			v4(rule{in: f, dst: w.Subnet, do: accept, note: "ahead of an engine's drops"})
			v4(rule{in: f, do: leave})
		}
	}
	v4(rule{src: w.Cluster, do: drop, note: "mesh source from outside"})
	for _, f := range w.ForwardFrom {
		if slices.Contains(w.Uplinks, f) {
			v4(rule{in: f, dst: w.Subnet, do: accept, note: "ahead of an engine's drops"})
		}
	}

	v6(rule{in: w.Link, do: leave})
	v6(rule{src: w.Management, do: drop, note: "mesh source from outside"})
	v6(rule{dst: w.Management, do: drop, note: "mesh destination from outside"})
	return rules
}

// input opens WireGuard's port, and to the mesh what the node serves it with.
func (w Wanted) input() (rules []rule) {
	add := func(r rule) { r.hook = input; rules = append(rules, r) }

	add(rule{v4: true, v6: true, in: "lo", do: leave})
	if w.ListenPort != 0 {
		add(rule{v4: true, v6: true, proto: "udp", port: w.ListenPort, do: accept, note: "WireGuard"})
	}
	for _, proto := range []string{"udp", "tcp"} {
		for _, port := range w.Control {
			if w.Bridge != "" {
				add(rule{v4: true, v6: true, in: w.Bridge, proto: proto, port: port, do: drop, note: "never from containers"})
			}
			add(rule{v6: true, in: w.Link, src: w.Management, dst: w.Management, proto: proto, port: port, do: accept, note: "server to server"})
		}
		if w.DNSPort == 0 {
			continue
		}
		add(rule{v4: true, in: w.Link, src: w.Cluster, dst: host(w.WireGuardIP), proto: proto, port: w.DNSPort, do: accept, note: "DNS"})
		if w.Bridge != "" {
			add(rule{v4: true, in: w.Bridge, src: w.Subnet, dst: host(w.WireGuardIP), proto: proto, port: w.DNSPort, do: accept, note: "DNS"})
		}
	}
	return rules
}

// forward is who may talk to whom: containers and the mesh, in both directions.
func (w Wanted) forward() (rules []rule) {
	add := func(r rule) { r.hook = forward; rules = append(rules, r) }
	v4 := func(r rule) { r.v4 = true; add(r) }
	both := func(r rule) { r.v4, r.v6 = true, true; add(r) }

	v4(rule{in: w.Link, out: w.Link, src: w.Cluster, dst: w.Cluster, do: accept, note: "relay"})
	if w.Bridge != "" {
		v4(rule{in: w.Link, out: w.Bridge, src: w.Cluster, dst: w.Subnet, do: accept, mark: true, note: "mesh to containers"})
		v4(rule{in: w.Bridge, out: w.Link, src: w.Subnet, dst: w.Cluster, do: accept, note: "containers to mesh"})
	}
	for _, f := range w.ForwardFrom {
		v4(rule{in: f, out: w.Link, dst: w.Cluster, do: accept, note: "forward from " + f})
		v4(rule{in: w.Link, out: f, src: w.Cluster, do: accept, note: "forward from " + f})
		if w.Bridge != "" {
			v4(rule{in: f, out: w.Bridge, dst: w.Subnet, do: accept, mark: true, note: "forward from " + f})
			v4(rule{in: w.Bridge, out: f, src: w.Subnet, state: established, do: accept, note: "forward from " + f})
		}
	}
	v4(rule{in: w.Link, state: established, do: accept})
	v4(rule{out: w.Link, state: established, do: accept})
	both(rule{in: w.Link, do: drop, note: "mesh to elsewhere"})
	both(rule{out: w.Link, do: drop, note: "elsewhere to mesh"})
	if w.Bridge != "" {
		// What is left may be let in, by whoever published the port: not by us.
		both(rule{in: w.Bridge, out: w.Bridge, do: leave})
		both(rule{out: w.Bridge, state: established, do: leave})
		both(rule{out: w.Bridge, state: redirected, do: leave, note: "published ports"})
		both(rule{out: w.Bridge, do: drop, note: "elsewhere to containers"})
	}
	return rules
}

// leaving keeps what is for the mesh from going anywhere else in the clear, should
// somebody take away the routes that see to it.
func (w Wanted) leaving() (rules []rule) {
	add := func(r rule) { r.hook = leaving; rules = append(rules, r) }
	v4 := func(r rule) { r.v4 = true; add(r) }
	v6 := func(r rule) { r.v6 = true; add(r) }

	add(rule{v4: true, v6: true, out: "lo", do: leave})
	v4(rule{out: w.Link, do: leave})
	if w.Bridge != "" {
		v4(rule{out: w.Bridge, dst: w.Subnet, do: leave})
	}
	for _, f := range w.ForwardFrom {
		if !slices.Contains(w.Uplinks, f) {
			v4(rule{out: f, do: leave})
		}
	}
	v4(rule{dst: w.Cluster, do: drop, note: "mesh destination in the clear"})

	v6(rule{out: w.Link, do: leave})
	v6(rule{dst: w.Management, do: drop, note: "mesh destination in the clear"})
	return rules
}

// postrouting settles source addresses. That is what keeps others from changing
// them: accepting a packet ends the way through one table only.
func (w Wanted) postrouting() (rules []rule) {
	add := func(r rule) { r.hook, r.v4 = postrouting, true; rules = append(rules, r) }

	if w.Masquerade {
		add(rule{out: w.Link, src: w.Subnet, dst: w.Cluster, do: rewrite, to: w.WireGuardIP, note: "hide containers"})
	}
	add(rule{out: w.Link, src: w.Cluster, dst: w.Cluster, do: keep, note: "no masquerade in the mesh"})
	if len(w.ForwardFrom) > 0 { // a peer takes from us what has an address of ours
		add(rule{out: w.Link, dst: w.Cluster, do: rewrite, to: w.WireGuardIP, note: "forwarded from elsewhere"})
	}
	if w.Bridge != "" {
		add(rule{out: w.Bridge, src: w.Subnet, do: leave, note: "hairpin: the engine's"})
		add(rule{out: w.Bridge, src: w.Cluster, dst: w.Subnet, do: keep, note: "no masquerade in the mesh"})
	}
	return rules
}

// jumps are the conditions under which iptables has to go through our rules of h.
func (w Wanted) jumps(h hook) []rule {
	if h != forward {
		return []rule{{}}
	}
	jumps := []rule{{in: w.Link}, {out: w.Link}}
	if w.Bridge != "" {
		jumps = append(jumps, rule{out: w.Bridge})
		for _, f := range w.ForwardFrom {
			jumps = append(jumps, rule{in: w.Bridge, out: f})
		}
	}
	return jumps
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
