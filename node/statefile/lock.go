package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// LockName is the name of the lock file in the directory that LockDir locks.
const LockName = "lock"

// An InUseError says that another process has the directory.
type InUseError struct {
	Dir string
	PID int // as its holder wrote it; 0 if that cannot be read
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("state directory %s is in use by another process: stop that one, or choose another directory with --state-dir", e.Dir)
	}
	return fmt.Sprintf("state directory %s is in use by process %d: stop that one, or choose another directory with --state-dir", e.Dir, e.PID)
}

const lockPatience = 2 * time.Second // a busy machine may let such a child wait

// A Lock keeps others out of a directory until it is closed or the process
// ends, in whatever way: what a dead process left behind locks nothing.
type Lock struct{ f *os.File }

// LockDir makes dir (0700) if it is absent, locks it, writes this process's id
// to its lock file and removes what killed writers left in it. Where another
// process has the lock it returns an *InUseError, after a moment: a child that a
// killed process had just begun to start holds it until it runs its program.
func LockDir(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", advised(err))
	}
	path := filepath.Join(dir, LockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|oNoFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", advised(err))
	}
	err = flock(f, false)
	for end := time.Now().Add(lockPatience); errors.Is(err, errLocked) && time.Now().Before(end); {
		time.Sleep(lockPatience / 200)
		err = flock(f, false)
	}
	switch {
	case errors.Is(err, errLocked):
		pid := holder(f)
		f.Close()
		return nil, &InUseError{dir, pid}
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock state directory: lock %s: %w", path, err)
	}
	if err := errors.Join(sign(f), sweep(dir)); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return &Lock{f}, nil
}

// advised is err with what to do about it, where that is known.
func advised(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run as root", err)
	}
	return err
}

// Close unlocks the directory. The lock file stays: removing it would let two
// processes lock two files of that name.
func (l *Lock) Close() error {
	return errors.Join(l.f.Truncate(0), l.f.Close())
}

func sign(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func holder(f *os.File) int {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
