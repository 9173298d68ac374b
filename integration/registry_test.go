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
