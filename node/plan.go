package node

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const maxLabel = 63 // RFC 1035, section 2.3.4

const keepalive = 25 * time.Second // DESIGN: within the shortest common lifetime of a NAT mapping

// A plan is everything that follows from what the node knows.
type plan struct {
	peers      []tunnel.Peer
	candidates map[wgkey.Public][]netip.AddrPort
	routes     []host.Route
	zone       dnsserver.ZoneConfig
	refused    []registry.Skipped // containers that are not answered
}

// makePlan says what tunnel, monitor, host and name server are to hold. It
// does no I/O. Without ipv6, which a machine may have disabled, there are no
// routes to management addresses. What mtu returns for a peer is in bytes; 0: the
// tunnel's. registered says that t is kept by a registry, leaving
// which servers were removed from it just now.
func makePlan(t topology.Topology, key wgkey.Public, containers iter.Seq[*registry.Container], ipv6, registered bool, leaving func(wgkey.Public) bool, mtu func(wgkey.Public) int) plan {
	self, _ := t.Self(key)
	p := plan{candidates: map[wgkey.Public][]netip.AddrPort{}}
	for _, s := range t.Servers {
		// One that lost its subnet to another, or was removed just now, can be told
		// so only through the mesh: the registry's gossip still reaches it.
		told := registered && (leaving(s.Key) || s.RemovedAt.IsZero() && !s.Subnet.IsValid())
		if s.Key == key || !self.RemovedAt.IsZero() || !told && (!s.RemovedAt.IsZero() || !s.Subnet.IsValid()) {
			continue
		}
		peer := tunnel.Peer{Key: s.Key, AllowedIPs: []netip.Prefix{host32(s.ManagementIP)}, Keepalive: keepalive, MTU: mtu(s.Key)}
		if !told {
			peer.AllowedIPs = slices.Insert(peer.AllowedIPs, 0, s.Subnet)
			p.routes = append(p.routes, host.Route{Dst: s.Subnet, Src: self.WireGuardIP, MTU: mtu(s.Key)})
		}
		p.peers = append(p.peers, peer)
		p.candidates[s.Key] = s.Endpoints
		if ipv6 {
			p.routes = append(p.routes, host.Route{Dst: host32(s.ManagementIP), Src: self.ManagementIP, MTU: routeMTU6(mtu(s.Key))})
		}
	}
	p.zone = dnsserver.ZoneConfig{Apex: t.Domain, Server: nodeName(self), Reverse: reverse(t)}
	p.zone.Names, p.refused = names(t, self, containers)
	return p
}

// routeMTU6 is mtu on a route of IPv6, where less than its minimum has no meaning.
func routeMTU6(mtu int) int {
	if mtu == 0 {
		return 0
	}
	return max(mtu, minMTU6)
}

// reverse are the prefixes whose reverse names the zone holds.
func reverse(t topology.Topology) []netip.Prefix {
	return []netip.Prefix{t.Cluster, ipplan.ManagementPrefix}
}

// members are the servers that are in the mesh and have their addresses.
func members(t topology.Topology) []topology.Server {
	var in []topology.Server
	for _, s := range t.Servers {
		if s.RemovedAt.IsZero() && s.Subnet.IsValid() {
			in = append(in, s)
		}
	}
	return in
}

func host32(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func nodeName(s topology.Server) string { return strings.ToLower(s.ID) + ".node" }

// names are the owner names of the zone, in no order: of all servers, and of the
// containers on them. A container that is not healthy keeps its names, without
// address; one whose address is not its server's to give has none, see refused.
func names(t topology.Topology, self topology.Server, containers iter.Seq[*registry.Container]) (all []dnsserver.Name, refused []registry.Skipped) {
	byOwner := map[string]*dnsserver.Name{}
	add := func(owner string, ptr bool, addrs ...dnsserver.Addr) {
		owner = strings.ToLower(owner)
		n := byOwner[owner]
		if n == nil {
			n = &dnsserver.Name{Owner: owner}
			byOwner[owner] = n
		}
		n.Addrs = append(n.Addrs, addrs...)
		n.PTR = n.PTR || ptr
	}
	servers := map[string]topology.Server{}
	for _, s := range members(t) {
		servers[s.ID] = s
		add(nodeName(s), true, dnsserver.Addr{IP: s.WireGuardIP}, dnsserver.Addr{IP: s.ManagementIP})
	}
	for c := range containers {
		server, member := servers[c.ServerID]
		if !member { // removed, or not here yet
			continue
		}
		if err := registry.CheckAddress(*c, server.Subnet, t.Cluster); err != nil {
			refused = append(refused, registry.Skipped{Table: "containers", Key: c.ID, Reason: err.Error()})
			continue
		}
		var addrs []dnsserver.Addr
		if c.Health == registry.Healthy {
			addrs = []dnsserver.Addr{{IP: c.IP, Rank: rank(*c, self)}}
		}
		alone := containerName(*c)
		for _, owner := range ownerNames(*c) {
			add(owner, owner == alone, addrs...)
		}
	}
	all = make([]dnsserver.Name, 0, len(byOwner))
	for _, n := range byOwner {
		all = append(all, *n)
	}
	return all, refused
}

// rank puts this server's own containers first.
func rank(c registry.Container, self topology.Server) int {
	if c.ServerID == self.ID {
		return 0
	}
	return 1
}

// ownerNames are the names that lead to c, relative to the domain (DESIGN 5). One
// that is too long for a label is none: the others still lead there.
func ownerNames(c registry.Container) []string {
	owners := []string{c.Service, c.Service + "." + c.ServerID, containerName(c)}
	if c.Project != "" {
		if name := c.Project + "-" + c.Service; len(name) <= maxLabel {
			owners = append(owners, name)
		}
		if name := c.Project + "-" + c.Service + "-" + c.Instance; c.Instance != "" && len(name) <= maxLabel {
			owners = append(owners, name)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}

// containerName is the name of c alone, which its address points back to.
func containerName(c registry.Container) string {
	return strings.ReplaceAll(c.ID[:min(len(c.ID), 12)], ".", "-") + "." + c.Service
}

// ipv6Endpoints reports whether any server may have to be reached in IPv6.
func ipv6Endpoints(servers []topology.Server) bool {
	return slices.ContainsFunc(servers, func(s topology.Server) bool {
		return slices.ContainsFunc(s.Endpoints, func(ep netip.AddrPort) bool { return ep.Addr().Is6() })
	})
}
