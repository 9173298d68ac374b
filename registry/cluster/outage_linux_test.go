package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/registry/registrytest"
)

// running is a store that runs until the end of the test.
func running(t *testing.T, cfg Config) *Store {
	t.Helper()
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Local, cfg.ServerID, cfg.BootID = local, registrytest.Self, "boot"
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		ended.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

func container(id string, n byte) registry.Container {
	return registry.Container{ID: id, Service: "s-" + id, IP: netip.AddrFrom4([4]byte{10, 210, 0, n}), Health: registry.Healthy}
}

// shows waits until the store's snapshot has just these containers.
func shows(t *testing.T, s *Store, limit time.Duration, want ...string) {
	t.Helper()
	eventually(t, limit, "snapshot", func() error {
		var got []string
		for c := range s.Snapshot().All() {
			got = append(got, c.ID)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("it has %v, want %v", got, want)
		}
		return nil
	})
}

// stored waits until the agent has just these containers.
func stored(t *testing.T, c *corrosion.Client, limit time.Duration, want ...string) {
	t.Helper()
	eventually(t, limit, "agent", func() error {
		var got []string
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Query(ctx, corrosion.SQL("SELECT id FROM containers ORDER BY id"), func(cells []any) error {
			got = append(got, cells[0].(string))
			return nil
		})
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it has %v, want %v", got, want)
		}
		return err
	})
}

// An agent that does not answer keeps nobody waiting, and what was said meanwhile
// reaches it when it does.
func TestFrozenAgent(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Schema: schema})
	c := client(t, a.URL)
	s := running(t, Config{Client: c})
	register := func(id string, n byte) time.Duration {
		t.Helper()
		begun := time.Now()
		if err := s.Register(t.Context(), container(id, n)); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	register("before", 2)
	stored(t, c, 5*time.Second, "before")
	eventually(t, 5*time.Second, "followed", func() error { return up(s, true) })

	frozen := time.Now()
	signal(t, a, syscall.SIGSTOP)
	t.Cleanup(func() { syscall.Kill(a.Pid(), syscall.SIGCONT) })
	for i, id := range []string{"first", "second", "third"} {
		took := register(id, byte(3+i))
		t.Logf("registered while the agent is frozen, which nobody knows yet, in %v", took.Round(time.Millisecond))
		if took > writePatience+time.Second/2 {
			t.Errorf("a registration took %v while the agent was frozen", took)
		}
	}
	if n, err := s.Deregister(t.Context(), "before", "third"); n != 2 || err != nil {
		t.Errorf("deregistered %d: %v", n, err)
	}
	shows(t, s, time.Second, "first", "second")
	eventually(t, time.Minute, "noticed", func() error { return up(s, false) })
	st := s.State()
	t.Logf("noticed after %v: %s", time.Since(frozen).Round(time.Millisecond), st.Problem)
	if st.Since.Before(frozen) || !strings.Contains(st.Problem, "the agent has not answered for 10s") {
		t.Errorf("state %+v, want down since after %v and why", st, frozen)
	}
	shows(t, s, time.Second, "first", "second")
	took := register("fourth", 6)
	t.Logf("registered while the agent is known to be lost, in %v", took.Round(time.Millisecond))
	if took > writePatience { // it is not waited for at all: this is the file's time
		t.Errorf("a registration took %v while the agent was lost", took)
	}

	signal(t, a, syscall.SIGCONT)
	woken := time.Now()
	stored(t, c, 20*time.Second, "first", "fourth", "second")
	eventually(t, 20*time.Second, "followed again", func() error { return up(s, true) })
	t.Logf("followed again %v after it was woken", time.Since(woken).Round(time.Millisecond))
}

func up(s *Store, want bool) error {
	if st := s.State(); st.Up != want {
		return fmt.Errorf("state %+v", st)
	}
	return nil
}

func signal(t *testing.T, a *agenttest.Agent, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(a.Pid(), sig); err != nil {
		t.Fatal(err)
	}
}

// An agent that lost its database takes nobody's names away, and gets this server's
// rows again. What it lacks is gone once peers say that they lack it, too.
func TestAgentLosesItsDatabase(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Schema: schema})
	c := client(t, a.URL)
	var answering atomic.Bool
	s := running(t, Config{Client: c, Peers: func(ctx context.Context) []Versions {
		if !answering.Load() {
			return nil
		}
		return []Versions{{{1}: 0}} // a peer with nothing at all
	}})
	insert := "INSERT INTO containers (id, service, server_id, ip, health_status) VALUES (?, ?, 'web2', ?, 'healthy')"
	if _, err := c.Exec(t.Context(), corrosion.SQL(insert, "theirs", "db", "10.210.1.9")); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(t.Context(), container("ours", 2)); err != nil {
		t.Fatal(err)
	}
	stored(t, c, 20*time.Second, "ours", "theirs") // ours after ten seconds without a peer
	shows(t, s, time.Second, "ours", "theirs")
	eventually(t, 10*time.Second, "versions seen", func() error {
		if len(s.Seen()) == 0 {
			return errors.New("none")
		}
		return nil
	})

	a.Stop(t, syscall.SIGKILL)
	eventually(t, 5*time.Second, "lost", func() error { return up(s, false) })
	for _, pattern := range []string{"state.db*", "subscriptions"} {
		files, err := filepath.Glob(filepath.Join(a.Dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.Restart(t)
	eventually(t, 5*time.Second, "followed again", func() error { return up(s, true) })
	stored(t, c, 5*time.Second, "ours")
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // as long as it may take to be wrong
		shows(t, s, 0, "ours", "theirs")
	}
	answering.Store(true)
	shows(t, s, 5*time.Second, "ours")
	stored(t, c, time.Second, "ours")
}
