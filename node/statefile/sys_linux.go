package statefile

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const oNoFollow = syscall.O_NOFOLLOW

var errLocked = syscall.EWOULDBLOCK

// flock locks f against other openings of the same file; the lock ends with f.
// Unless wait is set it returns errLocked at once when it cannot.
func flock(f *os.File, wait bool) error {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

// syncDir makes a rename in dir outlive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // file systems that cannot do it say EINVAL
		return err
	}
	return nil
}

// inode returns the number of f in its file system.
func inode(f *os.File) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// CheckDir reports a directory in which others than its owner may replace files.
// One that is absent, or none, is for others to tell.
func CheckDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 == 0 {
		return nil
	}
	return fmt.Errorf("%s has mode %04o, so others than its owner can replace what is in it, the private key too: chmod go-w %[1]s", dir, info.Mode().Perm())
}
