package node

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A directory makes the zone of what is known, each from the one before: what
// did not change costs nothing. The zero value has made none.
type directory struct {
	zone     *dnsserver.Zone
	source   []topology.Server   // that topo's are of
	topo     topology.Topology   // the members, and what the zone is called
	self     string              // id
	standing map[string]standing // of the other servers, by id
	partial  bool
	services []*registry.Service           // that are in zone
	refused  map[string][]registry.Skipped // containers that are not answered, by service
	skipped  []registry.Skipped            // refused, in order
	members  map[string]topology.Server    // by id
	serial   uint32
}

// A standing is what the place of a server's containers in an answer follows from.
type standing struct {
	down  bool
	class int // see nearness
}

// A view is all that a zone follows from.
type view struct {
	topo    topology.Topology
	key     wgkey.Public // this server's
	catalog *registry.Snapshot
	partial bool                         // of catalog: there may be more containers
	down    func(wgkey.Public) bool      // a server that does not answer
	times   map[netip.Addr]time.Duration // to the others, by WireGuard IP
	rotate  bool                         // all servers are equal, this one included; it never changes
}

// update makes the zone anew of what changed in v, and reports whether anything did.
func (d *directory) update(v view) (changed bool, err error) {
	list := d.topo.Servers
	if !sameSlice(v.topo.Servers, d.source) {
		list, d.source = members(v.topo), v.topo.Servers
	}
	moved := d.stand(list, v)
	var services []*registry.Service
	if v.catalog != nil {
		services = v.catalog.Services
	}
	if d.zone == nil || v.topo.Domain != d.topo.Domain || v.topo.Cluster != d.topo.Cluster || !sameSlice(list, d.topo.Servers) && !slices.EqualFunc(list, d.topo.Servers, sameAddresses) {
		self, _ := v.topo.Self(v.key)
		d.zone, d.self, d.partial = nil, self.ID, v.partial
		d.topo = topology.Topology{Domain: v.topo.Domain, Cluster: v.topo.Cluster, Servers: list}
		d.members = map[string]topology.Server{}
		for _, s := range list {
			d.members[s.ID] = s
		}
		maps.DeleteFunc(d.standing, func(id string, _ standing) bool { return d.members[id].ID == "" })
		d.refused = map[string][]registry.Skipped{}
		d.serial++
		zone, err := dnsserver.NewZone(dnsserver.ZoneConfig{
			Apex: v.topo.Domain, Server: d.self, Serial: d.serial, Nodes: d.nodes(v.rotate), Reverse: reverse(v.topo), Partial: v.partial,
			Services: d.changed(nil, services),
		})
		if err != nil {
			return false, err
		}
		d.zone, d.services = zone, services
		return true, nil
	}
	if moved {
		d.serial++
		d.zone, changed = d.zone.WithNodes(d.serial, d.nodes(v.rotate)), true
	}
	if edits := d.changed(d.services, services); len(edits) > 0 || d.partial != v.partial {
		d.services, d.partial = services, v.partial
		d.serial++
		d.zone, changed = d.zone.With(d.serial, d.partial, edits...), true
	}
	return changed, nil
}

// stand notes how the other servers of list stand, and reports whether that changed.
func (d *directory) stand(list []topology.Server, v view) (changed bool) {
	if d.standing == nil {
		d.standing = map[string]standing{}
	}
	for i := range list {
		s := &list[i]
		if s.Key == v.key {
			continue
		}
		was, known := d.standing[s.ID]
		if !known {
			was.class = unmeasured
		}
		now := standing{down: v.down(s.Key)}
		if !v.rotate {
			now.class = nearness(v.times[s.WireGuardIP], was.class)
		}
		if !known || now != was {
			d.standing[s.ID], changed = now, true
		}
	}
	return changed
}

// sameSlice reports whether a and b are one: topologies are never changed.
func sameSlice(a, b []topology.Server) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// sameAddresses reports whether the zone says the same of a and b.
func sameAddresses(a, b topology.Server) bool {
	return a.ID == b.ID && a.Subnet == b.Subnet && a.WireGuardIP == b.WireGuardIP && a.ManagementIP == b.ManagementIP
}

// nodes are the servers as the zone has them: this one, then by class.
func (d *directory) nodes(rotate bool) []dnsserver.Node {
	list := make([]dnsserver.Node, len(d.topo.Servers))
	for i, s := range d.topo.Servers {
		at := d.standing[s.ID]
		n := dnsserver.Node{ID: s.ID, Addrs: []netip.Addr{s.WireGuardIP, s.ManagementIP}, Down: at.down}
		if s.ID != d.self && !rotate {
			n.Rank = 1 + at.class
		}
		list[i] = n
	}
	return list
}

// changed returns what is to be said anew to get from was to now, which are in
// order of name, and notes what is refused of it.
func (d *directory) changed(was, now []*registry.Service) []dnsserver.Service {
	var edits []dnsserver.Service
	refused := false
	set := func(name string, s *registry.Service) {
		edit, skipped := dnsserver.Service{Name: name}, []registry.Skipped(nil)
		if s != nil {
			edit, skipped = d.service(s)
		}
		edits = append(edits, edit)
		refused = refused || len(skipped) > 0 || len(d.refused[name]) > 0
		if delete(d.refused, name); len(skipped) > 0 {
			d.refused[name] = skipped
		}
	}
	for i, j := 0, 0; i < len(was) || j < len(now); {
		switch {
		case i < len(was) && j < len(now) && was[i] == now[j]:
			i, j = i+1, j+1
		case j == len(now) || i < len(was) && was[i].Name < now[j].Name:
			set(was[i].Name, nil)
			i++
		case i == len(was) || now[j].Name < was[i].Name:
			set(now[j].Name, now[j])
			j++
		default:
			set(now[j].Name, now[j])
			i, j = i+1, j+1
		}
	}
	if refused || was == nil {
		d.skipped = nil
		for _, list := range d.refused {
			d.skipped = append(d.skipped, list...)
		}
		slices.SortFunc(d.skipped, func(a, b registry.Skipped) int {
			return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Reason, b.Reason))
		})
	}
	return edits
}

// service returns s as the zone has it. Containers of servers that are removed,
// or not here yet, are not in it; those whose address is not their server's to
// give are refused.
func (d *directory) service(s *registry.Service) (dnsserver.Service, []registry.Skipped) {
	answered := dnsserver.Service{Name: s.Name, Containers: make([]dnsserver.Container, 0, len(s.Containers))}
	var refused []registry.Skipped
	for _, c := range s.Containers {
		server, member := d.members[c.ServerID]
		if !member {
			continue
		}
		if err := registry.CheckAddress(*c, server.Subnet, d.topo.Cluster); err != nil {
			refused = append(refused, registry.Skipped{Table: "containers", Key: c.ID, Reason: err.Error()})
			continue
		}
		v := dnsserver.Container{ID: c.ID, Server: c.ServerID, Project: c.Project, Instance: c.Instance, IP: c.IP}
		if c.Health != registry.Healthy {
			v.Unfit = string(c.Health)
		}
		for _, p := range c.Ports {
			v.Ports = append(v.Ports, dnsserver.Port(p))
		}
		answered.Containers = append(answered.Containers, v)
	}
	return answered, refused
}

func bySkipped(a, b registry.Skipped) int {
	return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Reason, b.Reason))
}
