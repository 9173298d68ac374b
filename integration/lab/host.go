//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	setupLimit   = 10 * time.Second // for a host to come up
	commandLimit = 60 * time.Second // for a command of Run and Try to end

	namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID
	systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

//go:embed holder.sh
var holderScript string

// A Host is a machine of the lab: a server, a container, or the world between them.
type Host struct {
	Name string

	lab    *Lab
	holder *exec.Cmd
	pidfd  int
	life   *os.File // the holder's standard input: its end is the host's
	nl     *netlink.Handle

	mu     sync.Mutex
	env    []string // guarded by mu
	booted string   // the process of the host that is its systemd, if it was booted; guarded by mu
	group  string   // the cgroup of all that systemd runs; "" if there is none
}

// newHost makes a host with nothing but a loopback interface.
func newHost(l *Lab, name string) (*Host, error) {
	h := &Host{Name: name, lab: l}
	if err := h.hold(); err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	if err := h.connect(); err != nil {
		h.close()
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	return h, nil
}

// hold starts the host's first process and waits until its file systems are there.
func (h *Host) hold() error {
	stdin, life, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	ready, stdout, err := os.Pipe()
	if err != nil {
		life.Close()
		return err
	}
	defer ready.Close()

	var stderr bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", holderScript, "sh", h.Name)
	cmd.Env = []string{"PATH=" + systemPath}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true, PidFD: &h.pidfd}
	err = cmd.Start()
	stdout.Close()
	if err != nil {
		life.Close()
		return fmt.Errorf("make namespaces: %w", err)
	}
	h.holder, h.life = cmd, life

	ready.SetReadDeadline(time.Now().Add(setupLimit))
	if _, err := io.ReadFull(ready, make([]byte, len("ready\n"))); err != nil {
		cmd.Process.Kill()
		h.close()
		return fmt.Errorf("make file systems: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// connect opens the host's netlink socket and brings its loopback interface up.
func (h *Host) connect() error {
	ns, err := netns.GetFromPid(h.holder.Process.Pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	if h.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return err
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.nl.LinkSetUp(lo)
}

// close ends the host and everything that runs in it.
func (h *Host) close() {
	if h.nl != nil {
		h.nl.Close()
	}
	h.life.Close()
	h.holder.Wait()
	unix.Close(h.pidfd)
	if h.group != "" {
		if err := removeCgroup(h.group); err != nil {
			h.lab.tb.Logf("remove the cgroup of %s: %v", h.Name, err)
		}
	}
}

// enter calls do on a thread of its own that is in the host's namespaces of the
// given kinds. Processes started there are in them; sockets made there stay in them.
func (h *Host) enter(kinds int, do func() error) error {
	return onThread(func() error {
		if kinds&unix.CLONE_NEWNS != 0 {
			if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) wants it
				return fmt.Errorf("unshare file system attributes: %w", err)
			}
		}
		if err := unix.Setns(h.pidfd, kinds); err != nil {
			return fmt.Errorf("enter the namespaces of %s: %w", h.Name, err)
		}
		return do()
	})
}

// onThread calls do on a thread that ends with the call, so do may change what a
// thread cannot change back.
func onThread(do func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("ended the goroutine instead of returning")
		defer func() { result <- err }()
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end. While it is held here, do gets another.
			err = onThread(do)
			runtime.UnlockOSThread()
			return
		}
		err = do()
	}()
	return <-result
}

// Do calls do in the host's network namespace: sockets made in it are the host's, and
// may be used anywhere and closed by the test. It must not end the test.
func (h *Host) Do(do func() error) error {
	return h.enter(unix.CLONE_NEWNET, do)
}

// Path returns where this process finds a file of the host: Path("/run/jiji/node.sock").
// It does not follow absolute symbolic links of the host.
func (h *Host) Path(path string) string {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok { // such a link
		path = "/run/" + rest
	}
	root := fmt.Sprintf("/proc/%d/root", h.holder.Process.Pid)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.booted != "" {
		root += "/proc/" + h.booted + "/root"
	}
	return root + path
}

// WriteFile makes or replaces a file of the host, and the directories above it.
func (h *Host) WriteFile(path, content string) {
	h.lab.tb.Helper()
	at := h.Path(path)
	err := os.MkdirAll(filepath.Dir(at), 0o755)
	if err == nil {
		err = os.WriteFile(at, []byte(content), 0o644)
	}
	if err != nil {
		h.lab.tb.Fatalf("write %s on %s: %v", path, h.Name, err)
	}
}

// ReadFile returns the content of a file of the host.
func (h *Host) ReadFile(path string) string {
	h.lab.tb.Helper()
	b, err := os.ReadFile(h.Path(path))
	if err != nil {
		h.lab.tb.Fatalf("read %s on %s: %v", path, h.Name, err)
	}
	return string(b)
}

// Setenv gives a variable to the programs that are started on the host from now on.
// They have none of this process's but these, PATH, HOME, LANG and GORACE.
func (h *Host) Setenv(name, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.env = append(slices.Clone(h.env), name+"="+value)
}

// A CommandError is a command that could not run, or did not exit with 0 in time.
type CommandError struct {
	Host           string
	Args           []string
	Stdout, Stderr string
	Code           int // exit status; -1 when it did not run, was killed, or took too long
	Err            error
}

func (e *CommandError) Unwrap() error { return e.Err }

func (e *CommandError) Error() string {
	text := fmt.Sprintf("%s: %s: %v", e.Host, strings.Join(e.Args, " "), e.Err)
	for _, out := range []string{e.Stdout, e.Stderr} {
		if out = strings.TrimSpace(out); out != "" {
			text += "\n\t" + strings.ReplaceAll(out, "\n", "\n\t")
		}
	}
	return text
}

// Run runs a program on the host, to its end, and returns its standard output. The
// program "jiji-node" is the one of Binary. The test ends unless it exits with 0.
func (h *Host) Run(name string, args ...string) string {
	h.lab.tb.Helper()
	return h.RunInput("", name, args...)
}

// RunInput is Run with text on the program's standard input.
func (h *Host) RunInput(input, name string, args ...string) string {
	h.lab.tb.Helper()
	out, err := h.TryInput(input, name, args...)
	if err != nil {
		h.lab.tb.Fatalf("%v", err)
	}
	return out
}

// Try is Run that returns a *CommandError instead of ending the test.
func (h *Host) Try(name string, args ...string) (string, error) {
	return h.TryInput("", name, args...)
}

// TryInput is Try with text on the program's standard input.
func (h *Host) TryInput(input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), commandLimit,
		fmt.Errorf("did not end within %v", commandLimit))
	defer cancel()
	var stdout, stderr bytes.Buffer
	failed := &CommandError{Host: h.Name, Args: append([]string{name}, args...), Code: -1}
	cmd, err := h.command(ctx, name, args)
	if err != nil {
		failed.Err = err
		return "", failed
	}
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err = h.start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if cmd.ProcessState != nil {
		failed.Code = cmd.ProcessState.ExitCode()
	}
	failed.Stdout, failed.Stderr, failed.Err = stdout.String(), stderr.String(), err
	return stdout.String(), failed
}

// command returns a program of the host to start, with a clean environment.
func (h *Host) command(ctx context.Context, name string, args []string) (*exec.Cmd, error) {
	dir, err := workdir()
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.booted != "" { // its programs are its own
		args = append([]string{"--target", h.booted, "--mount", "--pid", "--cgroup", "--", name}, args...)
		name = "nsenter"
	}
	path, err := h.lookPath(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = append([]string{
		"PATH=" + filepath.Join(dir, h.lab.programs()) + ":" + systemPath,
		"HOME=/root",
		"LANG=C.UTF-8",
		"GORACE=atexit_sleep_ms=0", // else what is built with the race detector takes a second to end
	}, h.env...)
	return cmd, nil
}

// lookPath finds a program as the host would: programs are this machine's.
func (h *Host) lookPath(name string) (string, error) {
	if name == nodeProgram {
		return h.lab.nodeBinary()
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(systemPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: %w", name, systemPath, exec.ErrNotFound)
}

// start starts a command in the host's namespaces.
func (h *Host) start(cmd *exec.Cmd) error {
	return h.enter(namespaces, cmd.Start)
}

// Pid returns the id of the host's first process: `nsenter -a -t Pid` leads into it.
func (h *Host) Pid() int { return h.holder.Process.Pid }
