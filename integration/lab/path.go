//go:build linux

package lab

import (
	"fmt"
	"net"
	"net/netip"
)

// A Path is a way from one server to another that can be bad: an address in the underlay
// where a forwarder listens that does to datagrams what it is told. The far server sees
// them come from another port of the forwarder, one for each source, and answers there.
type Path struct {
	Forward, Back *Direction // towards the far server, and from it

	addr netip.AddrPort
	f    *forwarder
}

// Path makes a new way from one server to the WireGuard port of another, on a network of
// the first one: if possible on one that both are on. The direct way stays: WireGuard
// moves to it when the far server begins, unless that has only a path back as well, or
// the direct way is blocked.
func (l *Lab) Path(from, to *Server) *Path {
	l.tb.Helper()
	if len(from.links) == 0 || len(to.links) == 0 {
		l.tb.Fatalf("path from %s to %s: both need a link", from.Name, to.Name)
	}
	near, far := from.links[0], to.links[0]
	for _, a := range from.links {
		for _, b := range to.links {
			if a.Network == b.Network {
				near, far = a, b
			}
		}
	}
	return near.Network.PathTo(netip.AddrPortFrom(far.Addr(), wireGuardPort))
}

// PathTo makes a new address on the network that leads to target.
func (n *Network) PathTo(target netip.AddrPort) *Path {
	l := n.lab
	l.tb.Helper()
	l.mu.Lock()
	n.paths++
	number := len(l.paths)
	prefix := n.Prefixes[0]
	addr := nth(prefix, top(prefix)-n.paths)
	l.mu.Unlock()

	p := &Path{addr: netip.AddrPortFrom(addr, wireGuardPort)}
	var source *net.UDPAddr // nil: the kernel chooses one that leads to the target
	if prefix.Contains(target.Addr()) {
		source = net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	}
	dial := func() (conn *net.UDPConn, err error) {
		err = l.world.Do(func() error {
			conn, err = net.DialUDP("udp", source, net.UDPAddrFromAddrPort(target))
			return err
		})
		return conn, err
	}
	err := l.world.addAddr(n.bridge, netip.PrefixFrom(addr, addr.BitLen()))
	if err == nil {
		err = l.world.Do(func() error {
			near, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.addr))
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			p.f = newForwarder(near, dial, uint64(number))
			return nil
		})
	}
	if err != nil {
		l.tb.Fatalf("path to %v on %s: %v", target, n.Name, err)
	}
	p.Forward, p.Back = p.f.forward, p.f.back
	track(l, &l.paths, p)
	return p
}

// Addr returns the address and port that lead to the far server: an endpoint.
func (p *Path) Addr() netip.AddrPort { return p.addr }

// Set gives both directions the same faults.
func (p *Path) Set(f Faults) {
	p.Forward.Set(f)
	p.Back.Set(f)
}

func (p *Path) close() { p.f.close() }
