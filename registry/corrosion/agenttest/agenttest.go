// Package agenttest starts a real Corrosion agent for tests.
package agenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout = 30 * time.Second // an agent needs 0.2 s alone on the machine
	stopTimeout  = 30 * time.Second // and 7 s to end with an open stream
	tries        = 5                // of ports that others take between choice and use
)

// Options say what agent to start. All may be zero.
type Options struct {
	Schema    string   // SQL; empty: no tables
	Token     string   // that the API wants; empty: none
	API       string   // address and port; empty: a free one on 127.0.0.1
	Gossip    string   // likewise
	Bootstrap []string // gossip addresses of other agents
}

// An Agent is one that runs, or ran. Its methods are for one goroutine.
type Agent struct {
	URL        string // of the API: http://127.0.0.1:PORT
	Token      string
	Gossip     string // 127.0.0.1:PORT
	Dir        string // its database, configuration and log
	SchemaFile string // read at each start

	binary string
	cmd    *exec.Cmd     // nil if it does not run
	ended  chan struct{} // closed when it ended
}

// Start starts an agent on loopback and returns when it answers queries. It is
// killed at the end of the test. Without a binary the test is skipped, or fails
// when the environment says CI=true. The binary is JIJI_TEST_CORROSION, else
// jiji-node/klukai-0.1.4/bin/corrosion in XDG_CACHE_HOME or ~/.cache, else
// /opt/klukai/bin/corrosion.
func Start(tb testing.TB, opts Options) *Agent {
	tb.Helper()
	a := &Agent{Token: opts.Token, Dir: tb.TempDir(), binary: Binary(tb)}
	a.SchemaFile = filepath.Join(a.Dir, "schema", "schema.sql")
	for _, dir := range []string{"schema", "tmp"} {
		if err := os.Mkdir(filepath.Join(a.Dir, dir), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.WriteFile(a.SchemaFile, []byte(opts.Schema), 0o600); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		a.kill()
		if tb.Failed() {
			tb.Logf("end of the agent's log:\n%s", a.tail())
		}
	})
	for try := 1; ; try++ {
		api, gossip := opts.API, opts.Gossip
		if api == "" {
			api = freeTCP(tb)
		}
		if gossip == "" {
			gossip = freeUDP(tb)
		}
		a.URL, a.Gossip = "http://"+api, gossip
		if err := os.WriteFile(filepath.Join(a.Dir, "config.toml"), []byte(a.config(api, opts.Bootstrap)), 0o600); err != nil {
			tb.Fatal(err)
		}
		err := a.start()
		if err == nil {
			return a
		}
		if try == tries || !strings.Contains(a.tail(), "in use") {
			tb.Fatalf("start agent: %v", err)
		}
	}
}

// Binary returns the agent's executable, or ends the test, see Start.
func Binary(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("JIJI_TEST_CORROSION"); path != "" {
		if _, err := os.Stat(path); err != nil {
			tb.Fatalf("JIJI_TEST_CORROSION: %v", err)
		}
		return path
	}
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		if home, err := os.UserHomeDir(); err == nil {
			cache = filepath.Join(home, ".cache")
		}
	}
	paths := []string{filepath.Join(cache, "jiji-node", "klukai-0.1.4", "bin", "corrosion"), "/opt/klukai/bin/corrosion"}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	reason := fmt.Sprintf("no Corrosion agent: JIJI_TEST_CORROSION is not set, and %s do not exist", strings.Join(paths, " and "))
	if os.Getenv("CI") == "true" {
		tb.Fatalf("%s (with CI=true this is no reason to skip)", reason)
	}
	tb.Skip(reason)
	return ""
}

func (a *Agent) config(api string, bootstrap []string) string {
	var b strings.Builder
	path := func(name string) string { return strconv.Quote(filepath.Join(a.Dir, name)) }
	fmt.Fprintf(&b, "[db]\npath = %s\nschema_paths = [%s]\ncache_size_kib = -16384\n", path("state.db"), path("schema"))
	fmt.Fprintf(&b, "[gossip]\naddr = %q\nclient_addr = \"127.0.0.1:0\"\nplaintext = true\nbootstrap = [", a.Gossip)
	for _, addr := range bootstrap {
		fmt.Fprintf(&b, "%q, ", addr)
	}
	fmt.Fprintf(&b, "]\n[api]\naddr = %q\n", api)
	if a.Token != "" {
		fmt.Fprintf(&b, "authz.bearer-token = %q\n", a.Token)
	}
	fmt.Fprintf(&b, "[admin]\npath = %s\n[log]\ncolors = false\n", path("admin.sock"))
	return b.String()
}

// start starts the process and waits until it answers.
func (a *Agent) start() error {
	log, err := os.OpenFile(a.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(a.binary, "--config", filepath.Join(a.Dir, "config.toml"), "agent")
	cmd.Dir, cmd.Stdout, cmd.Stderr = a.Dir, log, log
	// Nothing of ours: the agent reads LOG, DB, API and others as configuration.
	// It loads a library from TMPDIR.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.Dir, "TMPDIR=" + filepath.Join(a.Dir, "tmp")}
	cmd.SysProcAttr = dieWithParent()
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// What dieWithParent asks for is the end of the thread that started it.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		return err
	}
	a.cmd, a.ended = cmd, ended

	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		err := a.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			a.cmd = nil
			return fmt.Errorf("%s ended: %v; its log:\n%s", a.binary, cmd.ProcessState, a.tail())
		case <-ctx.Done():
			a.kill()
			return fmt.Errorf("no answer within %v: %v; its log:\n%s", startTimeout, err, a.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ask runs a query.
func (a *Agent) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.URL+"/v1/queries", strings.NewReader(`"SELECT 1"`))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if a.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"eoq"`)) {
		return fmt.Errorf("SELECT 1: %s: %s", resp.Status, body)
	}
	return nil
}

// Stop ends the agent with sig and waits until it is gone. It does nothing if
// the agent does not run.
func (a *Agent) Stop(tb testing.TB, sig os.Signal) {
	tb.Helper()
	if a.cmd == nil {
		return
	}
	if err := a.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Fatalf("send %v to the agent: %v", sig, err)
	}
	select {
	case <-a.ended:
		a.cmd = nil
	case <-time.After(stopTimeout):
		a.kill()
		tb.Fatalf("the agent ran on for %v after %v", stopTimeout, sig)
	}
}

// Restart starts the agent again, with the same database and ports; one that
// runs is stopped with SIGTERM first. It returns when the agent answers queries.
func (a *Agent) Restart(tb testing.TB) {
	tb.Helper()
	a.Stop(tb, syscall.SIGTERM)
	if err := a.start(); err != nil {
		tb.Fatalf("start agent again: %v", err)
	}
}

// Pid is the process id, 0 if the agent does not run.
func (a *Agent) Pid() int {
	if a.cmd == nil {
		return 0
	}
	return a.cmd.Process.Pid
}

func (a *Agent) kill() {
	if a.cmd != nil {
		a.cmd.Process.Kill()
		<-a.ended
		a.cmd = nil
	}
}

func (a *Agent) log() string { return filepath.Join(a.Dir, "agent.log") }

// tail returns the last lines of the log.
func (a *Agent) tail() string {
	b, err := os.ReadFile(a.log())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

func freeTCP(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func freeUDP(tb testing.TB) string {
	tb.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}
