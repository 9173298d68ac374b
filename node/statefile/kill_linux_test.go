package statefile

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own child: these variables tell it what to be.
const (
	roleVar = "STATEFILE_TEST_ROLE"
	dirVar  = "STATEFILE_TEST_DIR"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVar)
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(m.Run())
	case "writer": // until it is killed
		l, err := LockDir(dir)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		defer l.Close()
		fmt.Println("ready")
		for n := 0; ; n++ {
			if err := Write(filepath.Join(dir, "f"), page(n), 0o600); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			_ = os.Remove(filepath.Join(dir, "new"))
			if err := Create(filepath.Join(dir, "new"), page(n), 0o600); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	case "filesystems":
		fmt.Print(onBadFileSystems(dir))
	}
}

func child(t *testing.T, role, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for i := range rounds {
		cmd := child(t, "writer", dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "ready\n" {
			t.Fatalf("child said %q, %v", line, err)
		}
		var inUse *InUseError
		if i == 0 { // it takes its time
			if _, err := LockDir(dir); !errors.As(err, &inUse) || inUse.PID != cmd.Process.Pid {
				t.Fatalf("lock of a directory in use by %d: %v", cmd.Process.Pid, err)
			}
		}
		time.Sleep(rand.N(20 * time.Millisecond)) // any moment will do
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // "killed"

		for _, name := range []string{path, filepath.Join(dir, "new")} {
			data, mode, err := Read(name, 1<<20)
			if errors.Is(err, fs.ErrNotExist) {
				continue // killed before the first write, or between removal and creation
			}
			must(t, err)
			checkPage(t, data)
			if mode.Perm() != 0o600 {
				t.Errorf("%s has mode %v", name, mode)
			}
		}
		l, err := LockDir(dir)
		if err != nil {
			t.Fatalf("lock that a dead process left: %v", err)
		}
		must(t, l.Close())
		if left, _ := filepath.Glob(filepath.Join(dir, "*.jiji-tmp")); len(left) > 0 {
			t.Fatalf("left: %q", left)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no child ever wrote: %v", err)
	}
}

// A full and a read-only file system, in a mount namespace of their own.
func TestBadFileSystems(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount file systems")
	}
	dir := t.TempDir()
	cmd := child(t, "filesystems", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "full: write " + dir + "/f: write " + dir + "/.f.jiji-tmp: no space left on device\n" +
		"then: old in 1 file\n" +
		"lock on a full disk: process 0, then true\n" +
		"read-only: write " + dir + "/f: open " + dir + "/.f.jiji-tmp: read-only file system\n" +
		"then: old in 1 file\n" +
		"lock: lock state directory: open " + dir + "/lock: read-only file system\n"
	if string(out) != want {
		t.Errorf("child said\n%s\nwant\n%s", out, want)
	}
}

func onBadFileSystems(dir string) string {
	var b strings.Builder
	state := func() {
		data, _ := os.ReadFile(filepath.Join(dir, "f"))
		entries, _ := os.ReadDir(dir)
		fmt.Fprintf(&b, "then: %s in %d file\n", data, len(entries))
	}
	path := filepath.Join(dir, "f")
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		return err.Error()
	}
	if err := Write(path, []byte("old"), 0o600); err != nil {
		return err.Error()
	}
	fmt.Fprintf(&b, "full: %v\n", Write(path, make([]byte, 1<<20), 0o600))
	state()
	fmt.Fprintf(&b, "lock on a full disk: %s\n", lockOnFullDisk(dir))
	if err := os.Remove(filepath.Join(dir, LockName)); err != nil {
		return err.Error()
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return err.Error()
	}
	fmt.Fprintf(&b, "read-only: %v\n", Write(path, []byte("new"), 0o600))
	state()
	_, err := LockDir(dir)
	fmt.Fprintf(&b, "lock: %v\n", err)
	return b.String()
}

// lockOnFullDisk locks dir without room for a lock file's text, and again with
// a text that is there.
func lockOnFullDisk(dir string) string {
	fill := filepath.Join(dir, "fill")
	defer os.Remove(fill)
	_ = os.WriteFile(fill, make([]byte, 1<<20), 0o600) // until nothing is left
	l, err := LockDir(dir)
	if err != nil {
		return err.Error()
	}
	first := holderOf(dir)
	if err := l.Close(); err != nil {
		return err.Error()
	}
	if err := os.Remove(fill); err != nil {
		return err.Error()
	}
	if l, err = LockDir(dir); err == nil {
		err = l.Close()
	}
	_ = os.WriteFile(fill, make([]byte, 1<<20), 0o600)
	if err == nil {
		l, err = LockDir(dir)
	}
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	return fmt.Sprintf("process %d, then %v", first, holderOf(dir) == os.Getpid())
}
