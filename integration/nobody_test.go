//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/host/firewall"
)

// A nodeLab is a firewallLab whose servers run nodes: a, which has the firewall, node 0.
type nodeLab struct {
	*firewallLab
	m    *mesh
	kind firewallKind
}

// onEachNode runs a test with running nodes, on a machine of each kind of firewall with
// an engine's rules on it.
func onEachNode(t *testing.T, test func(*testing.T, *nodeLab)) {
	for _, kind := range firewallKinds {
		t.Run(kind.backend.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, 2)
			n := &nodeLab{&firewallLab{Lab: m.Lab, t: t, echoes: map[*lab.Host]*echo{}, lan: m.lan, a: m.servers[0], b: m.servers[1]}, m, kind}
			n.near = n.Server("near").On(n.lan)
			n.ca, n.cb = n.a.Container("ca", "10.210.0.10"), n.b.Container("cb", "10.210.1.10")
			n.ca2, n.other = n.a.Container("ca2", "10.210.0.11"), n.a.ContainerOn("docker0", "other", "172.17.0.2")
			n.wanted.WireGuardIP, n.server6 = netip.MustParseAddr("10.210.0.1"), netip.MustParseAddr("2001:db8::1")
			n.a.Run("ip", "-6", "addr", "add", n.server6.String()+"/64", "dev", "eth0", "nodad")
			n.near.Run("ip", "-6", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
			n.a.Run("sh", "-ec", "true;"+kind.setUp)
			n.a.Run("sh", "-ec", kind.engine)
			m.startAll()
			n.management = status(t, n.a).Server.ManagementIP
			n.trespass()
			for _, h := range []*lab.Host{n.a.Host, n.b.Host} { // DNS and WireGuard are the node's
				n.echoes[h] = n.echo(h, servicePort, 8786, 8787)
			}
			for _, h := range []*lab.Host{n.near.Host, n.ca.Host, n.ca2.Host, n.cb.Host, n.other.Host} {
				n.echoes[h] = n.echo(h, servicePort)
			}
			test(t, n)
		})
	}
}

// restart starts node a again, with arguments.
func (n *nodeLab) restart(args ...string) {
	n.t.Helper()
	n.m.nodes[0].Stop()
	n.m.start(0, args...)
	reach(n.t, n.ca.Host, n.cb.Addr.String(), meshLimit)
}

// echoed leaves those out that no echo serves.
func echoed(ways []way) []way {
	return slices.DeleteFunc(ways, func(w way) bool { return w.to.Port() == 53 || w.to.Port() == 51820 })
}

// asks checks who is answered by a's name server, by UDP and TCP, also when it gives out
// an address of the mesh as its own.
func (n *nodeLab) asks() {
	n.t.Helper()
	for _, transport := range []string{"+notcp", "+tcp"} {
		ask := func(h *lab.Host, want bool, more ...string) {
			n.t.Helper()
			out, err := h.Try("dig", append([]string{"+short", "+tries=1", "+time=1", transport, "@" + n.wanted.WireGuardIP.String(), "web2.node.jiji"}, more...)...)
			if answered := err == nil && strings.TrimSpace(out) == "10.210.1.1"; answered != want {
				n.t.Errorf("%s asks %s %s: %q, %v", h.Name, transport, more, out, err)
			}
		}
		ask(n.ca.Host, true)
		ask(n.cb.Host, true)
		ask(n.near.Host, false)
		ask(n.near.Host, false, "-b", spoofed4.String())
	}
}

// services checks who reaches what listens on a's management address by TCP: the
// agent's metrics, and what nodes say to one another.
func (n *nodeLab) services() {
	n.t.Helper()
	for _, port := range []uint16{8786, 8787} {
		var l net.Listener
		to := at(n.management, port).String()
		if err := n.a.Do(func() (err error) {
			l, err = net.Listen("tcp", to)
			return err
		}); err != nil {
			n.t.Fatal(err)
		}
		for _, c := range []struct {
			h    *lab.Host
			from netip.Addr
			want bool
		}{{n.b.Host, netip.Addr{}, true}, {n.near.Host, netip.Addr{}, false}, {n.near.Host, spoofed6, false}} {
			err := c.h.Do(func() error {
				d := net.Dialer{Timeout: silentLimit}
				if c.from.IsValid() {
					d.LocalAddr = net.TCPAddrFromAddrPort(at(c.from, 0))
				}
				if c.want {
					d.Timeout = askLimit
				}
				conn, err := d.Dial("tcp", to)
				if err == nil {
					conn.Close()
				}
				return err
			})
			if (err == nil) != c.want {
				n.t.Errorf("%s as %v connects to %s: %v", c.h.Name, c.from, to, err)
			}
		}
		l.Close()
	}
}

// Show 2: nobody gets in, with running nodes.
func TestShow2NobodyGetsIn(t *testing.T) {
	onEachNode(t, func(t *testing.T, n *nodeLab) {
		check := func() {
			t.Helper()
			n.pass(echoed(n.mesh(n.ca.Addr))...)
			n.pass(n.engine()...)
			n.asks()
			n.services()
		}
		check()
		n.stop(echoed(n.outside())...)

		n.restart("--forward-from", "docker0")
		n.pass(n.fromOther()...)
		check()
		n.stop(echoed(n.outside())[len(n.fromOther()):]...)

		n.restart()
		check()
		n.stop(echoed(n.outside())...)

		n.m.nodes[0].Kill9() // what protects stays
		n.pass(n.engine()...)
		n.stop(echoed(n.outside())...)
	})
}

// Show 3: the source addresses of containers arrive unchanged, whatever masquerades them
// and since when; with --nat masquerade it is the WireGuard IP that is seen.
func TestShow3SourceAddresses(t *testing.T) {
	onEachNode(t, func(t *testing.T, n *nodeLab) {
		nft := func(i int, priority string) string {
			return fmt.Sprintf("nft add table ip foreign%d; nft 'add chain ip foreign%[1]d post { type nat hook postrouting priority %s; }'; nft add rule ip foreign%[1]d post ip saddr 10.210.0.0/24 masquerade", i, priority)
		}
		masquerades := []string{nft(1, "srcnat"), nft(2, "srcnat - 1"), nft(3, "-150")}
		if n.kind.backend != firewall.NFTables {
			masquerades = append(masquerades, "iptables -t nat -A POSTROUTING -s 10.210.0.0/24 -j MASQUERADE", "iptables -t nat -I POSTROUTING -s 10.210.0.0/24 -j MASQUERADE")
		}
		ways := func(source netip.Addr) []way { return n.mesh(source)[:4] }
		n.pass(ways(n.ca.Addr)...)
		for _, m := range masquerades { // after ours
			n.a.Run("sh", "-ec", m)
			n.pass(ways(n.ca.Addr)...)
			if t.Failed() {
				t.Fatalf("with %s", m)
			}
		}
		n.a.Run("jiji-node", "down")
		n.m.nodes[0].Wait(5 * time.Second)
		n.m.start(0) // before ours
		reach(t, n.ca.Host, n.cb.Addr.String(), meshLimit)
		n.pass(ways(n.ca.Addr)...)
		n.restart("--nat", "masquerade")
		n.pass(ways(n.wanted.WireGuardIP)...)
		n.restart()
		n.pass(ways(n.ca.Addr)...)
	})
}
