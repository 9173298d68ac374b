package dnsserver

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"

	"github.com/miekg/dns"
)

const (
	// An RRset has to fit into 64 KiB, the most that TCP carries. 1024 AAAA
	// records take 28 KiB, 64 names at their longest 16 KiB.
	maxAddrs   = 1024 // the nearest; equals take turns, so that none is left out for ever
	maxTargets = 64
)

// A question is one of class IN that asks for records of a type.
type question struct {
	name   []byte // canonical, see parseName
	qtype  uint16
	client netip.Addr // who asks; zero: nobody of the mesh
}

// An answer is what the zone says to one question.
type answer struct {
	ours          bool // the zone answers; otherwise the question is to be forwarded
	authoritative bool
	rcode         int
	apex          int // where in the name the zone begins; the owner of the SOA

	// What there is of the type that was asked for. Without any of it the SOA
	// is sent, if authoritative.
	soa, ns bool
	v4      set
	v6      []netip.Addr
	targets []target // of PTR or SRV records
}

// A target is what a PTR or SRV record leads to: a name relative to the apex.
type target struct {
	labels   []byte // as a message has them, without the final root
	ip       [4]byte
	priority uint16
	port     uint16
}

// answer answers q.
func (z *Zone) answer(q question) answer {
	at := z.apexOf(q.name)
	switch {
	case at < 0 && len(q.name) > 0 && bytes.IndexByte(q.name, '.') < 0:
		// Names of one label never leave the mesh. We are not authoritative for
		// the root, and NXDOMAIN with a SOA would deny all that is below the name
		// too (RFC 8020): without one nobody keeps the answer (RFC 2308, section 5).
		if z.unknown || z.partial {
			return answer{ours: true, rcode: dns.RcodeServerFailure}
		}
		return answer{ours: true, rcode: dns.RcodeNameError}
	case at < 0:
		return answer{}
	case z.unknown:
		return answer{ours: true, rcode: dns.RcodeServerFailure}
	}
	a := answer{ours: true, authoritative: true, apex: at}
	var exists bool
	switch {
	case at == 0:
		exists = true
		a.soa, a.ns = q.qtype == dns.TypeSOA, q.qtype == dns.TypeNS
	case string(q.name[at:]) == z.apex:
		exists = z.find(q, q.name[:at-1], &a)
	default:
		exists = z.findReverse(q, &a)
	}
	if !exists && z.partial {
		return answer{ours: true, rcode: dns.RcodeServerFailure}
	}
	if !exists {
		a.rcode = dns.RcodeNameError
	}
	return a
}

// apexOf returns where in name, which is canonical, the nearest apex above it
// begins; -1 if it lies outside the zone.
func (z *Zone) apexOf(name []byte) int {
	for at := 0; ; {
		if _, ok := z.apexes[string(name[at:])]; ok {
			return at
		}
		dot := bytes.IndexByte(name[at:], '.')
		if dot < 0 {
			return -1
		}
		at += dot + 1
	}
}

// find looks up name, which is relative to the apex, and reports whether it
// exists.
func (z *Zone) find(q question, name []byte, a *answer) bool {
	if id, ok := bytes.CutSuffix(name, []byte(".node")); ok {
		return z.findNode(q, id, a)
	}
	var room [4]match
	found := z.matches(name, room[:0])
	if q.qtype == dns.TypeA {
		a.v4 = z.union(found, q.client)
	}
	_, above := z.nodes.above[string(name)]
	first, rest, below := bytes.Cut(name, []byte("."))
	return len(found) > 0 || above || !below && string(first) == "node" || below && first[0] == '_' && z.findPort(q, first, rest, a)
}

// A match is containers that a name leads to: those of a service that are all
// that is said here.
type match struct {
	part     *part
	project  int    // of part.projects; -1: any
	instance string // "": any, like server
	server   string
	label    []byte // of the container itself; nil: any
}

// matches appends to found what name leads to, see DESIGN 5: <service>,
// <project>-<service>, <project>-<service>-<instance>, <service>.<server>,
// <id12>.<service>.
func (z *Zone) matches(name []byte, found []match) []match {
	first, rest, below := bytes.Cut(name, []byte("."))
	if below {
		if p := z.parts.get(first); p != nil && z.nodes.byID[string(rest)] != nil && len(p.on(string(rest))) > 0 {
			found = append(found, match{part: p, project: -1, server: string(rest)})
		}
		if p := z.parts.get(rest); p != nil && slices.ContainsFunc(p.members, func(m member) bool { return bytes.Equal(m.label(), first) }) {
			found = append(found, match{part: p, project: -1, label: first})
		}
		return found
	}
	if p := z.parts.get(name); p != nil {
		found = append(found, match{part: p, project: -1})
	}
	for i := range name {
		if name[i] != '-' {
			continue
		}
		project, service := name[:i], name[i+1:]
		if at, p := z.projectPart(project, service); p != nil {
			found = append(found, match{part: p, project: at})
		}
		for j := range service {
			if service[j] != '-' {
				continue
			}
			if at, p := z.projectPart(project, service[:j]); p != nil && p.hasInstance(at, service[j+1:]) {
				found = append(found, match{part: p, project: at, instance: string(service[j+1:])})
			}
		}
	}
	return found
}

// all ranges over the containers that m is, with their servers' ids.
func (m *match) all(yield func(server string, c *member) bool) {
	for server, c := range m.part.all {
		switch {
		case m.project >= 0 && c.project != uint32(m.project), m.instance != "" && c.instance != m.instance,
			m.server != "" && server != m.server, m.label != nil && !bytes.Equal(c.label(), m.label):
		case !yield(server, c):
			return
		}
	}
}

// projectPart returns the part of a service that has containers of a project,
// and where that is in part.projects; nil if there is none.
func (z *Zone) projectPart(project, service []byte) (int, *part) {
	p := z.parts.get(service)
	if p == nil || len(project) == 0 {
		return 0, nil
	}
	at, ok := slices.BinarySearch(p.projects, string(project))
	if !ok {
		return 0, nil
	}
	return at, p
}

func (p *part) hasInstance(project int, instance []byte) bool {
	return len(instance) > 0 && slices.ContainsFunc(p.members, func(m member) bool {
		return m.project == uint32(project) && m.instance == string(instance)
	})
}

// union returns the addresses of all that was found.
func (z *Zone) union(found []match, client netip.Addr) set {
	if len(found) == 1 && found[0].whole() { // as nearly always, and made before
		m := &found[0]
		if m.project < 0 {
			return z.serviceSet(m.part, client)
		}
		v := m.part.look(z.nodes)
		if v.project == nil {
			return v.all
		}
		return v.project[m.project]
	}
	var list []candidate
	for i := range found {
		for server, m := range found[i].all {
			if c, ok := z.nodes.candidate(server, m); ok {
				list = append(list, c)
			}
		}
	}
	return order(list)
}

// whole reports whether m is a service, or a project's part of it.
func (m *match) whole() bool { return m.instance == "" && m.server == "" && m.label == nil }

// A LeftOut container has a name, and is not answered.
type LeftOut struct {
	ID     string // its first 12 characters
	IP     netip.Addr
	Reason string
}

// leftOut returns which containers of a canonical name are not answered, and why.
func (z *Zone) leftOut(name []byte) []LeftOut {
	at := z.apexOf(name)
	if at < 1 || string(name[at:]) != z.apex {
		return nil
	}
	found := z.matches(name[:at-1], nil)
	answered := z.union(found, netip.Addr{}).ips
	var list []LeftOut
	for i := range found {
		for server, m := range found[i].all {
			out := LeftOut{ID: string(m.label()), IP: netip.AddrFrom4(m.ip), Reason: found[i].part.reasons[m.reason]}
			if out.Reason == "" && !slices.Contains(answered, m.ip) {
				out.Reason = "server " + server + " does not answer"
			}
			if out.Reason != "" {
				list = append(list, out)
			}
		}
	}
	return list
}

// serviceSet returns the addresses of p for a client: those of its own project
// if projects share the name and it has one there.
func (z *Zone) serviceSet(p *part, client netip.Addr) set {
	v := p.look(z.nodes)
	if v.project == nil || !client.Is4() {
		return v.all
	}
	project := z.projectOf(client.As4())
	if at, ok := slices.BinarySearch(p.projects, project); ok && project != "" {
		return v.project[at]
	}
	return v.all
}

// projectOf returns the project of the container with that address; "" if there
// is none.
func (z *Zone) projectOf(ip [4]byte) string {
	for _, o := range z.reverse.at(ip) {
		p := z.parts.get([]byte(o.service))
		for i := range p.members {
			if m := &p.members[i]; m.ip == ip && p.projects[m.project] != "" {
				return p.projects[m.project]
			}
		}
	}
	return ""
}

// findNode looks up <server>.node.
func (z *Zone) findNode(q question, id []byte, a *answer) bool {
	s := z.nodes.byID[string(id)]
	if s == nil {
		_, above := z.nodes.above[string(id)]
		return above
	}
	for _, ip := range s.Addrs {
		switch {
		case ip.Is4() && q.qtype == dns.TypeA:
			a.v4.ips = append(a.v4.ips, ip.As4())
			a.v4.runs = []int{len(a.v4.ips)}
		case ip.Is6() && q.qtype == dns.TypeAAAA:
			a.v6 = append(a.v6, ip)
		}
	}
	return true
}

// findPort looks up _<port>._<proto>.<service>, whose first label is apart, and
// what is above such names.
func (z *Zone) findPort(q question, first, rest []byte, a *answer) bool {
	if p := z.parts.get(rest); p != nil {
		return p.listens(0, string(first[1:]))
	}
	proto, service, ok := bytes.Cut(rest, []byte("."))
	if !ok || proto[0] != '_' {
		return false
	}
	p := z.parts.get(service)
	number, err := strconv.ParseUint(string(first[1:]), 10, 16)
	if p == nil || err != nil || first[1] == '0' || first[1] == '+' || !p.listens(uint16(number), string(proto[1:])) {
		return false
	}
	if q.qtype == dns.TypeSRV {
		a.targets = z.srv(p, Port{uint16(number), string(proto[1:])})
	}
	return true
}

// listens reports whether a member lists that port, 0: any, of that protocol.
func (p *part) listens(number uint16, proto string) bool {
	return slices.ContainsFunc(p.ports, func(list []Port) bool {
		return slices.ContainsFunc(list, func(port Port) bool {
			return port.Proto == proto && (number == 0 || port.Number == number)
		})
	})
}

// srv returns the targets of p's members that listen on port, in the order of
// its addresses. Nearer ones have a lower priority (RFC 2782).
func (z *Zone) srv(p *part, port Port) []target {
	var found []candidate
	byIP := map[[4]byte]*member{}
	for server, m := range p.all {
		if c, ok := z.nodes.candidate(server, m); ok && slices.Contains(p.ports[m.ports], port) {
			found = append(found, c)
			if byIP[m.ip] == nil {
				byIP[m.ip] = m
			}
		}
	}
	s := order(found)
	var list []target
	run := 0
	for i, ip := range s.ips[:min(len(s.ips), maxTargets)] {
		if i == s.runs[run] {
			run++
		}
		list = append(list, target{labels: p.memberName(byIP[ip]), ip: ip, priority: uint16(run), port: port.Number})
	}
	return list
}

// memberName returns <id12>.<service>, as target.labels has it.
func (p *part) memberName(m *member) []byte {
	b := append([]byte{m.idLen}, m.label()...)
	return append(append(b, byte(len(p.name))), p.name...)
}

// findReverse looks up a name of a reverse tree.
func (z *Zone) findReverse(q question, a *answer) bool {
	p, ok := parseReverse(q.name)
	if !ok {
		return false
	}
	ip := p.Addr()
	if !p.IsSingleIP() {
		return z.nodes.within(p) || ip.Is4() && z.reverse.within(p)
	}
	var names []string // for their order; labels sort alike
	for _, id := range z.nodes.byAddr[ip] {
		if b, err := appendLabels(nil, id+".node"); err == nil {
			names = append(names, string(b))
		}
	}
	if ip.Is4() {
		for _, o := range z.reverse.at(ip.As4()) {
			p := z.parts.get([]byte(o.service))
			for i := range p.members {
				if m := &p.members[i]; m.ip == ip.As4() {
					names = append(names, string(p.memberName(m)))
				}
			}
		}
	}
	if q.qtype == dns.TypePTR {
		slices.Sort(names)
		names = slices.Compact(names)
		for _, n := range names[:min(len(names), maxTargets)] {
			a.targets = append(a.targets, target{labels: []byte(n)})
		}
	}
	return len(names) > 0
}

// within reports whether a container has an address in p, an IPv4 prefix of
// whole octets.
func (r reverse) within(p netip.Prefix) bool {
	ip := p.Addr().As4()
	switch p.Bits() {
	case 24:
		return r.net(ip) != nil
	case 16:
		return r[[2]byte(ip[:2])] != nil
	}
	return false // what is larger is an apex
}
