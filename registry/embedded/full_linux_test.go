package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/registry/registrytest"
)

// TestFullDisk fills a small file system, and makes room again.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 256<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "registry.db")
	s := open(t, path)
	good := 0
	var err error
	for ; good < 5000 && err == nil; good++ {
		err = s.Register(t.Context(), container(good))
	}
	good--
	t.Logf("%d registered, then: %v", good, err)
	if err == nil || !strings.Contains(err.Error(), path+": disk full, nothing was written") {
		t.Fatalf("Register: %v, want disk full", err)
	}
	whole := func(s *Store) {
		t.Helper()
		if n := s.Snapshot().Len(); n != good {
			t.Errorf("%d containers, %d were acknowledged", n, good)
		}
		for c := range s.Snapshot().All() {
			if c.Project != "shop" || len(c.Ports) != 1 {
				t.Errorf("%s is half there: %+v", c.ID, c)
			}
		}
	}
	whole(s)
	check(t, s)
	s.Close()

	if s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self}); err == nil {
		whole(s) // there was just room for the files beside it
		s.Close()
	} else if !strings.Contains(err.Error(), "full") || !strings.Contains(err.Error(), path) {
		t.Errorf("open: %v, want disk full", err)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	whole(s)
	if n, err := s.Deregister(t.Context(), container(0).ID, container(1).ID); err != nil || n != 2 {
		t.Errorf("Deregister with room again = %d, %v", n, err)
	}
	check(t, s)
	s.Close()
}
