//go:build linux

package lab

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	bootLimit   = 30 * time.Second // for systemd to have started all its units
	groupPrefix = "jiji-boot-"     // of the cgroups, as workPrefix is of directories
)

//go:embed boot.sh
var bootScript string

// Boot boots the server: systemd becomes the first process of a machine on a copy of
// the root file system that `.ci/debian` makes; prepare is a shell's script that is run
// in it before. From now on the server's commands and files are that machine's; its
// network is the server's, as it was. It returns when systemd has started what it starts
// at boot. The root file system is JIJI_TEST_DEBIAN, else the one in the user's cache;
// without one the test is skipped, or fails when the environment says CI=true.
func (s *Server) Boot(prepare string) {
	tb := s.lab.tb
	tb.Helper()
	root, err := debianRoot()
	if err != nil {
		unfit(tb, err.Error())
		return
	}
	if err := s.boot(root, prepare); err != nil {
		tb.Fatalf("boot %s: %v", s.Name, err)
	}
	Eventually(tb, bootLimit, "systemd of "+s.Name+" has booted", func() error {
		out, err := s.Try("systemctl", "is-system-running", "--wait")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return err
		}
		return nil
	})
}

func (s *Server) boot(root, prepare string) error {
	group, err := makeCgroup(s.Name)
	if err != nil {
		return err
	}
	s.group = group
	stdout, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdout.Close()
	var stderr bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", bootScript, "sh", root, group, prepare)
	cmd.Env = []string{"PATH=" + systemPath, "LANG=C.UTF-8", "script=" + bootScript}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = stdin, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = s.start(cmd)
	stdin.Close()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // it ends with the host
		close(ended)
	}()
	stdout.SetReadDeadline(time.Now().Add(bootLimit))
	line, err := bufio.NewReader(stdout).ReadString('\n')
	pid, nerr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, nerr); err != nil {
		cmd.Process.Kill()
		<-ended // has all that it said
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.booted = strconv.Itoa(pid)
	return nil
}

func (h *Host) isBooted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.booted != ""
}

// debianRoot finds what .ci/debian made.
func debianRoot() (string, error) {
	root := os.Getenv("JIJI_TEST_DEBIAN")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		root = filepath.Join(cache, "jiji-node", "debian-bookworm-3")
	}
	if _, err := os.Stat(filepath.Join(root, "lib/systemd/systemd")); err != nil {
		return "", fmt.Errorf("no root file system to boot: %w: run .ci/debian, which makes one", err)
	}
	return root, nil
}

// cgroupRoot is where this machine has its cgroups of version 2.
func cgroupRoot() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.subtree_control")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no cgroups of version 2 in /sys/fs/cgroup")
}

// makeCgroup makes one for a host of this process.
func makeCgroup(host string) (string, error) {
	root, err := cgroupRoot()
	if err != nil {
		return "", err
	}
	owner, err := ownerOf(os.Getpid())
	if err != nil {
		return "", err
	}
	leftovers, err := filepath.Glob(filepath.Join(root, groupPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range leftovers {
		if name, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), groupPrefix), "."); !alive(name) {
			removeCgroup(dir) // of a test that was killed; what it cannot remove harms nobody
		}
	}
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(root, groupPrefix+owner+"."+host+".")
}

// removeCgroup removes a cgroup that has no processes any more, with those in it.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		err = errors.Join(err, syscall.Rmdir(dirs[i]))
	}
	return err
}
