//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyLimit = 20 * time.Second // for a node to say READY=1; a race build on a busy machine is slow
	stopLimit  = 15 * time.Second // for a program to end after SIGTERM
	tailLines  = 25               // of a log, shown when its program did not do as it should
)

// A Process is a program that runs on a host until it is ended. One that ends without
// the test having asked for it makes the test fail.
type Process struct {
	Name string // "jiji-node on a"

	host  *Host
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{} // closed when the program has ended, and cmd.ProcessState is set

	mu       sync.Mutex
	said     []string      // what it told sd_notify(3); guarded by mu
	news     chan struct{} // closed and replaced when said grows; guarded by mu
	expected bool          // the test asked for the end, or has seen it; guarded by mu
}

// Start starts jiji-node with arguments: Start("run").
func (h *Host) Start(args ...string) *Process {
	h.lab.tb.Helper()
	return h.Spawn(nodeProgram, args...)
}

// Spawn starts any program that goes on running. Its output goes to a file of the
// test's artifacts, and it may speak sd_notify(3).
func (h *Host) Spawn(name string, args ...string) *Process {
	h.lab.tb.Helper()
	p, err := h.spawn(name, args)
	if err != nil {
		h.lab.tb.Fatalf("start %s on %s: %v", name, h.Name, err)
	}
	track(h.lab, &h.lab.running, p)
	return p
}

func (h *Host) spawn(name string, args []string) (*Process, error) {
	dir, err := workdir()
	if err != nil {
		return nil, err
	}
	if h.isBooted() {
		return nil, errors.New("it was booted: have its systemd run it") // what leads into it passes no signals on
	}
	program := filepath.Base(name)
	p := &Process{
		Name:  program + " on " + h.Name,
		host:  h,
		ended: make(chan struct{}),
		news:  make(chan struct{}),
	}
	if p.cmd, err = h.command(context.Background(), name, args); err != nil {
		return nil, err
	}
	number := h.lab.sockets.Add(1)
	logName := fmt.Sprintf("%s-%s-%d.log", h.Name, program, number)
	if p.log, err = os.OpenFile(filepath.Join(h.lab.dir, logName), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	// A path, not an abstract name, which would be of this network namespace.
	socket, err := os.MkdirTemp(dir, "notify-")
	if err != nil {
		return nil, err
	}
	socket = filepath.Join(socket, "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+socket)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := h.start(p.cmd); err != nil {
		conn.Close()
		return nil, err
	}
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		p.listen(conn)
	}()
	go func() {
		p.cmd.Wait()
		// What it said before it ended is in the socket: read it all.
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		<-listening
		conn.Close()
		close(p.ended)
	}()
	return p, nil
}

// listen notes what the program says until the socket's deadline.
func (p *Process) listen(conn *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.said = append(p.said, strings.Fields(string(buf[:n]))...)
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
}

// heard reports whether the program has said word, and returns what is closed when it
// says more.
func (p *Process) heard(word string) (bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.said {
		if s == word {
			return true, p.news
		}
	}
	return false, p.news
}

// Notified returns how often the program has told sd_notify(3) an assignment.
func (p *Process) Notified(assignment string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.said {
		if s == assignment {
			n++
		}
	}
	return n
}

// WaitReady waits until the program tells sd_notify(3) that it is ready. The test ends
// when the program does so first, or takes longer than 20 s.
func (p *Process) WaitReady() {
	p.host.lab.tb.Helper()
	p.WaitNotify("READY=1", readyLimit)
}

// WaitNotify waits until the program has told sd_notify(3) an assignment, such as
// "STOPPING=1".
func (p *Process) WaitNotify(assignment string, timeout time.Duration) {
	tb := p.host.lab.tb
	tb.Helper()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		ok, news := p.heard(assignment)
		if ok {
			return
		}
		select {
		case <-news:
		case <-p.ended:
			if ok, _ := p.heard(assignment); ok {
				return
			}
			p.expect()
			tb.Fatalf("%s: ended before it said %s: %v%s", p.Name, assignment, p.cmd.ProcessState, p.tail())
		case <-timer.C:
			tb.Fatalf("%s: did not say %s within %v%s", p.Name, assignment, timeout, p.tail())
		}
	}
}

// WaitLog waits until the program has printed text.
func (p *Process) WaitLog(text string, timeout time.Duration) {
	p.host.lab.tb.Helper()
	Eventually(p.host.lab.tb, timeout, fmt.Sprintf("%s prints %q", p.Name, text), func() error {
		if strings.Contains(p.Log(), text) {
			return nil
		}
		if p.Ended() {
			return fmt.Errorf("it ended: %v%s", p.cmd.ProcessState, p.tail())
		}
		return fmt.Errorf("it did not%s", p.tail())
	})
}

// Pid returns the program's process id, as this process sees it.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Log returns what the program has printed so far, on both its outputs.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// tail returns the end of the log, to put below an error.
func (p *Process) tail() string {
	text := strings.TrimSpace(p.Log())
	if text == "" {
		return "\n\tit printed nothing"
	}
	lines := strings.Split(text, "\n")
	if n := len(lines); n > tailLines {
		lines = lines[n-tailLines:]
	}
	return "\n\t" + strings.Join(lines, "\n\t")
}

func (p *Process) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = true
}

// Signal sends a signal. Should the program end after it, the test meant it to.
func (p *Process) Signal(sig syscall.Signal) {
	p.host.lab.tb.Helper()
	p.expect()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.host.lab.tb.Fatalf("%s: send %v: %v (%v)%s", p.Name, sig, err, p.cmd.ProcessState, p.tail())
	}
}

// Wait waits until the program has ended, and returns its exit code, -1 when a signal
// ended it.
func (p *Process) Wait(timeout time.Duration) int {
	p.host.lab.tb.Helper()
	p.expect()
	select {
	case <-p.ended:
	case <-time.After(timeout):
		p.cmd.Process.Signal(syscall.SIGQUIT) // a Go program prints its goroutines
		select {
		case <-p.ended:
		case <-time.After(time.Second):
		}
		p.host.lab.tb.Fatalf("%s: did not end within %v; after SIGQUIT:%s", p.Name, timeout, p.tail())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Stop ends the program by SIGTERM and waits until it is gone. The test fails when the
// program then says that something was wrong.
func (p *Process) Stop() {
	tb := p.host.lab.tb
	tb.Helper()
	p.Signal(syscall.SIGTERM)
	code := p.Wait(stopLimit)
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if code != 0 && !(status.Signaled() && status.Signal() == syscall.SIGTERM) {
		tb.Errorf("%s: ended with %v after SIGTERM, want exit status 0%s", p.Name, p.cmd.ProcessState, p.tail())
	}
}

// Kill9 ends the program by SIGKILL and waits until it is gone.
func (p *Process) Kill9() {
	p.host.lab.tb.Helper()
	p.mu.Lock()
	ending := p.expected // the test told it to end: it may have just now
	p.mu.Unlock()
	p.expect()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil && !(ending && errors.Is(err, os.ErrProcessDone)) {
		p.host.lab.tb.Fatalf("%s: kill: %v (%v)%s", p.Name, err, p.cmd.ProcessState, p.tail())
	}
	p.Wait(stopLimit)
}

// judge fails the test for what the program did wrong while nobody looked.
func (p *Process) judge() {
	tb := p.host.lab.tb
	p.mu.Lock()
	expected := p.expected
	p.mu.Unlock()
	if p.Ended() && !expected {
		tb.Errorf("%s: ended by itself: %v%s", p.Name, p.cmd.ProcessState, p.tail())
	}
	if _, report, found := strings.Cut(p.Log(), "WARNING: DATA RACE"); found {
		tb.Errorf("%s: data race:%.4000s", p.Name, report)
	}
}
