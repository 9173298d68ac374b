package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/registry/registrytest"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

func self() registry.Server {
	return registry.Server{ID: registrytest.Self, Hostname: "host", Subnet: netip.MustParsePrefix("10.210.1.0/24"), WireGuardIP: netip.MustParseAddr("10.210.1.1"),
		Key: wgkey.Public{1}, ManagementIP: netip.MustParseAddr("fdcc::1"), Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:51820")},
		ClaimedAt: time.UnixMilli(5000)}
}

// written is a store on a real agent that has written its own row.
func written(t *testing.T) (*Store, *corrosion.Client) {
	t.Helper()
	a := agenttest.Start(t, agenttest.Options{Schema: schema})
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Client: client(t, a.URL), Local: local, ServerID: registrytest.Self, Key: wgkey.Public{1}, BootID: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	s.SetSelf(self())
	out := client(t, a.URL)
	until(t, "own row is written", func() error { return rowIs(out, "boot_id", "jiji_servers", "mine") })
	return s, out
}

func until(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func rowIs(c *corrosion.Client, column, table, want string) error {
	got := "no row"
	err := c.Query(context.Background(), corrosion.SQL("SELECT "+column+" FROM "+table+" WHERE id = ?", registrytest.Self), func(cells []any) error {
		got = fmt.Sprint(cells[0])
		return nil
	})
	if err == nil && got != want {
		err = fmt.Errorf("%s is %s, want %s", column, got, want)
	}
	return err
}

func change(t *testing.T, c *corrosion.Client, statement string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), corrosion.SQL(statement, args...)); err != nil {
		t.Fatal(err)
	}
}

// What somebody else makes of the own row is put right three times a minute; by
// then another process's boot id says that the identity is used twice.
func TestDuplicateIdentity(t *testing.T) {
	s, out := written(t)
	for range reassertMost {
		change(t, out, "UPDATE jiji_servers SET boot_id = 'other' WHERE id = ?", registrytest.Self)
		until(t, "own row is put right", func() error { return rowIs(out, "boot_id", "jiji_servers", "mine") })
	}
	change(t, out, "UPDATE jiji_servers SET boot_id = 'other' WHERE id = ?", registrytest.Self)
	until(t, "it says so", func() error {
		if d := s.State().Duplicate; !strings.Contains(d, "duplicate identity") || !strings.Contains(d, "other") {
			return fmt.Errorf("state is %+v", s.State())
		}
		return nil
	})
	if s.Problem() != s.State().Duplicate {
		t.Errorf("problem %q", s.Problem())
	}
	c := registry.Container{ID: "late", Service: "api", ServerID: registrytest.Self, IP: netip.MustParseAddr("10.210.1.9"), Health: registry.Healthy, StartedAt: time.UnixMilli(1)}
	if err := s.Register(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := rowIs(out, "boot_id", "jiji_servers", "other"); err != nil {
		t.Error(err)
	}
	rows := 0
	if err := out.Query(t.Context(), corrosion.SQL("SELECT id FROM containers"), func([]any) error { rows++; return nil }); err != nil || rows != 0 {
		t.Errorf("%d rows were written after that, %v", rows, err)
	}
}

// One who edits the row by hand gets it put right, and is named when he does not stop.
func TestReassertLimit(t *testing.T) {
	s, out := written(t)
	for i := range reassertMost {
		change(t, out, "UPDATE servers SET hostname = ? WHERE id = ?", fmt.Sprint("wrong", i), registrytest.Self)
		until(t, "own row is put right", func() error { return rowIs(out, "hostname", "servers", "host") })
	}
	change(t, out, "UPDATE servers SET hostname = 'again' WHERE id = ?", registrytest.Self)
	until(t, "it is named", func() error {
		if st := s.State(); !strings.Contains(st.Problem, "again and again") || st.Duplicate != "" || st.Pending != 1 {
			return fmt.Errorf("state is %+v", st)
		}
		return nil
	})
	if err := rowIs(out, "hostname", "servers", "again"); err != nil {
		t.Error(err)
	}
}

// Rows that are gone, as with the agent's database, are not said to be another program's.
func TestLostRowsAreWrittenAgain(t *testing.T) {
	s, out := written(t)
	for range reassertMost {
		change(t, out, "DELETE FROM servers WHERE id = ?", registrytest.Self)
		until(t, "own row is there again", func() error { return rowIs(out, "hostname", "servers", "host") })
	}
	change(t, out, "DELETE FROM servers WHERE id = ?", registrytest.Self)
	until(t, "it is named", func() error {
		if st := s.State(); !strings.Contains(st.Problem, "the agent's database loses, or somebody else deletes, the rows of server") {
			return fmt.Errorf("state is %+v", st)
		}
		return nil
	})
}

// A tombstone ends all writing, and is not cleared.
func TestRemovedWritesNothing(t *testing.T) {
	s, out := written(t)
	change(t, out, "UPDATE servers SET removed_at = 7, hostname = 'gone' WHERE id = ?", registrytest.Self)
	until(t, "the tombstone is read", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.removed() {
			return fmt.Errorf("row is %v", s.servers[registrytest.Self])
		}
		return nil
	})
	c := registry.Container{ID: "late", Service: "api", ServerID: registrytest.Self, IP: netip.MustParseAddr("10.210.1.9"), Health: registry.Healthy, StartedAt: time.UnixMilli(1)}
	if err := s.Register(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	rows := 0
	if err := out.Query(t.Context(), corrosion.SQL("SELECT id FROM containers"), func([]any) error { rows++; return nil }); err != nil || rows != 0 {
		t.Errorf("%d rows of containers, %v", rows, err)
	}
	if err := rowIs(out, "removed_at", "servers", "7"); err != nil {
		t.Error(err)
	}
}
