//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// An underlay of IPv6 alone leaves 20 bytes less for a packet.
func TestMeshOverIPv6(t *testing.T) {
	t.Parallel()
	m := newMeshOn(t, 2, "2001:db8::/64")
	a, b := m.servers[0].Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	for _, size := range []int{1420, 1421} {
		_, err := a.Try("ping", "-n", "-c1", "-W2", "-Mdo", "-s", fmt.Sprint(size-28), b.Addr.String())
		if fits := size == 1420; fits != (err == nil) {
			t.Errorf("a packet of %d bytes: %v", size, err)
		}
	}
	transfer(t, a, b, 1<<20, 10*time.Second)
	m.servers[0].Run("ping", "-n", "-c1", "-W2", status(t, m.servers[1]).Server.ManagementIP.String())
	if got := peer(t, m.servers[0], "web2").Endpoint; got != m.servers[1].Endpoint(m.lan) {
		t.Errorf("the endpoint of web2 is %v, want %v", got, m.servers[1].Endpoint(m.lan))
	}
}

// Links go away and come back; the mesh comes back with them.
func TestLinkGoesAndComes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	a, b := m.servers[0].Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	ping := startPing(t, a.Host, b.Addr.String())
	link := m.servers[1].Link(m.lan)
	for _, c := range []struct{ away, back func() }{{link.Down, link.Up}, {link.Unplug, link.Plug}} {
		c.away()
		had := len(ping.answers())
		lab.Eventually(t, 5*time.Second, "the ping stands still", func() error {
			now := len(ping.answers())
			if _, err := a.Try("ping", "-n", "-c1", "-W1", b.Addr.String()); err == nil || now != had {
				had = now
				return fmt.Errorf("%d answers", now)
			}
			return nil
		})
		c.back()
		ping.resumes(8 * time.Second)
	}
	m.waitUp(m.servers...)
}

// A container engine makes its network anew, with the same address as the node's.
func TestBridgeIsMadeAnew(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	a, b := web1.Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	for range 3 {
		reach(t, a.Host, b.Addr.String(), 5*time.Second)
		web1.Run("ip", "link", "del", "jiji-br0")
		web1.Run("ping", "-n", "-c1", "-W2", b.Addr.String())
		if got := ask(t, web1.Host, "@10.210.0.1", "web2.node.jiji"); got != "NOERROR aa 10.210.1.1" {
			t.Errorf("without the bridge web2.node.jiji is %s", got)
		}
		web1.Run("ip", "link", "add", "jiji-br0", "type", "bridge")
		web1.Run("ip", "address", "add", "10.210.0.1/24", "dev", "jiji-br0")
		web1.Run("ip", "link", "set", "veth-a", "master", "jiji-br0")
		web1.Run("ip", "link", "set", "jiji-br0", "up")
		// As a new container, it does not know the old bridge, and asks first thing.
		a.Run("ip", "neigh", "flush", "all")
		if got := ask(t, a.Host, "web2.node.jiji"); got != "NOERROR aa 10.210.1.1" {
			t.Errorf("behind the new bridge web2.node.jiji is %s", got)
		}
	}
	reach(t, b.Host, a.Addr.String(), 5*time.Second)
	if log := m.nodes[0].Log(); strings.Contains(log, "level=ERROR") {
		t.Errorf("errors in the log:\n%s", log)
	}
}

// All at once: nobody has a session left, and everybody calls everybody. Where two
// calls cross, and each end has another session, one would be deaf for 5 or 11 s.
func TestAllServersRestartAtOnce(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 5)
	m.startAll()
	for _, end := range []func(*lab.Process){(*lab.Process).Kill9, (*lab.Process).Stop, (*lab.Process).Kill9} {
		for _, p := range m.nodes {
			end(p)
		}
		start := time.Now()
		m.startAll()
		for _, s := range m.servers {
			for i := range m.servers {
				s.Run("ping", "-n", "-c1", "-W2", wireGuardIP(i))
			}
		}
		t.Logf("each reaches each after %v", time.Since(start).Round(time.Millisecond))
	}
}

// What somebody takes from under a node is told where an operator looks, one
// line for each thing.
func TestStatusSaysWhatIsGone(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	m.startAll()
	web1 := m.servers[0]
	warned := func(texts ...string) {
		t.Helper()
		lab.Eventually(t, 10*time.Second, "the warnings "+strings.Join(texts, ", "), func() error {
			got := status(t, web1).Warnings
			if len(got) != len(texts) {
				return fmt.Errorf("have %q", got)
			}
			for i, text := range texts {
				if !strings.Contains(got[i], text) || strings.Contains(got[i], "\n") {
					return fmt.Errorf("have %q", got)
				}
			}
			return nil
		})
	}
	warned()
	sh(web1, "mkdir /var/lib/gone && mv /var/lib/jiji/registry.db* /var/lib/gone/")
	warned("the file was removed")
	sh(web1, "mv /var/lib/gone/* /var/lib/jiji/")
	warned()

	// Two at once, each on a line of its own: a file that cannot be taken over, and a
	// route that another program fights over.
	good := web1.ReadFile(stateFile)
	replaceFile(t, web1, stateFile, "{")
	fighter := web1.Spawn("sh", "-c", "while :; do ip route del unreachable 10.210.0.0/16 2>/dev/null; sleep 0.05; done")
	lab.Eventually(t, 20*time.Second, "the fight is told", func() error {
		if got := status(t, web1).Warnings; len(got) != 2 {
			return fmt.Errorf("have %q", got)
		}
		return nil
	})
	warned("route unreachable 10.210.0.0/16", stateFile+":1:1: unexpected end")
	fighter.Kill9()
	replaceFile(t, web1, stateFile, good)
	warned("route unreachable 10.210.0.0/16") // for some minutes
	m.waitUp(m.servers...)

	web1.Run("rm", "-r", "/run/jiji")
	lab.Eventually(t, 5*time.Second, "the control socket is back", func() error {
		_, err := web1.Try("jiji-node", "status")
		return err
	})
}
