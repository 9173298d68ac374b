package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	sigTerm = syscall.SIGTERM
	sigKill = syscall.SIGKILL
)

// environment is all that an agent gets: each other variable that it knows
// changes its configuration, LOG and DB too.
func environment(c Config) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.Dir,
		"TMPDIR=" + filepath.Join(c.Dir, tempName),
	}
}

var versionLine = regexp.MustCompile(`^(?:(?:klukai|corrosion) )?v?[0-9]+\.[0-9]+\.[0-9]+\S*`)

// tooOld is upstream's versions up to July 2024. The next one, 0.2.0-beta.0, was
// never raised: what else there is shows only when an agent runs.
var tooOld = regexp.MustCompile(`^corrosion v?0\.1\.`)

// Find returns the path of an agent's binary, which is a path or a name to look up.
func Find(bin string) (string, error) {
	path, err := exec.LookPath(bin)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no corrosion binary %q: install it, or say where it is (--corrosion-bin)", bin)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("corrosion binary %s is not executable", bin)
	case err != nil:
		return "", fmt.Errorf("look for corrosion binary: %w", err)
	}
	return path, nil
}

// identify returns the path of the agent's binary and what it says its version
// is.
func identify(ctx context.Context, c Config) (path, version string, err error) {
	if path, err = Find(c.Bin); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env, cmd.Dir, cmd.WaitDelay = environment(c), c.Dir, time.Second
	var lines []string
	out := &liner{emit: func(line string) {
		if len(lines) == 0 {
			lines = append(lines, oneLine(line))
		}
	}}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	out.flush()
	said := strings.Join(lines, "")
	version = versionLine.FindString(said)
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return "", "", fmt.Errorf("%s is no program for this machine (%s)", path, runtime.GOARCH)
	case err != nil && ctx.Err() != nil:
		return "", "", fmt.Errorf("%s --version did not answer within %v", path, callWithin)
	case err != nil && said == "":
		return "", "", fmt.Errorf("run %s --version: %w", path, err)
	case err != nil || version == "":
		return "", "", fmt.Errorf("%s is no corrosion: asked for its version it says %q, expected one like \"klukai 0.1.4\"", path, said)
	case tooOld.MatchString(version):
		return "", "", fmt.Errorf("%s is %s, which is from before July 2024: expected corrosion 0.2.0-beta.0 or later, of September 2025 or later", path, version)
	}
	return path, version, nil
}

// checkAddresses says which address the agent could not have. Agents end with a
// panic there, and not all name the address.
func checkAddresses(c Config) error {
	listen := func(what, network string, addr netip.AddrPort) error {
		var l interface{ Close() error }
		var err error
		if network == "udp" {
			l, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
		} else {
			l, err = net.ListenTCP(network, net.TCPAddrFromAddrPort(addr))
		}
		switch {
		case err == nil:
			return l.Close()
		case errors.Is(err, syscall.EADDRINUSE):
			by := ""
			if c.Holder != nil {
				by = c.Holder(network, addr)
			}
			if by == "" {
				by = "somebody who cannot be named from here"
			}
			return fmt.Errorf("%s address %s/%s is taken by %s: end what has it, or choose another", what, addr, network, by)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return fmt.Errorf("%s address %s/%s: no interface has %s", what, addr, network, addr.Addr())
		default:
			return fmt.Errorf("%s address %s/%s: %w", what, addr, network, err)
		}
	}
	errs := []error{listen("gossip", "udp", c.Gossip), listen("API", "tcp", c.API)}
	if c.Metrics.IsValid() {
		errs = append(errs, listen("metrics", "tcp", c.Metrics))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// A command is how an agent is started.
type command struct {
	bin  string
	cfg  Config
	lock *os.File // stays locked as long as the agent lives
	out  *output
}

// A child is a running agent, or one that ran.
type child struct {
	pid   int
	proc  *os.Process
	out   *output
	done  chan struct{} // closed when it has ended
	ended string        // how; valid once done is closed
}

// start starts the agent and writes its id to the lock.
func start(c command) (*child, error) {
	if err := signLock(c.lock, 0); err != nil { // takes the room on the disk
		return nil, fmt.Errorf("write lock: %w", err)
	}
	cmd := exec.Command(c.bin, "--config", filepath.Join(c.cfg.Dir, configName), "agent")
	cmd.Env, cmd.Dir, cmd.WaitDelay = environment(c.cfg), c.cfg.Dir, time.Second
	cmd.SysProcAttr = attributes()
	cmd.ExtraFiles = []*os.File{c.lock}
	stdout, stderr := &liner{emit: c.out.line}, &liner{emit: c.out.line}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	started := make(chan error, 1)
	k := &child{out: c.out, done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // the kernel ends the child with the thread that started it
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state says all
		stdout.flush()
		stderr.flush()
		k.ended = cmd.ProcessState.String()
		close(k.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	k.proc, k.pid = cmd.Process, cmd.Process.Pid
	if err := signLock(c.lock, k.pid); err != nil {
		k.signal(sigKill)
		<-k.done
		return nil, fmt.Errorf("write lock: %w", err)
	}
	return k, nil
}

// signal is harmless after the end: a process is held by a descriptor, not by
// its number.
func (k *child) signal(s syscall.Signal) { _ = k.proc.Signal(s) }

// own locks the agent's directory for the agents that this process starts. Where
// a former agent lives, whose node was killed, it ends that one first.
func (a *Agent) own(ctx context.Context) (*os.File, error) {
	return own(ctx, a.cfg.Dir, a.stop, a.cfg.Log)
}

func own(ctx context.Context, dir string, patience time.Duration, log *slog.Logger) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|oNoFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory: %w", err)
	}
	if err := takeLock(ctx, f, patience, log); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock directory: %s: %w", path, err)
	}
	return f, nil
}

// EndFormer ends the agent that a killed node left in dir, if there is one. An
// agent that a running node has is an error.
func EndFormer(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, lockName)); errors.Is(err, fs.ErrNotExist) {
		return nil // none ever ran there
	}
	lock, err := own(context.Background(), dir, stopPatience, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("end the corrosion agent of a former node: %w", err)
	}
	return lock.Close()
}

// removeSocket removes the admin socket of an agent that has ended: no agent
// removes its own.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSocket == 0:
		return nil
	case err == nil:
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("remove admin socket of an ended agent: %w", err)
	}
	return nil
}

func takeLock(ctx context.Context, f *os.File, patience time.Duration, log *slog.Logger) error {
	err := lock(f)
	if !errors.Is(err, errLocked) {
		return err
	}
	pid, node, err := readLock(f)
	if err != nil {
		return err
	}
	former, err := holder(f, pid, node)
	if err != nil {
		return err
	}
	defer former.Release()
	log.Warn("end the corrosion agent that a killed node left", "pid", pid)
	for _, try := range []struct {
		signal   syscall.Signal
		patience time.Duration
	}{{sigTerm, patience}, {sigKill, killPatience}} {
		_ = former.Signal(try.signal) // it may have ended
		for end := time.Now().Add(try.patience); time.Now().Before(end); {
			if err := lock(f); !errors.Is(err, errLocked) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return fmt.Errorf("process %d, an agent that a killed node left, does not end", pid)
}

// The lock file holds "PID NODE\n", padded so that a full disk takes it: the
// agent, or 0, and who started it.
const lockLen = 32

func signLock(f *os.File, pid int) error {
	_, err := f.WriteAt(fmt.Appendf(nil, "%-*s\n", lockLen-1, fmt.Sprintf("%d %d", pid, os.Getpid())), 0)
	return err
}

func readLock(f *os.File) (pid, node int, err error) {
	b := make([]byte, lockLen)
	n, _ := f.ReadAt(b, 0)
	return parseLock(string(b[:n]))
}

func parseLock(text string) (pid, node int, err error) {
	f := strings.Fields(text)
	if len(f) == 2 {
		pid, err = strconv.Atoi(f[0])
		if err == nil {
			node, err = strconv.Atoi(f[1])
		}
	}
	if len(f) != 2 || err != nil || pid < 2 || node < 1 {
		return 0, 0, fmt.Errorf("is locked by a process that it does not name, it says %q: end what runs in its directory", oneLine(text))
	}
	return pid, node, nil
}
