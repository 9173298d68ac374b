package topology

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

const patience = 20 * time.Second // that a test has with a machine under load

// A told is one call of news.
type told struct {
	m   Topology
	err error
}

// A listener follows a file for a test.
type listener struct {
	t    *testing.T
	path string
	news chan told
}

// follow follows path until the test ends, by events alone, or by polling alone.
func follow(t *testing.T, path string, events bool) *listener {
	l := &listener{t, path, make(chan told, 100)}
	f := follower{path: path, poll: time.Hour, blind: time.Hour, news: func(m Topology, err error) { l.news <- told{m, err} }}
	if events {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			t.Skipf("no file notification on this machine: %v", err)
		}
		t.Cleanup(func() { w.Close() })
		f.watcher, f.blind = w, 20*time.Millisecond // after its directory went away
	} else {
		f.blind = 5 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run returned %v", err)
		}
	})
	return l
}

func (l *listener) next() told {
	l.t.Helper()
	select {
	case n := <-l.news:
		return n
	case <-time.After(patience):
		l.t.Fatalf("nothing was heard of %s", l.path)
		return told{}
	}
}

// Under load, a file that is written in place may be seen halfway.
const halfway = "unexpected end of JSON input"

// servers waits for a topology with that many servers, which has to be the next
// news but for a file seen halfway.
func (l *listener) servers(want int) {
	l.t.Helper()
	n := l.next()
	for n.err != nil && strings.Contains(n.err.Error(), halfway) {
		n = l.next()
	}
	if n.err != nil || len(n.m.Servers) != want {
		l.t.Fatalf("heard of %d servers, %v; want %d", len(n.m.Servers), n.err, want)
	}
}

// fails likewise waits for an error.
func (l *listener) fails(want string) {
	l.t.Helper()
	n := l.next()
	for want != halfway && n.err != nil && strings.Contains(n.err.Error(), halfway) {
		n = l.next()
	}
	if n.err == nil || !strings.Contains(n.err.Error(), want) || len(n.m.Servers) != 0 || n.m.Cluster.IsValid() {
		l.t.Fatalf("heard of %+v, %v; want an error with %q", n.m, n.err, want)
	}
}

func (l *listener) silent(d time.Duration) {
	l.t.Helper()
	select {
	case n := <-l.news:
		l.t.Fatalf("heard of %d servers, %v; want nothing", len(n.m.Servers), n.err)
	case <-time.After(d):
	}
}

func of(n int) Topology {
	m := mesh()
	for i := range n {
		m.Servers = append(m.Servers, server(i))
	}
	return m
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	ok(t, os.WriteFile(path, data, 0o600))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	for _, events := range []bool{true, false} {
		t.Run(map[bool]string{true: "events", false: "polling"}[events], func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "network.json")
			write(t, path, of(1).Marshal())
			l := follow(t, path, events)
			l.servers(1)

			ok(t, Save(path, of(2))) // renamed over it
			l.servers(2)

			write(t, path, of(3).Marshal()) // in place
			l.servers(3)

			write(t, path, []byte("{x"))
			l.fails(path + ":1:2: invalid character 'x'")
			write(t, path, of(3).Marshal()) // the same as before the error
			l.servers(3)

			ok(t, os.Remove(path))
			l.fails("no such file")
			ok(t, Save(path, of(4)))
			l.servers(4)

			ok(t, os.Rename(path, path+".bak"))
			l.fails("no such file")
			ok(t, os.Rename(path+".bak", path))
			l.servers(4)

			ok(t, os.Mkdir(filepath.Join(dir, "other"), 0o700))
			ok(t, os.Chtimes(path, noon, noon)) // touched
			ok(t, Save(path, of(4)))            // the same content
			write(t, filepath.Join(dir, "registry.db"), []byte("x"))
			l.silent(4 * settle)
		})
	}
}

// A file written in two halves is never half applied.
func TestFollowHalves(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "network.json")
	l := follow(t, path, true)
	l.fails("no such file")
	data := of(2).Marshal()
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	_, err = f.Write(data[:len(data)/2])
	ok(t, err)
	l.fails(halfway)
	_, err = f.Write(data[len(data)/2:])
	ok(t, err)
	l.servers(2)
}

// Kubernetes mounts a ConfigMap as network.json -> ..data/network.json and
// ..data -> ..<time>, and swaps the second link.
func TestFollowKubernetes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	version := func(n int) {
		sub := fmt.Sprintf("..2026_%d", n)
		ok(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
		write(t, filepath.Join(dir, sub, "network.json"), of(n).Marshal())
		ok(t, os.Symlink(sub, filepath.Join(dir, "..data_tmp")))
		ok(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		if n > 1 {
			ok(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..2026_%d", n-1))))
		}
	}
	version(1)
	path := filepath.Join(dir, "network.json")
	ok(t, os.Symlink("..data/network.json", path))
	l := follow(t, path, true)
	l.servers(1)
	for n := 2; n < 6; n++ {
		version(n)
		l.servers(n)
	}
	write(t, filepath.Join(dir, "..data", "network.json"), of(9).Marshal()) // behind both links
	l.servers(9)
}

// A link into another directory is watched there too, and the old one no longer.
func TestFollowLinkElsewhere(t *testing.T) {
	t.Parallel()
	a, b, dir := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, filepath.Join(a, "one.json"), of(1).Marshal())
	write(t, filepath.Join(b, "two.json"), of(2).Marshal())
	path := filepath.Join(dir, "network.json")
	ok(t, os.Symlink(filepath.Join(a, "one.json"), path))
	l := follow(t, path, true)
	l.servers(1)
	ok(t, Save(filepath.Join(a, "one.json"), of(3)))
	l.servers(3)
	ok(t, os.Symlink(filepath.Join(b, "two.json"), path+".new"))
	ok(t, os.Rename(path+".new", path))
	l.servers(2)
	ok(t, Save(filepath.Join(a, "one.json"), of(5)))
	l.silent(4 * settle)
	write(t, filepath.Join(b, "two.json"), of(4).Marshal())
	l.servers(4)
	ok(t, os.Remove(filepath.Join(b, "two.json")))
	l.fails("no such file")
}

func TestFollowDirectoryThatGoesAndComesBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jiji")
	path := filepath.Join(dir, "network.json")
	l := follow(t, path, true)
	l.fails("no such file")
	ok(t, os.Mkdir(dir, 0o700))
	ok(t, Save(path, of(1)))
	l.servers(1)
	ok(t, os.Rename(dir, dir+".old"))
	l.fails("no such file")
	ok(t, os.Mkdir(dir, 0o700))
	ok(t, Save(path, of(2)))
	l.servers(2)
	ok(t, Save(path, of(3)))
	l.servers(3)
}

// A thousand writes are a few news, and the last one is the last content.
func TestFollowCoalesces(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "network.json")
	ok(t, Save(path, of(0)))
	l := follow(t, path, true)
	l.servers(0)
	start := time.Now()
	data := make([][]byte, 11)
	for i := range data {
		data[i] = of(i).Marshal()
	}
	for i := range 1000 {
		write(t, path+".new", data[1+i%9])
		ok(t, os.Rename(path+".new", path))
	}
	took := time.Since(start)
	write(t, path, data[10])
	heard := 0
	for n := l.next(); len(n.m.Servers) != 10; n = l.next() {
		if n.err != nil && !strings.Contains(n.err.Error(), halfway) {
			t.Fatal(n.err)
		}
		heard++
	}
	if most := 3 + int(took/settle); heard > most {
		t.Errorf("heard %d times in %v, want at most %d", heard, took, most)
	}
	l.silent(4 * settle)
}

func TestFollowEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "network.json")
	ok(t, Save(path, of(2)))
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := Follow(ctx, path, func(m Topology, err error) {
		calls++
		if err != nil || len(m.Servers) != 2 {
			t.Errorf("%d servers, %v", len(m.Servers), err)
		}
		cancel()
	})
	if err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestFollowRefusesWhatIsNoFile(t *testing.T) {
	t.Parallel()
	l := follow(t, t.TempDir(), false)
	l.fails("is a directory, want a regular file")
	l.silent(100 * time.Millisecond)
}
