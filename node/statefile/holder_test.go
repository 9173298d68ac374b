package statefile

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestHolder(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/locks")
	}
	dir := filepath.Join(t.TempDir(), "state")
	holds := func(want int) {
		t.Helper()
		if pid, err := Holder(dir); err != nil || pid != want {
			t.Errorf("Holder = %d, %v, want %d", pid, err, want)
		}
	}
	holds(0)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
	l, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	holds(os.Getpid())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	holds(0)
	if err := os.WriteFile(filepath.Join(dir, LockName), []byte("1\n"), 0o600); err != nil { // as a killed node leaves it
		t.Fatal(err)
	}
	holds(0)
	if err := os.WriteFile(filepath.Join(dir, LockName), []byte("no number"), 0o600); err != nil {
		t.Fatal(err)
	}
	holds(0)
}

func TestIsLocked(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  READ 29658 00:37:18 128 128
2: FLOCK  ADVISORY  WRITE 29658 00:37:3 0 EOF
2: -> FLOCK  ADVISORY  WRITE 29660 00:37:4 0 EOF
3: FLOCK  ADVISORY  WRITE 77 fd:00:1234567890123 0 EOF
x
`
	for _, c := range []struct {
		pid   int
		inode uint64
		want  bool
	}{
		{29658, 3, true},
		{77, 1234567890123, true},
		{29658, 18, false}, // another kind of lock
		{29660, 4, false},  // waits for it
		{29658, 4, false},
		{0, 3, false},
	} {
		if got, err := isLocked(strings.NewReader(locks), c.pid, c.inode); err != nil || got != c.want {
			t.Errorf("isLocked(%d, %d) = %v, %v", c.pid, c.inode, got, err)
		}
	}
}
