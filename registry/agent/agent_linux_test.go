package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

// The test binary is its own child: a node that runs an agent until it is killed.
const roleVar = "AGENT_TEST_NODE"

func TestMain(m *testing.M) {
	if bin := os.Getenv(roleVar); bin != "" {
		node(bin, os.Args[1], os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

func node(bin, dir, gossip, api string) {
	a, err := New(Config{
		Bin: bin, Dir: dir, Socket: filepath.Join(dir, "s"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Gossip: netip.MustParseAddrPort(gossip), API: netip.MustParseAddrPort(api), Schema: testSchema,
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go a.Run(context.Background())
	for a.State().PID == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(a.State().PID)
	select {}
}

var testSchema = map[string]string{"10-shared.sql": registry.SharedSchema, "20-own.sql": registry.OwnSchema}

// fake writes a program that answers --version, and does what the shell text
// says as agent. A child writes it: a program that is open for writing cannot be
// started, and children of other tests hold descriptors for a moment.
func fake(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "corrosion")
	cmd := exec.Command("sh", "-c", `cat >"$1" && chmod +x "$1"`, "sh", path)
	cmd.Stdin = strings.NewReader("#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'corrosion 0.2.0-beta.0'; exit; fi\n" + text + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// A logbook is a log that a test reads while it is written.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logbook) count(text string) int { return strings.Count(l.String(), text) }

func freePort(t *testing.T, network, host string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
		must(t, err)
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func config(t *testing.T, bin string) (Config, *logbook) {
	t.Helper()
	dir, err := os.MkdirTemp("", "jiji") // of t.TempDir the path may be too long for a socket
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	book := new(logbook)
	return Config{
		Bin: bin, Dir: filepath.Join(dir, `a "b"`), Socket: filepath.Join(dir, "s"),
		Gossip: freePort(t, "udp", "127.0.0.1"), Metrics: freePort(t, "tcp", "127.0.0.1"), API: freePort(t, "tcp", "127.0.0.1"),
		Schema: testSchema, Log: slog.New(slog.NewTextHandler(book, nil)),
	}, book
}

func open(t *testing.T, c Config) *Agent {
	t.Helper()
	a, err := New(c)
	must(t, err)
	return a
}

// run runs a until the test is over, or stop is called, which returns how long
// that took.
func run(t *testing.T, a *Agent) (stop func() time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceValue(func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if s := a.State(); s.Running || s.PID != 0 {
			t.Errorf("after Run: %+v", s)
		}
		return time.Since(began)
	})
	t.Cleanup(func() { stop() })
	return stop
}

// until waits for what holds soon, longer than the minute after which an agent
// lists its members anew.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func ready(t *testing.T, a *Agent) {
	t.Helper()
	var err error
	defer func() {
		if t.Failed() {
			t.Logf("Ready: %v; %+v", err, a.State())
		}
	}()
	until(t, "ready", func() bool { err = a.Ready(t.Context()); return err == nil })
}

// alive is about what runs: an orphan that ended may wait for init.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

func TestNewWritesWhatDiffers(t *testing.T) {
	c, _ := config(t, "corrosion")
	a := open(t, c)
	list := func() string {
		var b strings.Builder
		must(t, filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
			must(t, err)
			info, err := d.Info()
			must(t, err)
			fmt.Fprintf(&b, "%s %v", strings.TrimPrefix(path, c.Dir), info.Mode())
			if !d.IsDir() {
				fmt.Fprintf(&b, " %d", info.Sys().(*syscall.Stat_t).Ino)
			}
			b.WriteByte('\n')
			return nil
		}))
		return b.String()
	}
	before := list()
	for _, want := range []string{"/config.toml -rw-------", "/token -rw-------", "/schema/10-shared.sql -rw-------", "/schema/20-own.sql", "/tmp drwx------", " drwx------"} {
		if !strings.Contains(before, want) {
			t.Errorf("no %q in\n%s", want, before)
		}
	}
	b := open(t, c)
	if a.Token() != b.Token() || len(a.Token()) != 64 {
		t.Error("the token is another one")
	}
	if after := list(); after != before {
		t.Errorf("written again:\n%s\nbefore\n%s", after, before)
	}
	c.Schema = map[string]string{"30-new.sql": "-- nothing\n"}
	open(t, c)
	if after := list(); strings.Contains(after, "10-shared") || !strings.Contains(after, "30-new.sql") {
		t.Errorf("schema of another version is still there:\n%s", after)
	}
	if a.URL() != "http://"+c.API.String() {
		t.Errorf("URL %s", a.URL())
	}
}

func TestDamagedToken(t *testing.T) {
	c, book := config(t, "corrosion")
	first := open(t, c).Token()
	path := filepath.Join(c.Dir, "token")
	for want, damage := range map[string]func(){
		"it is not 64 hexadecimal digits": func() { must(t, os.WriteFile(path, []byte(first[:63]+"x"), 0o600)) },
		"its mode is 0640":                func() { must(t, os.WriteFile(path, []byte(first), 0o600)); must(t, os.Chmod(path, 0o640)) },
	} {
		damage()
		a := open(t, c)
		if a.Token() == first || len(a.Token()) != 64 || !strings.Contains(book.String(), want) {
			t.Errorf("token %d bytes, log %s", len(a.Token()), book)
		}
		text, err := os.ReadFile(filepath.Join(c.Dir, "config.toml"))
		if err != nil || !strings.Contains(string(text), a.Token()) {
			t.Errorf("the configuration does not have it: %v", err)
		}
	}
	if strings.Contains(book.String(), first[:32]) {
		t.Error("the log tells a token")
	}
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o700))
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "read token: "+path+" is a directory, want a regular file") {
		t.Errorf("New: %v", err)
	}
}

func TestDirNotWritable(t *testing.T) {
	c, _ := config(t, "corrosion")
	must(t, os.WriteFile(filepath.Dir(c.Dir)+"/file", nil, 0o600))
	c.Dir = filepath.Dir(c.Dir) + "/file/x"
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "corrosion agent: make directory: mkdir") || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("New: %v", err)
	}
}

// Binaries that cannot be started, each said once, in one line.
func TestBadBinary(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	must(t, os.WriteFile(plain, []byte("x"), 0o600))
	foreign := fake(t, "") // becomes no program
	must(t, exec.Command("sh", "-c", `printf '\177ELFx' >"$1"`, "sh", foreign).Run())
	usage := fake(t, "")
	must(t, exec.Command("sh", "-c", `printf '#!/bin/sh\necho "unknown flag: $1" >&2; exit 2\n' >"$1"`, "sh", usage).Run())
	old := fake(t, "")
	must(t, exec.Command("sh", "-c", `printf '#!/bin/sh\necho corrosion 0.1.0\n' >"$1"`, "sh", old).Run())
	for bin, want := range map[string]string{
		old:                  old + " is corrosion 0.1.0, which is from before July 2024: expected corrosion 0.2.0-beta.0 or later, of September 2025 or later",
		"no-such-corrosion":  `there is no corrosion binary "no-such-corrosion": install it, or say where it is`,
		"/no/such/corrosion": `there is no corrosion binary "/no/such/corrosion": install it, or say where it is`,
		plain:                "corrosion binary " + plain + " is not executable",
		foreign:              foreign + " is no program for this machine",
		"true":               `is no corrosion: asked for its version it says "true (GNU coreutils)`,
		usage:                usage + ` is no corrosion: asked for its version it says "unknown flag: --version", expected one like "klukai 0.1.4"`,
	} {
		t.Run(filepath.Base(bin), func(t *testing.T) {
			c, book := config(t, bin)
			a := open(t, c)
			stop := run(t, a)
			until(t, "a reason", func() bool { return a.State().LastExit != "" })
			time.Sleep(3 * minDelay) // another try or two
			stop()
			if s := a.State(); !strings.Contains(s.LastExit, want) || strings.Contains(s.LastExit, "\n") || s.Restarts != 0 || s.Since.IsZero() {
				t.Errorf("%+v, want %q", s, want)
			}
			if err := a.Ready(t.Context()); err == nil || err.Error() != "corrosion agent is down: "+a.State().LastExit {
				t.Errorf("Ready: %v", err)
			}
			if n := book.count("level="); n != 1 {
				t.Errorf("%d lines in the log:\n%s", n, book)
			}
		})
	}
}

func TestCleanEnvironment(t *testing.T) {
	for _, name := range []string{"LOG", "DB", "API", "PERF", "ADMIN", "GOSSIP", "http_proxy", "RUST_LOG", "LD_PRELOAD_X"} {
		t.Setenv(name, "x")
	}
	c, _ := config(t, fake(t, "env >\"$HOME/env\"; exec sleep 60"))
	a := open(t, c)
	stop := run(t, a)
	var text []byte
	until(t, "an environment", func() bool { text, _ = os.ReadFile(filepath.Join(c.Dir, "env")); return len(text) > 0 })
	stop()
	var names []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "HOME PATH PWD TMPDIR" { // PWD is the shell's
		t.Errorf("the agent has %s", got)
	}
}

func TestEndsInALoop(t *testing.T) {
	c, book := config(t, fake(t, `printf '\nthread '"'main'"' (7) panicked at x.rs:1:\ncould not start agent: boom\n\nLocation:\n' >&2; exit 101`))
	a := open(t, c)
	run(t, a)
	until(t, "three starts", func() bool { return a.State().Restarts >= 2 })
	until(t, "an end", func() bool { return !a.State().Running })
	s := a.State()
	if !strings.HasPrefix(s.LastExit, "ended after ") || !strings.HasSuffix(s.LastExit, ": exit status 101: panic: could not start agent: boom") || s.Version != "corrosion 0.2.0-beta.0" {
		t.Errorf("%+v", s)
	}
	if n := book.count("corrosion agent does not run"); n > s.Restarts+1 {
		t.Errorf("%d lines about %d starts:\n%s", n, s.Restarts+1, book)
	}
}

// An agent that cannot start with what another one left says which that was.
func TestOtherAgentsDatabase(t *testing.T) {
	for last, hint := range map[string]bool{"klukai 0.9.9": true, "corrosion 0.2.0-beta.0": false, "corrosion 0.2.0-beta.0 (11edb1e)": false, "": false} {
		c, _ := config(t, fake(t, "exit 1"))
		a := open(t, c)
		must(t, noteUse(c.Dir, last))
		stop := run(t, a)
		until(t, "an end", func() bool { return a.State().LastExit != "" })
		stop()
		want := "exit status 1"
		if hint {
			want += "; its database was last used by klukai 0.9.9, and an older agent may not read it: use that again, or stop the node and remove state.db* in " + c.Dir + ": the other servers fill a new one"
		}
		if s := a.State(); !strings.HasSuffix(s.LastExit, want) {
			t.Errorf("last %q: %q, want %q", last, s.LastExit, want)
		}
	}
}

func TestHangsAtStop(t *testing.T) {
	c, book := config(t, fake(t, `trap "" TERM; echo '{"level":"WARN","fields":{"message":"up"},"target":"k"}'; while :; do sleep 0.1; done`))
	a := open(t, c)
	a.stop = 300 * time.Millisecond
	stop := run(t, a)
	until(t, "up", func() bool { return book.count("line=up") > 0 })
	pid := a.State().PID
	if took := stop(); took < a.stop {
		t.Errorf("took %v", took)
	}
	if alive(pid) {
		t.Error("it lives")
	}
	if s := a.State(); s.LastExit != "killed: it did not end within 300ms when told to" {
		t.Errorf("%+v", s)
	}
	if n := book.count(`msg="corrosion agent does not end"`); n != 1 {
		t.Errorf("log:\n%s", book)
	}
}

func TestAddressesNotToBeHad(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer udp.Close()
	taken, takenUDP := tcp.Addr().(*net.TCPAddr).AddrPort(), udp.LocalAddr().(*net.UDPAddr).AddrPort()
	absent := netip.MustParseAddrPort("[fdcc:1::9]:8787")
	for want, change := range map[string]func(*Config){
		fmt.Sprintf("API address %v/tcp is taken by the tcp test: end what has it, or choose another", taken):       func(c *Config) { c.API = taken },
		fmt.Sprintf("metrics address %v/tcp is taken by the tcp test: end what has it, or choose another", taken):   func(c *Config) { c.Metrics = taken },
		fmt.Sprintf("gossip address %v/udp is taken by the udp test: end what has it, or choose another", takenUDP): func(c *Config) { c.Gossip = takenUDP },
		"gossip address [fdcc:1::9]:8787/udp: no interface has fdcc:1::9":                                           func(c *Config) { c.Gossip = absent },
	} {
		c, book := config(t, fake(t, "exit 3"))
		c.Holder = func(network string, _ netip.AddrPort) string { return "the " + network + " test" }
		change(&c)
		a := open(t, c)
		stop := run(t, a)
		until(t, "a reason", func() bool { return a.State().LastExit != "" })
		stop()
		if s := a.State(); s.LastExit != want {
			t.Errorf("%+v, want %s", s, want)
		}
		if n := book.count("level="); n != 1 {
			t.Errorf("log:\n%s", book)
		}
	}
}

// A start that was refused succeeds once its reason is gone.
func TestRealAgent(t *testing.T) {
	c, book := config(t, agenttest.Binary(t))
	c.Listener = host.Listener
	t.Setenv("LOG", "x") // stops an agent that gets it
	l, err := net.Listen("tcp", c.API.String())
	must(t, err)
	a := open(t, c)
	if err := a.Ready(t.Context()); err == nil || err.Error() != "corrosion agent is not started" {
		t.Errorf("Ready before Run: %v", err)
	}
	stop := run(t, a)
	until(t, "refused", func() bool { return strings.Contains(a.State().LastExit, "is taken") })
	l.Close()
	ready(t, a)
	must(t, a.Trust())
	s := a.State()
	if !s.Running || s.Restarts != 0 || s.Version == "" || !alive(s.PID) {
		t.Errorf("%+v", s)
	}
	s.Version, _, _ = strings.Cut(s.Version, " (") // it may have told its commit already
	t.Logf("%s is ready %v after its start", s.Version, time.Since(s.Since).Round(time.Millisecond))
	if pgid, err := syscall.Getpgid(s.PID); err != nil || pgid != s.PID {
		t.Errorf("process group %d, %v", pgid, err)
	}
	if f, err := open(t, c).own(t.Context()); err == nil { // as another node of this directory
		f.Close()
		t.Error("the directory was had twice")
	} else if want := fmt.Sprintf("agent.lock: is in use by process %d, whose corrosion agent is process %d", os.Getpid(), s.PID); !strings.HasSuffix(err.Error(), want) {
		t.Errorf("own: %v, want %s", err, want)
	}
	must(t, syscall.Kill(s.PID, syscall.SIGKILL))
	until(t, "another", func() bool { n := a.State(); return n.Running && n.PID != s.PID })
	ready(t, a)
	if n := a.State(); n.Restarts != 1 || !strings.HasSuffix(n.LastExit, ": signal: killed") {
		t.Errorf("%+v", n)
	}
	time.Sleep(2 * time.Second) // it settles
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.State().PID))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") {
			t.Logf("idle: %s", strings.Join(strings.Fields(line), " "))
		}
	}
	resp, err := http.Get("http://" + c.Metrics.String() + "/metrics")
	must(t, err)
	metrics, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	must(t, err)
	_, rest, _ := strings.Cut(string(metrics), `git_commit="`)
	commit, _, _ := strings.Cut(rest, `"`)
	if want := strings.TrimSuffix(s.Version+" ("+commit+")", " (unknown)"); commit == "" || a.State().Version != want {
		t.Errorf("version %q, and the metrics say commit %q", a.State().Version, commit)
	}
	t.Log(a.State().Version)
	if text, err := os.ReadFile(filepath.Join(c.Dir, usedName)); err != nil || string(text) != a.State().Version+"\n" {
		t.Errorf("noted %q, %v", text, err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "tmp", "*")); len(left) > 2 {
		t.Errorf("left in tmp: %q", left)
	}
	pid := a.State().PID
	complaints := book.count("level=WARN") + book.count("level=ERROR")
	t.Logf("stopped in %v", stop().Round(time.Millisecond))
	if n := book.count("level=WARN") + book.count("level=ERROR"); n != complaints {
		t.Errorf("%d warnings and errors of an agent that ended as it was told to", n-complaints)
	}
	if alive(pid) {
		t.Error("it lives")
	}
	if err := a.Trust(); !errors.Is(err, syscall.ECONNREFUSED) { // ask again soon
		t.Errorf("trust in an agent that ended: %v, want as if the connection were refused", err)
	}
	if strings.Contains(book.String(), a.Token()) {
		t.Error("the log tells the token")
	}
	t.Logf("log:\n%s", book)
}

// Who listens in the agent's place does not get its token: not while the agent has
// not taken its address, nor while there is none.
func TestTokenIsForTheAgent(t *testing.T) {
	for name, listener := range map[string]func(int, netip.AddrPort) (func() bool, error){"Checked": host.Listener, "Unchecked": nil} {
		t.Run(name, func(t *testing.T) {
			c, _ := config(t, fake(t, "exec sleep 600"))
			c.Listener = listener
			a := open(t, c)
			run(t, a)
			until(t, "running", func() bool { return a.State().Running })
			var told atomic.Bool
			l, err := net.Listen("tcp", c.API.String())
			must(t, err)
			stranger := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				told.Store(told.Load() || strings.Contains(r.Header.Get("Authorization"), a.Token()))
			})}
			go stranger.Serve(l)
			defer stranger.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err = a.Ready(ctx)
			if listener == nil { // what the check is for
				if !told.Load() {
					t.Errorf("the stranger was not told the token: %v", err)
				}
				return
			}
			want := fmt.Sprintf("corrosion agent, process %d, does not listen on %v", a.State().PID, c.API)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Ready: %v, want %s", err, want)
			}
			if told.Load() {
				t.Error("the stranger was told the token")
			}
			if err := a.Trust(); err == nil || err.Error() != want || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("Trust: %v, want %s, as if the connection were refused", err, want)
			}
		})
	}
}

func TestRealRefusesSchema(t *testing.T) {
	c, book := config(t, agenttest.Binary(t))
	c.Schema = map[string]string{"a.sql": "CREATE TABLE good (id TEXT PRIMARY KEY NOT NULL);", "b.sql": "CREATE TABLE bad (id TEXT);"}
	a := open(t, c)
	run(t, a)
	var err error
	until(t, "refused", func() bool {
		err = a.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "schema refused")
	})
	if !strings.Contains(err.Error(), "missing tables: bad, good: schema refused: ") {
		t.Errorf("Ready: %v", err)
	}
	t.Logf("Ready: %v", err)
	if n := book.count(`msg="corrosion agent refuses the schema"`); n != 1 {
		t.Errorf("log:\n%s", book)
	}
}

// An agent that is alone is started again for its first peer, one with members
// is not.
func TestRealBootstrap(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	bin := agenttest.Binary(t)
	c1, book1 := config(t, bin)
	c2, _ := config(t, bin)
	one, two := open(t, c1), open(t, c2)
	run(t, one)
	run(t, two)
	ready(t, one)
	ready(t, two)
	two.SetBootstrap(nil)
	one.SetBootstrap([]netip.AddrPort{c2.Gossip, {}, c2.Gossip})
	until(t, "a member", func() bool {
		at, err := one.Members(t.Context())
		return err == nil && slices.Equal(at, []netip.AddrPort{c2.Gossip})
	})
	until(t, "a member", func() bool {
		at, err := two.Members(t.Context())
		return err == nil && slices.Equal(at, []netip.AddrPort{c1.Gossip})
	})
	if one.State().Restarts != 1 || two.State().Restarts != 0 || one.State().LastExit != "" {
		t.Errorf("%+v, %+v", one.State(), two.State())
	}
	if book1.count("has no members: start it again") != 1 {
		t.Errorf("log:\n%s", book1)
	}
	pid := one.State().PID
	one.SetBootstrap([]netip.AddrPort{c2.Gossip, netip.MustParseAddrPort("127.0.0.1:9")})
	if text, err := os.ReadFile(filepath.Join(c1.Dir, "config.toml")); err != nil || !strings.Contains(string(text), `"127.0.0.1:9"`) {
		t.Errorf("not written: %v", err)
	}
	time.Sleep(rejoinAfter + rejoinTick + time.Second)
	if one.State().PID != pid {
		t.Error("an agent with members was started again")
	}

	asked := time.Now()
	one.Rejoin()
	until(t, "another agent", func() bool { st := one.State(); return st.Running && st.PID != pid })
	until(t, "a member", func() bool { at, err := one.Members(t.Context()); return err == nil && len(at) == 1 })
	t.Logf("rejoined in %v", time.Since(asked))
	if st := one.State(); st.LastExit != "" || st.Restarts != 2 {
		t.Errorf("%+v", st)
	}
}

// A node that is killed takes its agent along; where that fails, the next
// node ends it.
func TestKilledNode(t *testing.T) {
	for _, c := range []struct {
		name, agent string
		stop        time.Duration
		warns       int // lines about an agent that had to be ended; -1: it may have ended by itself before
	}{
		{"real", "", stopPatience, -1},
		{"ignores", `trap "" TERM; : > "$0.deaf"; while :; do sleep 0.1; done`, 300 * time.Millisecond, 1},
		{"obeys", `exec sleep 60`, stopPatience, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin := ""
			if c.agent == "" {
				bin = agenttest.Binary(t)
			} else {
				bin = fake(t, c.agent)
			}
			conf, book := config(t, bin)
			cmd := exec.Command(os.Args[0], conf.Dir, conf.Gossip.String(), conf.API.String())
			cmd.Env = append(os.Environ(), roleVar+"="+bin)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			pid, bad := strconv.Atoi(strings.TrimSpace(line))
			if bad != nil {
				t.Fatalf("node said %q, %v", line, err)
			}
			switch c.name {
			case "real":
				time.Sleep(time.Second) // any moment will do
			case "ignores":
				until(t, "the trap", func() bool { _, err := os.Stat(bin + ".deaf"); return err == nil })
			}
			must(t, cmd.Process.Kill())
			_ = cmd.Wait() // "killed"
			if c.warns == 0 {
				until(t, "the end of the agent", func() bool { return !alive(pid) })
			}
			a := open(t, conf)
			a.stop = c.stop
			run(t, a)
			until(t, "another agent", func() bool { return a.State().Running })
			if alive(pid) {
				t.Errorf("process %d lives", pid)
			}
			if n := book.count("that a killed node left"); c.warns >= 0 && n != c.warns {
				t.Errorf("log:\n%s", book)
			}
			if c.name == "real" {
				ready(t, a)
			}
		})
	}
}

// What is not provably an agent of this directory is left alone.
func TestLockOfOthers(t *testing.T) {
	c, _ := config(t, "corrosion")
	a := open(t, c)
	f, err := os.OpenFile(filepath.Join(c.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	must(t, lock(f))
	other := exec.Command("sleep", "60")
	must(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	for pid, want := range map[int]string{
		0:                 "is locked by a process that it does not name",
		other.Process.Pid: fmt.Sprintf("is locked, but not by process %d as it says: end what runs in its directory", other.Process.Pid),
		1 << 30:           "is locked",
	} {
		must(t, signLock(f, pid))
		if got, err := a.own(t.Context()); err == nil {
			got.Close()
			t.Error("had")
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("own: %v, want %s", err, want)
		}
	}
	if !alive(other.Process.Pid) {
		t.Error("it was killed")
	}
}

// A file system that is full before the start, and one that fills under a
// running agent.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	bin := agenttest.Binary(t)
	c, book := config(t, bin)
	must(t, os.Mkdir(c.Dir, 0o700))
	must(t, syscall.Mount("tmpfs", c.Dir, "tmpfs", 0, "size=12m"))
	t.Cleanup(func() { must(t, syscall.Unmount(c.Dir, syscall.MNT_DETACH)) })
	a := open(t, c)
	fill := func() {
		f, err := os.Create(filepath.Join(c.Dir, "ballast"))
		must(t, err)
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	fill()
	run(t, a)
	until(t, "a reason", func() bool { return a.State().LastExit != "" })
	t.Logf("full before: %s", a.State().LastExit)
	if !strings.Contains(a.State().LastExit, "no space left on device") {
		t.Errorf("%+v", a.State())
	}
	must(t, os.Remove(filepath.Join(c.Dir, "ballast")))
	ready(t, a)
	_, err := New(c) // writes nothing
	must(t, err)
	fill()
	c.Bootstrap = []netip.AddrPort{c.Gossip}
	a.SetBootstrap(c.Bootstrap)
	if book.count("peers of the corrosion agent not written") != 1 {
		t.Errorf("log:\n%s", book)
	}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "write configuration: ") || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("New: %v", err)
	}
	must(t, os.Remove(filepath.Join(c.Dir, "ballast")))
	ready(t, a)
	t.Logf("log:\n%s", book)
}

// What an agent since May 2026 does: no way to hand it a schema by HTTP, one on
// the admin socket.
func TestReloadOfNewAgents(t *testing.T) {
	for answer, want := range map[string]string{
		string(frames(`{"Log":{"level":"info","msg":"reloading","ts":[1]}}`, `"Success"`)): "",
		string(frames(`{"Error":{"msg":"table t dropped"}}`)):                              "table t dropped",
	} {
		c, _ := config(t, "corrosion")
		a := open(t, c)
		l, err := net.Listen("tcp", c.API.String())
		must(t, err)
		api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Authorization"); got != "Bearer "+a.Token() {
				t.Errorf("authorization of %s is wrong", r.URL)
			}
			w.WriteHeader(http.StatusNotFound)
		})}
		go api.Serve(l)
		admin, err := net.Listen("unix", c.Socket)
		must(t, err)
		asked := make(chan string, 1)
		go func() {
			conn, err := admin.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			b := make([]byte, 12)
			_, _ = io.ReadFull(conn, b)
			asked <- string(b)
			_, _ = io.WriteString(conn, answer)
		}()
		err = a.reload(t.Context())
		api.Close()
		admin.Close()
		var refusal *refusedError
		var got string
		if errors.As(err, &refusal) {
			got = refusal.text
		}
		if got != want || (err != nil) != (want != "") {
			t.Errorf("reload: %v, want %q", err, want)
		}
		if got := <-asked; got != "\x00\x00\x00\x08\"Reload\"" {
			t.Errorf("asked %q", got)
		}
	}
}
