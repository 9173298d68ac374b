//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const workPrefix = "jiji-lab-"

// A workspace is this process's directory for what its labs share: binaries and
// sockets. It goes with the process.
type workspace struct {
	dir  string
	life *os.File // the janitor's standard input: never closed but by the process's end
}

var openWorkspace = sync.OnceValues(func() (workspace, error) {
	owner, err := ownerOf(os.Getpid())
	if err != nil {
		return workspace{}, err
	}
	if err := sweep(os.TempDir()); err != nil {
		return workspace{}, err
	}
	dir := filepath.Join(os.TempDir(), workPrefix+owner)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return workspace{}, err
	}
	life, err := janitor(dir)
	return workspace{dir, life}, err
})

// workdir returns the directory of the workspace.
func workdir() (string, error) {
	w, err := openWorkspace()
	return w.dir, err
}

// janitor starts a process that removes dir when this one has ended, even by a signal
// that it cannot handle: when what it returns is closed.
func janitor(dir string) (*os.File, error) {
	stdin, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	cmd := exec.Command("/bin/sh", "-c", `cat >/dev/null; rm -rf -- "$1"`, "sh", dir)
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not for a Ctrl-C at the terminal
	if err := cmd.Start(); err != nil {
		life.Close()
		return nil, fmt.Errorf("start the process that removes %s: %w", dir, err)
	}
	return life, nil
}

// sweep removes from tmp what lab processes left there whose machine or janitor was
// stopped with them.
func sweep(tmp string) error {
	dirs, err := filepath.Glob(filepath.Join(tmp, workPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if !alive(strings.TrimPrefix(filepath.Base(dir), workPrefix)) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// ownerOf returns a name for the process that no other has or will have until the
// machine starts again: its id and the clock tick at which it started.
func ownerOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// proc_pid_stat(5): field 22, counted from after the command's last parenthesis.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("read /proc/%d/stat: %d fields after the command, want 20 or more", pid, len(fields))
	}
	return fmt.Sprintf("%d-%s", pid, fields[19]), nil
}

// alive reports whether the process that owner names still runs.
func alive(owner string) bool {
	text, _, _ := strings.Cut(owner, "-")
	pid, err := strconv.Atoi(text)
	if err != nil {
		return false
	}
	now, err := ownerOf(pid)
	return err == nil && now == owner
}
