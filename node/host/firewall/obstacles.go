package firewall

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A flow is packets of the mesh, the first ones of a connection, that a rule of
// others may drop. What is zero may be anything: a rule that depends on it is no
// obstacle.
type flow struct {
	name     string
	rule     rule // that would let them through
	from, to netip.Addr
}

// flows returns what has to get through the machine for the mesh to work.
func (w Wanted) flows() (flows []flow) {
	add := func(name string, from, to netip.Addr, r rule) {
		r.do = accept
		flows = append(flows, flow{name, r, from, to})
	}
	container := w.WireGuardIP.Next()
	remote := lastOf(w.Cluster)
	if w.Subnet.Contains(remote) {
		remote = w.Cluster.Addr()
	}
	if w.Subnet.Contains(remote) {
		remote = netip.Addr{} // there is but one server
	}
	through := func(name, in, out string, from, to netip.Addr) {
		add(fmt.Sprintf("%s (%s to %s)", name, in, out), from, to, rule{hook: forward, v4: true, in: in, out: out})
	}
	if w.Bridge != "" {
		through("mesh to containers", w.Link, w.Bridge, remote, container)
		through("containers to mesh", w.Bridge, w.Link, container, remote)
	}
	for _, f := range w.ForwardFrom {
		through("forwarding", f, w.Link, netip.Addr{}, remote)
	}
	if w.ListenPort != 0 {
		for _, u := range w.Uplinks {
			for _, v6 := range []bool{false, true} {
				add("WireGuard on "+u, netip.Addr{}, netip.Addr{}, rule{hook: input, v4: !v6, v6: v6, in: u, proto: "udp", port: w.ListenPort})
			}
		}
	}
	if w.DNSPort != 0 {
		dns := func(in string, from netip.Addr) {
			add("DNS on "+in, from, w.WireGuardIP, rule{hook: input, v4: true, in: in, dst: host(w.WireGuardIP), proto: "udp", port: w.DNSPort})
		}
		dns(w.Link, remote)
		if w.Bridge != "" {
			dns(w.Bridge, container)
		}
	}
	for _, port := range w.Control {
		for _, proto := range []string{"udp", "tcp"} {
			peer := lastOf(w.Management)
			add(fmt.Sprintf("server to server on %d/%s", port, proto), peer, peer, rule{hook: input, v6: true, in: w.Link, src: w.Management, dst: w.Management, proto: proto, port: port})
		}
	}
	return flows
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// A condition is one of a rule of others, in words that nftables and iptables share.
type condition struct {
	what   string // in, out, src, dst, proto, port, state, family
	not    bool
	values []string // any of them
}

// A line is a rule of others, as far as it can be understood.
type line struct {
	text       string
	conditions []condition
	obscure    bool   // depends on something else, too
	verdict    string // accept, drop, return, jump, goto; "" for none
	target     string // of jump and goto
}

// A chain is one of others', or ours.
type chain struct {
	hook   hook
	base   bool   // the kernel begins here
	policy string // the text of a policy that drops, "" for one that accepts
	lines  []line
}

// A ground is a table that packets have to pass.
type ground struct {
	name   string // as its user would say: "iptables filter", "nft inet filter"
	v4, v6 bool
	chains map[string]*chain
	order  []string
	fix    func(chain string, let rule) string
}

// matches reports whether the first packets of f certainly meet the conditions of l.
func (l line) matches(f flow) bool {
	if l.obscure {
		return false
	}
	for _, c := range l.conditions {
		var known, met bool
		is := func(have string) {
			known = have != ""
			met = slices.ContainsFunc(c.values, func(v string) bool {
				stem, wild := strings.CutSuffix(v, "*")
				return v == have || wild && strings.HasPrefix(have, stem)
			})
		}
		in := func(a netip.Addr) {
			known = a.IsValid()
			met = slices.ContainsFunc(c.values, func(v string) bool {
				p, err := netip.ParsePrefix(v)
				if err != nil {
					b, err := netip.ParseAddr(v)
					return err == nil && a == b
				}
				return p.Contains(a)
			})
		}
		switch c.what {
		case "in":
			is(f.rule.in)
		case "out":
			is(f.rule.out)
		case "src":
			in(f.from)
		case "dst":
			in(f.to)
		case "proto":
			is(f.rule.proto)
		case "port":
			known = f.rule.port != 0
			met = slices.ContainsFunc(c.values, func(v string) bool { return inRange(f.rule.port, v) })
		case "state":
			is("new")
		case "family":
			is(map[bool]string{false: "ipv4", true: "ipv6"}[f.rule.v6])
		}
		if !known || met == c.not {
			return false
		}
	}
	return true
}

// inRange reports whether n is in "80", "80-90" or "80:90".
func inRange(n uint16, text string) bool {
	low, high, isRange := strings.Cut(strings.ReplaceAll(text, ":", "-"), "-")
	if !isRange {
		high = low
	}
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	return errA == nil && errB == nil && uint64(n) >= a && uint64(n) <= b
}

// blocker returns the rule or policy that drops f in a base chain of g, "" for none.
func (g ground) blocker(base string, f flow) string {
	steps := 0
	var walk func(name string, depth int) (verdict, text string)
	walk = func(name string, depth int) (string, string) {
		c := g.chains[name]
		if c == nil || depth > 16 {
			return "", ""
		}
		for _, l := range c.lines {
			if steps++; steps > 100_000 {
				return "accept", ""
			}
			if l.verdict == "" || !l.matches(f) {
				continue
			}
			switch l.verdict {
			case "jump":
				if verdict, text := walk(l.target, depth+1); verdict != "" {
					return verdict, text
				}
			case "goto":
				return walk(l.target, depth+1)
			case "return":
				return "", ""
			default:
				return l.verdict, fmt.Sprintf("%s, chain %s: %s", g.name, name, l.text)
			}
		}
		return "", ""
	}
	verdict, text := walk(base, 0)
	switch {
	case verdict == "drop":
		return text
	case verdict == "" && g.chains[base].policy != "":
		return fmt.Sprintf("%s, chain %s: %s", g.name, base, g.chains[base].policy)
	}
	return ""
}

// obstacles returns what in the grounds drops the flows, once for each rule.
func obstacles(grounds []ground, flows []flow) (out []Obstacle) {
	add := func(g ground, base string, f flow, text string) {
		fix := g.fix(base, f.rule)
		i := slices.IndexFunc(out, func(o Obstacle) bool { return o.Rule == text })
		if i < 0 {
			out = append(out, Obstacle{text, f.name, fix})
			return
		}
		if !slices.Contains(strings.Split(out[i].Blocks, ", "), f.name) {
			out[i].Blocks += ", " + f.name
		}
		if !slices.Contains(strings.Split(out[i].Fix, " && "), fix) {
			out[i].Fix += " && " + fix
		}
	}
	for _, g := range grounds {
		for _, f := range flows {
			if f.rule.v6 && !g.v6 || f.rule.v4 && !g.v4 {
				continue
			}
			for _, name := range g.order {
				c := g.chains[name]
				if !c.base || c.hook != f.rule.hook && c.hook != prerouting {
					continue
				}
				g, f := g, f
				if c.hook == prerouting {
					f.rule.out = "" // not known yet
				}
				if text := g.blocker(name, f); text != "" {
					add(g, name, f, text)
				}
			}
		}
	}
	return out
}

// grounds returns iptables' tables that packets have to pass and that have rules of
// others. Where ours are not at the heads of its chains yet, Apply puts them there:
// nothing of others' is ahead of them.
func (o observed) grounds() (out []ground) {
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy} {
		for _, f := range o.variants[b] {
			for _, name := range []string{"raw", "mangle", "filter", "security"} {
				t := f.rules[name]
				if t == nil {
					continue
				}
				if name == "raw" && !t.has(places[prerouting].chain) || name == "filter" && !t.has(places[forward].chain) {
					continue
				}
				out = append(out, f.ground(name, t))
			}
		}
	}
	return out
}

func (t *table) has(chain string) bool { return t.policy[chain] != "" }

// ground reads a table of iptables.
func (f family) ground(name string, t *table) ground {
	g := ground{name: f.tool + " " + name, v4: !f.v6, v6: f.v6, chains: map[string]*chain{}, order: t.order}
	hooks := map[string]hook{"PREROUTING": prerouting, "INPUT": input, "FORWARD": forward}
	for _, c := range t.order {
		read := &chain{}
		read.hook, read.base = hooks[c]
		if p := t.policy[c]; p != "-" && p != "ACCEPT" {
			read.policy = fmt.Sprintf("-P %s %s", c, p)
		}
		for _, args := range t.rules[c] {
			l := iptablesLine(args)
			l.text = fmt.Sprintf("-A %s %s", c, args)
			if l.verdict == "jump" && t.policy[l.target] == "" {
				l.verdict = "" // LOG, MARK and the like
			}
			read.lines = append(read.lines, l)
		}
		g.chains[c] = read
	}
	g.fix = func(chain string, let rule) string {
		option := ""
		if name != "filter" {
			option = "-t " + name + " "
		}
		return fmt.Sprintf("%s %s-I %s %s", f.tool, option, chain, let.iptables(netip.Prefix{}, ""))
	}
	return g
}

// iptablesLine understands a rule's arguments.
func iptablesLine(args string) (l line) {
	what := map[string]string{"-i": "in", "-o": "out", "-s": "src", "-d": "dst", "-p": "proto",
		"--dport": "port", "--dports": "port", "--ctstate": "state", "--state": "state"}
	verdicts := map[string]string{"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
	for _, o := range options(args) {
		switch name := what[o.name]; {
		case name == "in", name == "out":
			value := o.value
			if stem, wild := strings.CutSuffix(value, "+"); wild {
				value = stem + "*"
			}
			l.conditions = append(l.conditions, condition{name, o.not, []string{value}})
		case name != "":
			l.conditions = append(l.conditions, condition{name, o.not, strings.Split(strings.ToLower(o.value), ",")})
		case o.name == "-j", o.name == "-g":
			l.target, _, _ = strings.Cut(o.value, " ")
			l.verdict = cmp.Or(verdicts[l.target], map[string]string{"-j": "jump", "-g": "goto"}[o.name])
		case o.name == "-m", o.name == "--comment", o.name == "--reject-with":
		default:
			l.obscure = true
		}
	}
	return l
}

// isRead reports whether a table of nftables is ours, or one that iptables has shown.
func (o observed) isRead(name string) bool {
	if name == "inet "+tableName {
		return true
	}
	for i, prefix := range []string{"ip ", "ip6 "} {
		if table, ok := strings.CutPrefix(name, prefix); ok {
			families := o.variants[IPTablesNFT]
			return len(families) > i && families[i].rules[table] != nil
		}
	}
	return false
}
