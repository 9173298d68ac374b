package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrotest"
	"github.com/acidtib/jiji-node/registry/embedded"
)

// An agent that lacks tables of ours never gets the versions that have rows of
// them, and counts them as missing for ever. Its server writes all the same.
func TestCatchUpWithGapsForEver(t *testing.T) {
	a := corrotest.New(t, corrotest.Config{Schema: registry.SharedSchema, Token: token})
	b := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
	corrotest.Link(a, b)
	exec := func(sql string) {
		t.Helper()
		if _, err := clientOf(t, b).Exec(t.Context(), corrosion.SQL(sql)); err != nil {
			t.Fatal(err)
		}
	}
	exec("INSERT INTO jiji_servers (id) VALUES ('other')")
	exec("INSERT INTO jiji_servers (id) VALUES ('third')")
	write(t, b, "c", "healthy")
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: "self"})
	if err != nil {
		t.Fatal(err)
	}
	client := clientOf(t, a)
	s, err := Open(t.Context(), Config{Client: client, Local: local, ServerID: "self", BootID: "boot",
		Peers: func(ctx context.Context) []Versions { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, s.Close()); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 10*time.Second, "followed", func() error { return up(s, true) })
	gaps := int64(0)
	if err := client.Query(t.Context(), corrosion.SQL(`SELECT sum("end" - start + 1) FROM __corro_bookkeeping_gaps`), func(cells []any) error {
		gaps, _ = cells[0].(int64)
		return nil
	}); err != nil || gaps != 2 {
		t.Fatalf("%d versions are missing, %v, want 2", gaps, err)
	}
	now := func(at time.Time) bool { // what catchUp says when the state is that old
		s.take(t.Context())
		defer s.give()
		s.mu.Lock()
		was := s.wholeAt
		s.wholeAt = at
		s.mu.Unlock()
		s.own.lacksAt = at
		got := s.catchUp(t.Context())
		s.mu.Lock()
		s.wholeAt = was
		s.mu.Unlock()
		return got
	}
	eventually(t, 10*time.Second, "asked what is missing", func() error {
		s.take(t.Context())
		defer s.give()
		if s.own.lacks != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	if now(time.Now().Add(-settledFor / 2)) {
		t.Error("caught up though versions may be on their way")
	}
	s.take(t.Context())
	s.own.lacks = 3 // of which one came just now
	s.give()
	if now(time.Now().Add(-settledFor)) {
		t.Error("caught up while versions arrive")
	}
	if !now(time.Now().Add(-settledFor)) {
		t.Error("not caught up though nothing arrives any more")
	}
}
