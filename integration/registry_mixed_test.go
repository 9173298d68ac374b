//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// Servers with agents of two versions: all say which runs where, and go on. Where
// the versions do not understand each other, that is said too, and the same agent
// for all mends it.
func TestRegistryMixedAgents(t *testing.T) {
	t.Parallel()
	other := os.Getenv("JIJI_TEST_CORROSION_OTHER")
	if other == "" {
		t.Skip("*** NOT TESTED: agents of two versions in one cluster: JIJI_TEST_CORROSION_OTHER names no second binary ***")
	}
	if _, err := os.Stat(other); err != nil {
		t.Fatalf("JIJI_TEST_CORROSION_OTHER: %v", err)
	}
	c := newCluster(t, 3)
	for i := range c.servers {
		args := c.corrosion()
		if i == 2 {
			args[3] = other
		}
		c.launch(i, args...)
	}
	for _, p := range c.nodes {
		p.WaitReady()
	}
	c.waitUp(c.servers...)
	address := func(i int) string { return fmt.Sprintf("10.210.%d.10", i) }
	name := func(i int) string { return fmt.Sprintf("service%d.jiji", i+1) }
	for i, s := range c.servers {
		s.Run("jiji-node", "service", "register", fmt.Sprintf("service%d", i+1), "--ip", address(i))
		answers(t, s, i, name(i), 3*time.Second, address(i))
	}
	c.step("Name the versions", func() {
		for _, s := range c.servers {
			line := warned(t, s, time.Minute, "registry: agents of different versions: ", " on web1, web2", " on web3")
			t.Logf("%s: %s", s.Name, line)
			agents := status(t, s).Registry.Agents
			if len(agents) != 2 || slices.ContainsFunc(agents, func(a control.PeerAgent) bool { return a.Version == "" }) {
				t.Errorf("%s knows the agents %+v", s.Name, agents)
			}
		}
		for i, p := range c.nodes {
			if n := strings.Count(p.Log(), "agents of different versions"); n != 1 {
				t.Errorf("web%d logged it %d times:\n%s", i+1, n, p.Log())
			}
		}
	})
	all := func(limit time.Duration) {
		t.Helper()
		for i, s := range c.servers {
			for j := range c.servers {
				answers(t, s, i, name(j), limit, address(j))
			}
		}
	}
	apart := false
	c.step("Together or apart", func() {
		lab.Eventually(t, 4*time.Minute, "web1's agent sees web3's, or says that it does not", func() error {
			st, err := tryStatus(t, c.servers[0])
			if err != nil {
				return err
			}
			if apart = slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, "does not see that of web3") }); apart || st.Registry.Members == 2 {
				return nil
			}
			return errors.New("neither")
		})
	})
	if apart {
		t.Log("the two versions DO NOT UNDERSTAND EACH OTHER")
		t.Log(warned(t, c.servers[0], time.Minute, "the agent of web1 (", ") does not see that of web3 ("))
		t.Log(warned(t, c.servers[2], time.Minute, "the agent of web3 (", ") does not see that of web1 (", "), web2 ("))
		for i, s := range c.servers[:2] { // the majority is whole
			answers(t, s, i, name(0), 10*time.Second, address(0))
			answers(t, s, i, name(1), 10*time.Second, address(1))
		}
		answers(t, c.servers[2], 2, name(2), 3*time.Second, address(2))
	} else {
		all(30 * time.Second)
	}
	for i, s := range c.servers {
		reach(t, s.Host, wireGuardIP((i+1)%3), 5*time.Second)
		reach(t, s.Host, wireGuardIP((i+2)%3), 5*time.Second)
	}
	c.step("The same for all", func() {
		c.nodes[2].Stop()
		c.launch(2, c.corrosion()...).WaitReady()
		// An older agent cannot read the database of a newer one.
		refused := ""
		waitRegistry(t, c.servers[2], time.Minute, func(r control.Registry) error {
			if refused = r.Error; r.State == "up" || strings.Contains(refused, "its database was last used by ") {
				return nil
			}
			return fmt.Errorf("registry is %+v", r)
		})
		if refused != "" {
			t.Log(refused)
			c.nodes[2].Stop()
			c.servers[2].Run("sh", "-c", "rm -rf /var/lib/jiji/corrosion/state.db*")
			c.launch(2, c.corrosion()...).WaitReady()
		}
		for _, s := range c.servers {
			c.joined(s)
		}
		all(30 * time.Second)
		for _, s := range c.servers {
			lab.Eventually(t, 90*time.Second, s.Name+" has nothing to say of versions", func() error {
				st, err := tryStatus(t, s)
				if err == nil && (len(st.Warnings) > 0 || st.Registry.Members != 2) {
					err = fmt.Errorf("it warns %q, sees %d others", st.Warnings, st.Registry.Members)
				}
				return err
			})
		}
	})
}
