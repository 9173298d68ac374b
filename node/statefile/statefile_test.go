package statefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "network.json")
	for _, tt := range []struct {
		content string
		mode    fs.FileMode
	}{{"one", 0o644}, {"", 0o600}, {strings.Repeat("long", 1<<16), 0o640}, {"short", 0o666}} {
		if err := Write(path, []byte(tt.content), tt.mode); err != nil {
			t.Fatal(err)
		}
		data, mode, err := Read(path, 1<<20)
		if err != nil || string(data) != tt.content || mode.Perm() != tt.mode {
			t.Errorf("read %.20q with mode %v, %v; want %.20q with %v", data, mode, err, tt.content, tt.mode)
		}
	}
	wantFiles(t, dir, "network.json")
}

func TestWriteReplacesLinkNotItsTarget(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	must(t, os.WriteFile(target, []byte("theirs"), 0o600))
	must(t, os.Symlink(target, link))
	must(t, Write(link, []byte("ours"), 0o600))
	if data, _, _ := Read(target, 100); string(data) != "theirs" {
		t.Errorf("target holds %q", data)
	}
}

func TestWriteTakesOverWhatAKilledWriterLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "network.json")
	left := filepath.Join(dir, ".network.json.jiji-tmp")
	must(t, os.WriteFile(left, []byte("a long half of something"), 0o666))
	must(t, Write(path, []byte("new"), 0o600))
	data, mode, err := Read(path, 100)
	if err != nil || string(data) != "new" || mode.Perm() != 0o600 {
		t.Errorf("read %q with mode %v, %v", data, mode, err)
	}
	wantFiles(t, dir, "network.json")
}

func TestWriteErrorsNameThePath(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing", "f")
	occupied := filepath.Join(dir, "occupied")
	must(t, os.Mkdir(occupied, 0o700))
	trapped := filepath.Join(dir, "trapped")
	must(t, os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, ".trapped.jiji-tmp")))
	for path, want := range map[string]error{missing: fs.ErrNotExist, occupied: nil, trapped: nil} {
		err := Write(path, []byte("x"), 0o600)
		if err == nil || !strings.Contains(err.Error(), "write "+path+": ") || want != nil && !errors.Is(err, want) {
			t.Errorf("Write(%s) = %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("a link in the place of the temporary file was followed")
	}
	wantFiles(t, dir, ".trapped.jiji-tmp", "occupied")
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "private.key")
	var winner atomic.Pointer[int]
	var g sync.WaitGroup
	for n := range 16 {
		g.Go(func() {
			switch err := Create(path, []byte(strconv.Itoa(n)), 0o600); {
			case err == nil:
				if !winner.CompareAndSwap(nil, &n) {
					t.Error("two have created the file")
				}
			case !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path):
				t.Error(err)
			}
		})
	}
	g.Wait()
	data, _, err := Read(path, 100)
	if w := winner.Load(); err != nil || w == nil || string(data) != strconv.Itoa(*w) {
		t.Errorf("file holds %q, %v", data, err)
	}
	wantFiles(t, dir, "private.key")

	dangling := filepath.Join(dir, "dangling")
	must(t, os.Symlink(filepath.Join(dir, "nowhere"), dangling))
	if err := Create(dangling, nil, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a dangling link: %v", err)
	}
}

// Writers of one path, each with its own content, never mix and never fail.
func TestConcurrentWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must(t, Write(path, page(0), 0o600))
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for n := range 25 {
				if err := Write(path, page(w*100+n), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		data, _, err := Read(path, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		checkPage(t, data)
	}
	g.Wait()
	wantFiles(t, dir, "f")
}

// page returns content number n, of a length that depends on n.
func page(n int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("page %d\n", n)), 1+n*7919%5000)
}

func checkPage(t *testing.T, data []byte) {
	t.Helper()
	line, _, _ := strings.Cut(string(data), "\n")
	n, err := strconv.Atoi(strings.TrimPrefix(line, "page "))
	if err != nil || !bytes.Equal(data, page(n)) {
		t.Fatalf("%d bytes that begin with %q are no whole page", len(data), line)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	must(t, os.WriteFile(big, make([]byte, 101), 0o600))
	for path, want := range map[string]string{
		dir:                           "is a directory, want a regular file",
		"/dev/zero":                   "is a device, want a regular file",
		big:                           "has 101 bytes, want at most 100",
		filepath.Join(dir, "nowhere"): "no such file",
	} {
		if _, _, err := Read(path, 100); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("Read(%s) = %v, want %q", path, err, want)
		}
	}
}

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "lib", "jiji")
	l, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory is %v, %v", info.Mode(), err)
	}
	var inUse *InUseError
	if _, err := LockDir(dir); !errors.As(err, &inUse) || inUse.Dir != dir || inUse.PID != os.Getpid() {
		t.Errorf("second lock: %v", err)
	} else if want := fmt.Sprintf("state directory %s is in use by process %d: stop that one, or choose another directory with --state-dir", dir, os.Getpid()); err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	must(t, l.Close())
	l, err = LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())

	for _, pid := range []string{"", "nonsense", "-3", strings.Repeat("9", 100)} {
		l, err := LockDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		must(t, os.WriteFile(filepath.Join(dir, LockName), []byte(pid), 0o600))
		if _, err := LockDir(dir); !errors.As(err, &inUse) || inUse.PID != 0 {
			t.Errorf("with the process id %q: %v", pid, err)
		}
		must(t, l.Close())
	}
}

// Who refuses its work leaves what was there before.
func TestAbandon(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "lib", "jiji")
	abandon := func() {
		t.Helper()
		l, err := LockDir(dir)
		must(t, err)
		l.Abandon()
	}
	abandon()
	wantFiles(t, root)

	must(t, os.MkdirAll(dir, 0o700)) // as systemd makes it
	abandon()
	wantFiles(t, dir)

	l, err := LockDir(dir)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "private.key"), nil, 0o600))
	l.Abandon() // the key stays
	wantFiles(t, dir, "private.key")

	l, err = LockDir(dir)
	must(t, err)
	must(t, l.Close())
	abandon() // the lock file is somebody else's
	wantFiles(t, dir, LockName, "private.key")
}

// Of those that wait for one that abandons its directory exactly one at a time
// has it.
func TestAbandonKeepsTheLockOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jiji")
	var holders, turns atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for turns.Add(1) < 50 {
				l, err := LockDir(dir)
				if err != nil {
					t.Error(err)
					return
				}
				if holders.Add(1) != 1 {
					t.Error("two have it")
				}
				time.Sleep(100 * time.Microsecond) // long enough for others to come
				holders.Add(-1)
				l.Abandon()
			}
		})
	}
	all.Wait()
}

func TestLockDirSweeps(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".a.jiji-tmp", ".b.jiji-tmp", ".theirs.tmp", "c.jiji-tmp", ".busy.jiji-tmp"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, ".d.jiji-tmp"), 0o700))
	busy, err := openTemp(filepath.Join(dir, ".busy.jiji-tmp"), 0o600) // a writer without the lock, at work
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	l, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantFiles(t, dir, ".busy.jiji-tmp", ".d.jiji-tmp", ".theirs.tmp", "c.jiji-tmp", "lock")
}

func TestLockDirErrorsNameThePath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	taken := filepath.Join(dir, "taken")
	must(t, os.MkdirAll(filepath.Join(taken, LockName), 0o700))
	for _, path := range []string{file, taken} {
		if _, err := LockDir(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("LockDir(%s) = %v", path, err)
		}
	}
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Content that fails half way leaves the file as it was, and nothing beside it.
func TestWriteByFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	fault := errors.New("half way")
	err := WriteBy(path, 0o600, func(w io.Writer) error {
		if _, err := io.WriteString(w, "new, but not"); err != nil {
			t.Error(err)
		}
		return fault
	})
	if !errors.Is(err, fault) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names the file and why", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "old" {
		t.Errorf("the file has %q, %v", text, err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("beside it: %v, %v", files, err)
	}
}
