package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const oNoFollow = syscall.O_NOFOLLOW

var errLocked = syscall.EWOULDBLOCK

func lock(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EINTR {
			return err
		}
	}
}

// attributes: a group of its own, so that Ctrl-C on a terminal is for the node
// alone; and told to end when the node is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// holder returns process pid if it is an agent whose node is gone: it has the
// lock file open, which only a child of ours inherits, and its parent is not the
// node that started it. The process that it returns stays that one, whatever
// its number is used for later.
func holder(f *os.File, pid, node int) (*os.Process, error) {
	p, err := os.FindProcess(pid) // before it is looked at
	if err != nil {
		return nil, fmt.Errorf("is locked by process %d: %w", pid, err)
	}
	if err := isHolder(f, pid, node); err != nil {
		_ = p.Release()
		return nil, err
	}
	return p, nil
}

func isHolder(f *os.File, pid, node int) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("is locked, by process %d as it says, which cannot be looked at: %w", pid, err)
	}
	for _, n := range names {
		if has, err := os.Stat(filepath.Join(dir, n.Name())); err != nil || !os.SameFile(has, info) {
			continue
		}
		parent, err := parentOf(pid)
		if err != nil {
			return err
		}
		if parent == node {
			return fmt.Errorf("is in use by process %d, whose corrosion agent is process %d", node, pid)
		}
		return nil
	}
	return fmt.Errorf("is locked, but not by process %d as it says: end what runs in its directory", pid)
}

func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(text))
		}
	}
	return 0, errors.New("no parent in the status of a process")
}
