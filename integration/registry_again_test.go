//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// A server that was removed takes part again when it is added to one member, and
// that one to it, in either order: with what it had before, and until it is
// removed again.
func TestRegistryServerAddedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web2, web3 := c.servers[0], c.servers[1], c.servers[2]
	key := keyOf(t, web3)
	c.register(2, "api", "three", "10.210.2.10")
	remove := func() {
		t.Helper()
		web1.Run("jiji-node", "server", "remove", "--force", "web3")
		lab.Eventually(t, 20*time.Second, "web3 leaves", func() error {
			st, err := tryStatus(t, web3)
			if err == nil && (st.State != "removed" || len(st.Peers) != 0) {
				err = fmt.Errorf("it is %s with %d peers", st.State, len(st.Peers))
			}
			return err
		})
		for _, s := range c.servers[:2] {
			lab.Eventually(t, 10*time.Second, "web3 is no peer of "+s.Name, func() error {
				if _, ok := peerOf(status(t, s), "web3"); ok {
					return errors.New("it is")
				}
				return nil
			})
		}
	}
	started := 0 // times that web3 started again by itself
	back := func() {
		t.Helper()
		lab.Eventually(t, 20*time.Second, "web3 starts again", func() error {
			if n := strings.Count(c.nodes[2].Log(), "starting again as a member"); n != started {
				return fmt.Errorf("%d times, want %d", n, started)
			}
			return nil
		})
		for _, s := range c.servers[:2] {
			peerIs(t, s, "web3", "10.210.2.0/24", key, 20*time.Second)
		}
		for _, s := range c.servers {
			c.joined(s)
		}
		for i, s := range c.servers {
			answers(t, s, i, "api.jiji", 20*time.Second, "10.210.2.10")
		}
		lab.Eventually(t, 20*time.Second, "web3 is a member", func() error {
			st, err := tryStatus(t, web3)
			if err == nil && (st.State != "ready" || len(st.Peers) != 2 || len(st.Warnings) > 0) {
				err = fmt.Errorf("it is %s with %d peers and warns %q", st.State, len(st.Peers), st.Warnings)
			}
			return err
		})
		if row := fmt.Sprint(c.read(web2, "SELECT id, subnet, removed_at FROM servers WHERE wireguard_pubkey = '"+key.String()+"'")); row != "[[web3 10.210.2.0/24 <nil>]]" {
			t.Errorf("its row is %s", row)
		}
	}
	entry := sh(web3, "jiji-node init > again.json; cat again.json")
	c.step("Remove", remove)
	c.step("Add it on a member first", func() {
		if now := sh(web3, "jiji-node init"); now != entry {
			t.Errorf("its entry was\n%s, is\n%s", entry, now)
		}
		web1.WriteFile("/run/again.json", entry)
		sh(web1, "jiji-node server add again.json")
		sh(web3, "jiji-node server add web1.json")
		started = 1
		back()
	})
	c.step("Restart", func() {
		c.nodes[2].Stop()
		c.launch(2, c.corrosion()...).WaitReady()
		started = 0
		back()
	})
	c.step("Remove again", remove)
	c.step("Add the member on it first", func() {
		sh(web3, "jiji-node server add web1.json")
		t.Log(warned(t, web3, 30*time.Second, "was removed at", "no member has added it again", "jiji-node server add"))
		sh(web1, "jiji-node server add again.json")
		started = 1
		back()
	})
	c.step("Remove while it is down", func() {
		c.nodes[2].Stop()
		web1.Run("jiji-node", "server", "remove", "--force", "web3")
		sh(web3, "jiji-node server add web1.json") // it does not know yet: nothing to set aside
		c.launch(2, c.corrosion()...).WaitReady()
		// Nobody tells it: its peers have dropped it.
		sh(web1, "jiji-node server add again.json")
		started = 0
		back()
	})
}

// One that was removed and set up anew is another server, under another id.
func TestRegistryServerAddedWithNewKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	web1, web3, old := c.servers[0], c.servers[2], keyOf(t, c.servers[2])
	web1.Run("jiji-node", "server", "remove", "--force", "web3")
	c.wipe(2)
	sh(web3, "jiji-node server add web1.json; jiji-node init --name web3 --endpoint "+web3.Addr(c.lan).String()+" > again.json")
	web1.WriteFile("/run/again.json", web3.ReadFile("/run/again.json"))
	said := sh(web1, "jiji-node server add again.json")
	if !strings.Contains(said, "web3-1") || !strings.Contains(said, "its own was taken") {
		t.Errorf("server add says %q", said)
	}
	c.launch(2, c.corrosion()...)
	key := keyOf(t, web3)
	if key == old {
		t.Fatal("the key is the old one")
	}
	lab.Eventually(t, time.Minute, "web3 is web3-1", func() error {
		st, err := tryStatus(t, web3)
		if err == nil && (st.Server.ID != "web3-1" || len(st.Warnings) > 0) {
			err = fmt.Errorf("it is %s and warns %q", st.Server.ID, st.Warnings)
		}
		return err
	})
	st := status(t, web3)
	for _, s := range c.servers[:2] {
		peerIs(t, s, "web3-1", st.Server.Subnet.String(), key, 20*time.Second)
	}
	c.joined(web3)
	t.Logf("said %q; it has %s", strings.TrimSpace(said), st.Server.Subnet)
}
