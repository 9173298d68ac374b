//go:build linux

package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

// A cluster is a mesh whose registry is Corrosion: each node runs a real agent.
type cluster struct {
	*mesh
	bin string
}

// newCluster makes n servers that know each other; no node runs yet.
func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	bin := agenttest.Binary(t)
	c := &cluster{newMesh(t, n), bin}
	for _, s := range c.servers {
		s.SetResolvers(c.lan.Gateway()) // nobody answers there, but without one an agent reads no peers
	}
	return c
}

// corrosion are the arguments of run.
func (c *cluster) corrosion() []string {
	return []string{"--registry", "corrosion", "--corrosion-bin", c.bin}
}

// startAll runs all nodes, and waits until each has joined the registry.
func (c *cluster) startAll() {
	c.t.Helper()
	c.mesh.startAll(c.corrosion()...)
	for _, s := range c.servers {
		c.joined(s)
	}
}

// joined waits until the server's node follows the registry and has written its
// own rows, and all members see each other.
func (c *cluster) joined(s *lab.Server) {
	c.t.Helper()
	waitRegistry(c.t, s, time.Minute, func(r control.Registry) error {
		if r.State != "up" || r.Pending != 0 || r.Error != "" {
			return fmt.Errorf("registry is %+v", r)
		}
		return nil
	})
}

// waitRegistry waits until the status of the registry pleases ok.
func waitRegistry(t *testing.T, s *lab.Server, limit time.Duration, ok func(control.Registry) error) {
	t.Helper()
	lab.Eventually(t, limit, "registry of "+s.Name, func() error {
		st, err := tryStatus(t, s)
		if err != nil {
			return err
		}
		return ok(st.Registry)
	})
}

// answers waits until a name of the mesh has just these addresses on the server.
func answers(t *testing.T, s *lab.Server, i int, name string, limit time.Duration, want ...string) {
	t.Helper()
	slices.Sort(want)
	lab.Eventually(t, limit, fmt.Sprintf("%s answers %v on %s", name, want, s.Name), func() error {
		out, err := s.Try("dig", "+short", "+tries=1", "+time=1", "@"+wireGuardIP(i), name)
		if err != nil {
			return err
		}
		got := strings.Fields(out)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("it answers %v", got)
		}
		return nil
	})
}

// What one server registers, all answer; what it takes back, none does.
func TestClusterAnswersOnAllServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	c.step("Register", func() {
		c.servers[0].Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--project", "shop", "--id", "first")
		c.servers[1].Run("jiji-node", "service", "register", "api", "--ip", "10.210.1.10")
		for i, s := range c.servers {
			answers(t, s, i, "api.jiji", 5*time.Second, "10.210.0.10", "10.210.1.10")
			answers(t, s, i, "shop-api.jiji", 5*time.Second, "10.210.0.10")
		}
	})
	c.step("Deregister", func() {
		c.servers[0].Run("jiji-node", "service", "deregister", "first")
		for i, s := range c.servers {
			answers(t, s, i, "api.jiji", 5*time.Second, "10.210.1.10")
		}
	})
}

// Show 6 of the names: with the registry gone, a node that is restarted answers what it
// knew at once; one that never knew anything says so, and not that there is none.
func TestDNSShow6RegistryGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	web1, web3 := c.servers[0], c.servers[2]
	for i := range 2 {
		c.start(i, c.corrosion()...)
	}
	c.servers[1].Run("jiji-node", "service", "register", "api", "--ip", "10.210.1.10")
	answers(t, web1, 0, "api.jiji", 30*time.Second, "10.210.1.10")
	c.nodes[0].Stop()
	gone := []string{"--registry", "corrosion", "--corrosion-url", "http://127.0.0.1:18080"}
	c.start(0, gone...)
	for name, want := range map[string]string{"api.jiji": "NOERROR aa 10.210.1.10", "web2.node.jiji": "NOERROR aa 10.210.1.1"} {
		if got := ask(t, web1.Host, "@10.210.0.1", name); got != want {
			t.Errorf("%s is %s on the node that knew it, want %s", name, got, want)
		}
	}
	c.start(2, gone...)
	for _, name := range []string{"api.jiji", "nothing.jiji"} {
		if got := ask(t, web3.Host, "@10.210.2.1", name); got != "SERVFAIL" {
			t.Errorf("%s is %s on the node that knows nothing yet, want SERVFAIL", name, got)
		}
	}
}

// A server that does not answer is left out of a name that others have, too, and
// is in it again when it does.
func TestDNSLeavesOutServersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1 := c.servers[0]
	for i, ip := range []string{"", "10.210.1.10", "10.210.2.10"} {
		if i > 0 {
			c.servers[i].Run("jiji-node", "service", "register", "api", "--ip", ip)
		}
	}
	c.servers[1].Run("jiji-node", "service", "register", "alone", "--ip", "10.210.1.11")
	answers(t, web1, 0, "api.jiji", 5*time.Second, "10.210.1.10", "10.210.2.10")
	answers(t, web1, 0, "alone.jiji", 5*time.Second, "10.210.1.11")
	c.lan.Cut(web1, c.servers[1])
	waitPeer(t, web1, "web2", 60*time.Second, func(p control.Peer) bool { return p.State == "down" })
	answers(t, web1, 0, "api.jiji", 2*time.Second, "10.210.2.10")
	answers(t, web1, 0, "alone.jiji", 0, "10.210.1.11") // better than nothing
	if out := web1.Run("jiji-node", "resolve", "api"); !strings.Contains(out, "server web2 does not answer") {
		t.Errorf("resolve says nothing of web2:\n%s", out)
	}
	c.lan.Heal(web1, c.servers[1])
	waitPeer(t, web1, "web2", 60*time.Second, func(p control.Peer) bool { return p.State == "up" })
	answers(t, web1, 0, "api.jiji", 2*time.Second, "10.210.1.10", "10.210.2.10")
}
