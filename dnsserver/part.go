package dnsserver

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

const (
	shortID  = 12 // characters of a container's id that its name has, as engines print it
	maxLabel = 63 // RFC 1035, section 2.3.4
	maxName  = 255
)

// A part is a service in a zone. Only its view changes.
type part struct {
	name     string   // canonical
	members  []member // in order of server, then id
	servers  []owner  // in order of id: whose the members are
	projects []string // canonical, sorted; "" if a member has none
	ports    [][]Port // that members have
	reasons  []string // why members are not answered; the first is none
	count    int      // owner names
	view     atomic.Pointer[view]
}

// An owner is a server with the members that follow those of the one before it.
type owner struct {
	id  string // canonical
	end int    // of its members
}

// A member is a container of a part, in 48 bytes.
type member struct {
	ip       [4]byte
	project  uint32 // of part.projects
	ports    uint32 // of part.ports
	reason   uint8  // of part.reasons
	idLen    uint8
	id       [shortID]byte // canonical
	instance string        // canonical
}

// newPart returns the part of a service with that canonical name, nil if it has
// no containers that can be named.
func newPart(name string, containers []Container) *part {
	if !nameable(name) {
		return nil
	}
	sorted := make([]*Container, 0, len(containers))
	for i := range containers {
		if c := &containers[i]; c.IP.Is4() && c.ID != "" {
			sorted = append(sorted, c)
		}
	}
	if len(sorted) == 0 {
		return nil
	}
	slices.SortFunc(sorted, func(a, b *Container) int {
		return cmp.Or(strings.Compare(strings.ToLower(a.Server), strings.ToLower(b.Server)), strings.Compare(a.ID, b.ID))
	})
	p := &part{name: name, members: make([]member, len(sorted)), ports: [][]Port{nil}, reasons: []string{""}}
	for _, c := range sorted {
		p.projects = append(p.projects, strings.ToLower(c.Project))
	}
	slices.Sort(p.projects)
	p.projects = slices.Clip(slices.Compact(p.projects))
	instances := map[[2]string]struct{}{}
	for i, c := range sorted {
		m := &p.members[i]
		m.ip, m.reason = c.IP.As4(), p.reasonOf(c.Unfit)
		m.idLen = uint8(copy(m.id[:], strings.ReplaceAll(strings.ToLower(c.ID[:min(len(c.ID), shortID)]), ".", "-")))
		m.instance = strings.ToLower(c.Instance)
		at, _ := slices.BinarySearch(p.projects, strings.ToLower(c.Project))
		m.project = uint32(at)
		m.ports = p.portsOf(c.Ports)
		if server := strings.ToLower(c.Server); len(p.servers) == 0 || p.servers[len(p.servers)-1].id != server {
			p.servers = append(p.servers, owner{id: server})
		}
		p.servers[len(p.servers)-1].end = i + 1
		if c.Project != "" && c.Instance != "" {
			instances[[2]string{p.projects[at], m.instance}] = struct{}{}
		}
	}
	p.servers = slices.Clip(p.servers)
	p.count = 1 + len(p.servers) + len(p.members) + len(p.projects) + len(instances)
	if p.projects[0] == "" {
		p.count--
	}
	return p
}

func nameable(label string) bool { return len(label) >= 1 && len(label) <= maxLabel }

// portsOf returns the index in p.ports of a list, which is kept once.
func (p *part) portsOf(list []Port) uint32 {
	for i, have := range p.ports[max(0, len(p.ports)-64):] { // nearly always one of a few
		if slices.Equal(have, list) {
			return uint32(max(0, len(p.ports)-64) + i)
		}
	}
	p.ports = append(p.ports, slices.Clone(list))
	return uint32(len(p.ports) - 1)
}

// reasonOf returns the index in p.reasons of one; there are a handful.
func (p *part) reasonOf(text string) uint8 {
	i := slices.Index(p.reasons, text)
	if i < 0 && len(p.reasons) < 256 {
		p.reasons = append(p.reasons, text)
		i = len(p.reasons) - 1
	}
	if i < 0 {
		i = 1
	}
	return uint8(i)
}

// all ranges over the members with their servers' ids.
func (p *part) all(yield func(server string, m *member) bool) {
	i := 0
	for _, o := range p.servers {
		for ; i < o.end; i++ {
			if !yield(o.id, &p.members[i]) {
				return
			}
		}
	}
}

// on returns the members on a server.
func (p *part) on(server string) []member {
	i, ok := slices.BinarySearchFunc(p.servers, server, func(o owner, id string) int { return strings.Compare(o.id, id) })
	if !ok {
		return nil
	}
	first := 0
	if i > 0 {
		first = p.servers[i-1].end
	}
	return p.members[first:p.servers[i].end]
}

// addresses are those of the members that lie within the mesh, sorted and each
// once.
func (p *part) addresses(mesh []netip.Prefix) [][4]byte {
	if p == nil {
		return nil
	}
	list := make([][4]byte, 0, len(p.members))
	for i := range p.members {
		ip := netip.AddrFrom4(p.members[i].ip)
		if slices.ContainsFunc(mesh, func(n netip.Prefix) bool { return n.Contains(ip) }) {
			list = append(list, p.members[i].ip)
		}
	}
	slices.SortFunc(list, func(a, b [4]byte) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(list)
}

// label is the container's own label.
func (m *member) label() []byte { return m.id[:m.idLen] }

// A view is a part's addresses in the order that its servers have now.
type view struct {
	of      *edit // the servers: their mark alone, not to keep them
	all     set
	project []set // by project; nil if there is but one
}

// look returns the view of p for s, which is made once: all queries for the
// name share it.
func (p *part) look(s *nodes) *view {
	v := p.view.Load()
	if v != nil && v.of == s.made {
		return v
	}
	v = &view{of: s.made}
	var all []candidate
	split := make([][]candidate, len(p.projects))
	for server, m := range p.all {
		if c, ok := s.candidate(server, m); ok {
			all = append(all, c)
			split[m.project] = append(split[m.project], c)
		}
	}
	v.all = order(all)
	if len(p.projects) > 1 {
		for _, list := range split {
			v.project = append(v.project, order(list))
		}
	}
	p.view.Store(v)
	return v
}

// A candidate is an address that may be answered.
type candidate struct {
	ip   [4]byte
	down bool
	rank int
}

// candidate returns that of m, unless there is a reason not to answer it.
func (s *nodes) candidate(server string, m *member) (candidate, bool) {
	v := s.byID[server]
	if v == nil || m.reason != 0 {
		return candidate{}, false
	}
	return candidate{m.ip, v.Down, v.Rank}, true
}

// A set is addresses in the order in which they are answered.
type set struct {
	ips  [][4]byte
	runs []int // where each run of equals ends, which take turns
}

// order returns the set of list, which it changes. Those that are down are in
// it only if all are: better a wrong guess about a path than no answer.
func order(list []candidate) set {
	if slices.ContainsFunc(list, func(c candidate) bool { return !c.down }) {
		list = slices.DeleteFunc(list, func(c candidate) bool { return c.down })
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(slices.Compare(a.ip[:], b.ip[:]), cmp.Compare(a.rank, b.rank))
	})
	list = slices.CompactFunc(list, func(a, b candidate) bool { return a.ip == b.ip })
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	s := set{ips: make([][4]byte, len(list))}
	for i, c := range list {
		s.ips[i] = c.ip
		if i+1 == len(list) || list[i+1].rank != c.rank {
			s.runs = append(s.runs, i+1)
		}
	}
	return s
}
