package node

import (
	"net/netip"
	"slices"
	"time"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const keepalive = 25 * time.Second // DESIGN: within the shortest common lifetime of a NAT mapping

// A plan is what follows from the list of servers, but for the zone: see directory.
type plan struct {
	peers      []tunnel.Peer
	candidates map[wgkey.Public][]netip.AddrPort
	routes     []host.Route
}

// makePlan says what tunnel, monitor and host are to hold. It
// does no I/O. Without ipv6, which a machine may have disabled, there are no
// routes to management addresses. What mtu returns for a peer is in bytes; 0: the
// tunnel's. registered says that t is kept by a registry, leaving
// which servers were removed from it just now.
func makePlan(t topology.Topology, key wgkey.Public, ipv6, registered bool, leaving func(wgkey.Public) bool, mtu func(wgkey.Public) int) plan {
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

// ipv6Endpoints reports whether any server may have to be reached in IPv6.
func ipv6Endpoints(servers []topology.Server) bool {
	return slices.ContainsFunc(servers, func(s topology.Server) bool {
		return slices.ContainsFunc(s.Endpoints, func(ep netip.AddrPort) bool { return ep.Addr().Is6() })
	})
}
