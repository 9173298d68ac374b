package statefile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder returns the process that has dir locked; 0 if none has. Unlike LockDir
// it makes, writes and locks nothing, so that nobody who locks dir meanwhile
// notices.
func Holder(dir string) (pid int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDONLY|oNoFollow, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read lock of state directory: %w", advised(err))
	}
	defer f.Close()
	pid = holder(f)
	number, err := inode(f)
	if err != nil {
		return 0, fmt.Errorf("read lock of state directory: %w", err)
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0, fmt.Errorf("read lock of state directory: %w", err)
	}
	defer locks.Close()
	held, err := isLocked(locks, pid, number)
	if err != nil {
		return 0, fmt.Errorf("read lock of state directory: /proc/locks: %w", err)
	}
	if !held { // what the file says is from a process that was killed
		return 0, nil
	}
	return pid, nil
}

// isLocked looks for the flock of a process on a file in the text of
// /proc/locks (proc_locks(5)). The device is not compared: of a file on an
// overlay stat(2) tells another one.
func isLocked(locks io.Reader, pid int, inode uint64) (bool, error) {
	lines := bufio.NewScanner(locks)
	for lines.Scan() { // "3: FLOCK  ADVISORY  WRITE 29658 00:37:3 0 EOF"
		f := strings.Fields(lines.Text())
		if len(f) < 6 || f[1] != "FLOCK" || f[4] != strconv.Itoa(pid) {
			continue
		}
		if file := strings.Split(f[5], ":"); len(file) == 3 && file[2] == strconv.FormatUint(inode, 10) {
			return true, nil
		}
	}
	return false, lines.Err()
}
