package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/registry/embedded"
)

// A machine whose registry file was lost, and with it that it was in a cluster, says so
// until somebody chooses.
func TestLostChoice(t *testing.T) {
	open := func(t *testing.T, database bool, mode string) *Node {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, agentDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if database {
			if err := os.WriteFile(filepath.Join(dir, agentDir, "state.db"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n := &Node{cfg: Config{StateDir: dir, Registry: control.RegistryMode{Mode: mode}}, log: slog.New(slog.DiscardHandler), uses: make(chan use, 1)}
		var err error
		if n.local, err = embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(dir, registryName), ServerID: "web1"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.local.Close() })
		return n
	}
	said := func(t *testing.T, n *Node, want bool) {
		t.Helper()
		if err := n.noteLostChoice(t.Context()); err != nil {
			t.Fatal(err)
		}
		text := n.lostChoice.Load()
		if (text != nil) != want || want && !strings.Contains(*text, "registry use corrosion` takes it up again") {
			t.Errorf("it says %v, want %v", text, want)
		}
	}
	said(t, open(t, false, ""), false)
	said(t, open(t, true, control.Embedded), false) // as configured
	for _, mode := range []string{control.Embedded, control.Corrosion} {
		n := open(t, true, "")
		said(t, n, true)
		go func() {
			if mode == control.Corrosion {
				(<-n.uses).reply <- nil
			}
		}()
		if _, err := (api{n}).UseRegistry(t.Context(), control.RegistryMode{Mode: mode}); err != nil {
			t.Fatal(err)
		}
		if text := n.lostChoice.Load(); text != nil {
			t.Errorf("%s is chosen, and it says %s", mode, *text)
		}
		said(t, n, false) // after a restart
	}
}

// What was chosen is applied although who chose it is gone.
func TestUseRegistryWithoutItsClient(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), uses: make(chan use, 1)}
	var err error
	if n.local, err = embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), registryName), ServerID: "web1"}); err != nil {
		t.Fatal(err)
	}
	defer n.local.Close()
	for _, url := range []string{"http://127.0.0.1:1", "http://127.0.0.1:2"} { // the loop is busy, and takes neither
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := (api{n}).UseRegistry(ctx, control.RegistryMode{Mode: control.Corrosion, URL: url}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want %v", url, err, context.DeadlineExceeded)
		}
	}
	select {
	case u := <-n.uses:
		u.reply <- nil
	default:
		t.Error("the loop is not told")
	}
	if mode, err := StoredMode(t.Context(), n.local); err != nil || mode.URL != "http://127.0.0.1:2" {
		t.Errorf("what it will open is %+v, %v, want the latest", mode, err)
	}
}
