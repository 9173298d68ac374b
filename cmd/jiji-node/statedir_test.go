package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/node/control"
)

// A fake is a running node that notes what it was asked to change.
type fake struct {
	control.Node
	stateDir string
	changes  []string
}

func (f *fake) Status() control.Status { return control.Status{StateDir: f.stateDir} }

func (f *fake) Init(control.InitRequest) (control.Added, error) {
	f.changes = append(f.changes, "init")
	return control.Added{}, nil
}

func (f *fake) AddServers(context.Context, []byte, string) ([]control.Added, error) {
	f.changes = append(f.changes, "add")
	return nil, nil
}

func (f *fake) Containers() []control.Container { return []control.Container{{ID: "only"}} }

func (f *fake) Deregister(_ context.Context, ids []string) (int, error) {
	f.changes = append(f.changes, "deregister "+strings.Join(ids, " "))
	return len(ids), nil
}

// serve runs f until the test ends and returns its runtime directory.
func serve(t *testing.T, f *fake) string {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	l, err := control.Listen(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- control.Serve(ctx, l, f, log) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return dir
}

// run executes a command line without a configuration file.
func run(t *testing.T, want int, args ...string) {
	t.Helper()
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer func(old *os.File) { os.Stdout = old }(os.Stdout)
	os.Stdout = out
	if code := execute(t.Context(), args, []string{"JIJI_CONFIG="}); code != want {
		t.Errorf("%s: exit code %d, want %d", strings.Join(args, " "), code, want)
	}
}

// A node that runs is not changed by a command about another state directory.
func TestChosenStateDirIsTheOneThatChanges(t *testing.T) {
	running, other := t.TempDir(), filepath.Join(t.TempDir(), "other")
	f := &fake{stateDir: running}
	runtime := serve(t, f)

	run(t, 0, "init", "--name", "other", "--endpoint", "192.0.2.9", "--state-dir", other, "--runtime-dir", runtime)
	if len(f.changes) > 0 {
		t.Errorf("the node on %s was changed: %v", running, f.changes)
	}
	entry, err := os.ReadFile(filepath.Join(other, "network.json"))
	if err != nil || !strings.Contains(string(entry), `"other"`) {
		t.Errorf("network.json of the chosen directory: %s, %v", entry, err)
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(running, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{running, link} { // its own, by any name
		f.changes = nil
		run(t, 0, "init", "--name", "other", "--state-dir", dir, "--runtime-dir", runtime)
		if len(f.changes) != 1 {
			t.Errorf("--state-dir %s: the node was not asked", dir)
		}
	}
}

// An id that a script left empty is not the beginning of the only one there is.
func TestEmptyIDMeansNoContainer(t *testing.T) {
	f := &fake{}
	run(t, 2, "service", "deregister", "", "--runtime-dir", serve(t, f))
	if len(f.changes) > 0 {
		t.Errorf("changed: %v", f.changes)
	}
}
