//go:build linux

package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

const (
	containerBridge = "jiji-br0"
	wireGuardPort   = 51820
)

// A Server is a machine on one or more networks. It runs nothing until it is told to:
// without a node it is a plain neighbour of the others.
type Server struct {
	*Host
	links   []*Link
	bridges map[string]netlink.Link
}

// Server makes a machine whose host name is name, with no links yet.
func (l *Lab) Server(name string) *Server {
	l.tb.Helper()
	s := &Server{Host: l.host(name), bridges: make(map[string]netlink.Link)}
	track(l, &l.servers, s)
	return s
}

// host makes a host whose name no other one has.
func (l *Lab) host(name string) *Host {
	l.tb.Helper()
	for _, h := range l.hosts {
		if h.Name == name {
			l.tb.Fatalf("make host %s: the lab has one of that name", name)
		}
	}
	h, err := newHost(l, name)
	if err != nil {
		l.tb.Fatalf("%v", err)
	}
	track(l, &l.hosts, h)
	return h
}

// On connects the server to networks: its eth0 is on the first one, eth1 on the next.
func (s *Server) On(networks ...*Network) *Server {
	s.lab.tb.Helper()
	for _, n := range networks {
		k, err := n.connect(s, len(s.links))
		if err != nil {
			s.lab.tb.Fatalf("connect %s to %s: %v", s.Name, n.Name, err)
		}
		s.links = append(s.links, k)
	}
	return s
}

// Link returns the server's connection to a network.
func (s *Server) Link(n *Network) *Link {
	s.lab.tb.Helper()
	return n.link(s)
}

// Links returns the server's connections, in the order in which they were made.
func (s *Server) Links() []*Link { return s.links }

// Addr returns the server's address on a network.
func (s *Server) Addr(n *Network) netip.Addr {
	s.lab.tb.Helper()
	return s.Link(n).Addr()
}

// Endpoint returns the server's address on a network with the port of WireGuard.
func (s *Server) Endpoint(n *Network) netip.AddrPort {
	s.lab.tb.Helper()
	return netip.AddrPortFrom(s.Addr(n), wireGuardPort)
}

// SetResolvers makes addresses the name servers of the server itself. It has none at first.
func (s *Server) SetResolvers(addrs ...netip.Addr) {
	s.lab.tb.Helper()
	var text string
	for _, a := range addrs {
		text += fmt.Sprintf("nameserver %v\n", a)
	}
	s.WriteFile("/etc/resolv.conf", text)
}

// A Container is a host behind a server's bridge, as an engine would make one.
type Container struct {
	*Host
	Server *Server
	Addr   netip.Addr
}

// Container makes a container on the server's mesh bridge, jiji-br0, which owns the /24
// of the address and has its .1, and is made now if it is not there. The container's name
// server is that .1, its search list "jiji" with ndots:1, its interface eth0.
func (s *Server) Container(name, addr string) *Container {
	s.lab.tb.Helper()
	return s.ContainerOn(containerBridge, name, addr)
}

// ContainerOn is Container on another bridge, such as an engine's own: "docker0".
func (s *Server) ContainerOn(bridge, name, addr string) *Container {
	tb := s.lab.tb
	tb.Helper()
	a, err := netip.ParseAddr(addr)
	if err != nil || !a.Is4() {
		tb.Fatalf("make container %s on %s: address %q, want an IPv4 address", name, s.Name, addr)
	}
	subnet := netip.PrefixFrom(a, 24).Masked()
	gateway := netip.PrefixFrom(nth(subnet, 1), 24)
	if s.bridges[bridge] == nil {
		if s.bridges[bridge], err = s.addBridge(bridge, []netip.Prefix{gateway}); err != nil {
			tb.Fatalf("make container %s on %s: %v", name, s.Name, err)
		}
	}
	c := &Container{Host: s.lab.host(name), Server: s, Addr: a}
	link, err := c.plug("eth0", s.Host, interfaceName("veth-"+name), s.bridges[bridge])
	if err == nil {
		err = c.addAddr(link, netip.PrefixFrom(a, 24))
	}
	if err == nil {
		err = c.nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.Addr().AsSlice()})
	}
	if err != nil {
		tb.Fatalf("make container %s on %s: %v", name, s.Name, err)
	}
	c.WriteFile("/etc/resolv.conf", fmt.Sprintf("nameserver %v\nsearch jiji\noptions ndots:1\n", gateway.Addr()))
	return c
}
