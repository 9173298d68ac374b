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
	"syscall"
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
type Lock struct {
	f    *os.File // nil once abandoned
	made []string // what LockDir made, in that order: directories, then the lock file
}

// LockDir makes dir (0700) if it is absent, locks it, writes this process's id
// to its lock file and removes what killed writers left in it. Where another
// process has the lock it returns an *InUseError, after a moment: a child that a
// killed process had just begun to start holds it until it runs its program.
func LockDir(dir string) (*Lock, error) {
	made, err := makeDir(dir)
	if err != nil {
		return nil, fmt.Errorf("make state directory: %w", advised(err))
	}
	l := &Lock{made: made}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 200) {
		err := l.lock(dir)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, errLocked) && !errors.Is(err, errMoved):
			l.remove()
			return nil, fmt.Errorf("lock state directory: %w", advised(err))
		case time.Now().After(end):
			return nil, &InUseError{dir, holderOf(dir)}
		}
	}
}

// makeDir makes dir with its parents and returns those that were absent.
func makeDir(dir string) (made []string, err error) {
	dir = filepath.Clean(dir)
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append([]string{d}, made...)
	}
	return made, os.MkdirAll(dir, 0o700)
}

// errMoved says that the lock file was removed before it was locked: its holder
// abandoned it.
var errMoved = errors.New("the lock file was removed")

// lock tries once.
func (l *Lock) lock(dir string) error {
	path := filepath.Join(dir, LockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|oNoFollow, 0o600)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		f, err = os.OpenFile(path, os.O_RDWR|oNoFollow, 0)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o700); err != nil { // abandoned with its directory
			return err
		}
		return errMoved
	case err != nil:
		return err
	}
	err = flock(f, false)
	if err == nil && !isAt(f, path) {
		err = errMoved
	}
	if err != nil {
		f.Close()
		if errors.Is(err, errLocked) || errors.Is(err, errMoved) {
			return err
		}
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if made {
		l.made = append(l.made, path)
	}
	if err := errors.Join(write(f, strconv.Itoa(os.Getpid())), sweep(dir)); err != nil {
		f.Close()
		return err
	}
	l.f = f
	return nil
}

// advised is err with what to do about it, where that is known.
func advised(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run as root", err)
	}
	return err
}

// Close unlocks the directory. The lock file stays for the next process.
func (l *Lock) Close() error {
	if l.f == nil { // abandoned
		return nil
	}
	return errors.Join(write(l.f, ""), l.f.Close())
}

// Abandon is Close for a process that refused its work: it also removes the
// directory and the lock file, if LockDir made them and nobody put anything
// beside them.
func (l *Lock) Abandon() {
	l.remove()
	_ = l.Close() // what is left of a refusal locks nothing
	l.f = nil
}

// remove removes what was made, while it is locked, so that whoever waits for it
// notices and makes a new one.
func (l *Lock) remove() {
	for i := len(l.made) - 1; i >= 0; i-- {
		if os.Remove(l.made[i]) != nil {
			return // others have files there
		}
	}
}

const signLength = 11 // bytes of a lock file: room for every process id

// write replaces the text of a lock file in place, so that a disk that is full
// has room for it. Where there is none all the same, as on a disk that copies
// on writing, the lock names no process, but is one.
func write(f *os.File, text string) error {
	_, err := f.WriteAt(fmt.Appendf(nil, "%*s\n", signLength-1, text), 0)
	if IsFull(err) {
		return f.Truncate(0)
	}
	if err != nil {
		return err
	}
	return f.Truncate(signLength)
}

// IsFull reports whether err says that a disk, or a user's share of it, is full.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// holderOf returns what holder does, 0 where the file cannot be opened.
func holderOf(dir string) int {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDONLY|oNoFollow, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	return holder(f)
}

// holder returns the process that f names, 0 if it names none.
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
