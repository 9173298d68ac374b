// Package agent runs a Corrosion agent as a child process: it writes the
// agent's files, starts it in a clean environment, starts it again when it ends,
// and ends it.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	minDelay     = 100 * time.Millisecond // before the next start, doubled by each failure
	maxDelay     = 5 * time.Second        // an outage lasts so much longer than its cause
	steady       = time.Minute            // an agent that ran so long did not fail to start
	stopPatience = 10 * time.Second       // from SIGTERM to SIGKILL; agents take 7 s
	restPatience = time.Second            // the same for one that is started again at once, to be missed for less
	killPatience = 5 * time.Second        // from SIGKILL to the end of an agent that is not our child
	settleWithin = time.Minute            // for an agent's API to answer, and to take the schema
	callWithin   = 10 * time.Second       // for one exchange with the agent
)

// Config is all that an agent needs to know.
type Config struct {
	Bin       string            // path of the agent's binary, or a name that is looked up in PATH; required
	Dir       string            // config.toml, schema/, state.db, token, tmp/; absolute, made 0700 if absent; required
	Socket    string            // of its admin interface, absolute, at most 100 bytes; required
	Gossip    netip.AddrPort    // UDP; required
	Metrics   netip.AddrPort    // TCP; zero: none
	API       netip.AddrPort    // TCP; required
	Bootstrap []netip.AddrPort  // gossip addresses of the peers known now; may be empty
	Schema    map[string]string // file name, which ends in .sql, to its SQL text; may be empty
	Log       *slog.Logger      // required

	// Holder names who has a local address, for people; "" if that is not known.
	// nil: nobody can be named.
	Holder func(network string, at netip.AddrPort) string

	// Listener returns what reports whether a process still has the socket that
	// accepts TCP connections to a local address; nil if it has not. nil: whoever does
	// is taken for the agent, and gets its token.
	Listener func(pid int, at netip.AddrPort) (still func() bool, err error)
}

// State is what is known of the child process at one instant.
type State struct {
	Running  bool
	PID      int       // 0 unless running
	Version  string    // as the binary prints it: "klukai 0.1.4", and the commit where the running agent tells; empty until it was asked
	Since    time.Time // up or down since; zero before Run
	Restarts int       // starts after the first
	LastExit string    // one line: why it ended last or cannot start; empty if neither happened
}

// An Agent owns one directory, and the agent that runs in it.
type Agent struct {
	cfg     Config
	token   string
	http    *http.Client
	stop    time.Duration // stopPatience; tests have less
	state   atomic.Pointer[State]
	trusted atomic.Pointer[trusted]
	refused atomic.Pointer[string] // what the running agent says against the schema; nil: nothing
	commit  atomic.Pointer[string] // that the running agent was built from; nil: it did not say

	starts   int           // of Run's goroutine
	patience time.Duration // of Run's goroutine: see restartFor

	mu     sync.Mutex       // guards what follows, and the writing of config.toml
	wanted []netip.AddrPort // sorted
	news   chan struct{}    // holds one element when wanted changed
	again  chan struct{}    // holds one element when the agent is to rejoin
}

// New checks cfg and makes the agent's directory and files; it writes what
// differs only. It starts nothing. A token that is damaged, or that others can
// read, is replaced: nobody but this process and the agent that it starts has it.
func New(cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("corrosion agent: %w", err)
	}
	a := &Agent{
		cfg:    cfg,
		stop:   stopPatience,
		wanted: normal(cfg.Bootstrap),
		news:   make(chan struct{}, 1),
		again:  make(chan struct{}, 1),
	}
	a.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.dial}} // and no proxy, whatever the environment says
	a.state.Store(&State{})
	if err := makeDirs(cfg); err != nil {
		return nil, fmt.Errorf("corrosion agent: %w", err)
	}
	var err error
	if a.token, err = readToken(filepath.Join(cfg.Dir, tokenName), cfg.Log); err != nil {
		return nil, fmt.Errorf("corrosion agent: %w", err)
	}
	if _, err := a.writeFiles(); err != nil {
		return nil, fmt.Errorf("corrosion agent: %w", err)
	}
	return a, nil
}

// URL is where the agent's HTTP API is.
func (a *Agent) URL() string { return "http://" + a.cfg.API.String() }

// Token is what the agent's HTTP API wants as bearer token. It is a secret.
func (a *Agent) Token() string { return a.token }

// Trust returns why who listens at the API's address must not be told the token:
// it is not the agent. An agent that has not taken its address yet, and one that
// could not, leave it to whoever wants it.
func (a *Agent) Trust() error {
	if a.cfg.Listener == nil {
		return nil
	}
	s := a.State()
	if !s.Running {
		return absent("corrosion agent is not running")
	}
	if k := a.trusted.Load(); k != nil && k.pid == s.PID && k.since.Equal(s.Since) && k.still() {
		return nil
	}
	still, err := a.cfg.Listener(s.PID, a.cfg.API)
	switch {
	case err != nil:
		return fmt.Errorf("corrosion agent: find who listens on %v: %w", a.cfg.API, err)
	case still == nil:
		return absent(fmt.Sprintf("corrosion agent, process %d, does not listen on %v", s.PID, a.cfg.API))
	}
	a.trusted.Store(&trusted{s.PID, s.Since, still})
	return nil
}

// absent is why there is nobody to connect to: as if the connection had been refused,
// so that whoever waits for the agent knows that to ask again soon costs nothing.
type absent string

func (e absent) Error() string { return string(e) }

func (absent) Is(target error) bool { return target == syscall.ECONNREFUSED }

// A trusted child was found to listen at the API's address.
type trusted struct {
	pid   int
	since time.Time
	still func() bool
}

// dial is for the agent's HTTP client.
func (a *Agent) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := a.Trust(); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := a.Trust(); err != nil { // another agent listens now
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// State returns what is known of the child process.
func (a *Agent) State() State {
	s := *a.state.Load()
	if c := a.commit.Load(); c != nil && s.Running {
		s.Version += " (" + *c + ")"
	}
	return s
}

// Complaint is why there is no agent to be had, or not all of one; "" if nothing
// is known to be wrong. The log has been told of it.
func (a *Agent) Complaint() string {
	if s := a.State(); !s.Running {
		return s.LastExit
	}
	if r := a.refused.Load(); r != nil {
		return *r
	}
	return ""
}

// Run starts the agent, and starts it again when it ends, until ctx is done;
// then it ends the agent and returns nil. It must run once at a time. That the
// agent fails is no error of Run: State says so, and the log.
func (a *Agent) Run(ctx context.Context) error {
	a.change(func(s *State) { s.Since = time.Now() })
	var delay time.Duration
	var logged string
	for ctx.Err() == nil {
		ran, err := a.attempt(ctx, delay > minDelay)
		if err == nil { // ended at our wish
			continue
		}
		if ctx.Err() != nil {
			break
		}
		delay = nextDelay(delay, ran)
		line := oneLine(err.Error())
		a.change(func(s *State) { s.LastExit = line })
		level := slog.LevelError
		if reason := timeless(line); reason == logged { // said already
			level = slog.LevelDebug
		} else {
			logged = reason
		}
		a.cfg.Log.Log(ctx, level, "corrosion agent does not run", "err", line, "retry", delay)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
	return nil
}

// timeless is why an agent ended, without after what time.
func timeless(line string) string {
	if rest, ok := strings.CutPrefix(line, "ended after "); ok {
		_, line, _ = strings.Cut(rest, ": ")
	}
	return line
}

// nextDelay returns the time to wait after a run that took ran, when before it
// the wait was last (0: none).
func nextDelay(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= steady {
		return minDelay
	}
	return min(2*last, maxDelay)
}

// attempt runs the agent once and says how long it ran and why it ended; nil if
// that was because ctx is done, or to start it with other peers. A start that is one
// of many, quiet, is no news.
func (a *Agent) attempt(ctx context.Context, quiet bool) (ran time.Duration, err error) {
	bin, version, err := identify(ctx, a.cfg)
	if err != nil {
		return 0, err
	}
	a.change(func(s *State) { s.Version = version })
	lock, err := a.own(ctx)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := makeDirs(a.cfg); err != nil { // again: somebody may have removed them
		return 0, err
	}
	used, err := a.writeFiles()
	if err != nil {
		return 0, err
	}
	if err := checkAddresses(a.cfg); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, nil
	}
	out := newOutput(a.cfg.Log, a.token)
	c, err := start(command{bin: bin, cfg: a.cfg, lock: lock, out: out})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", bin, err)
	}
	began := time.Now()
	a.refused.Store(nil)
	a.commit.Store(nil)
	a.change(func(s *State) {
		s.Running, s.PID, s.Since, s.Restarts = true, c.pid, began, a.starts
	})
	a.starts++
	level := slog.LevelInfo
	if quiet {
		level = slog.LevelDebug
	}
	a.cfg.Log.Log(ctx, level, "corrosion agent started", "pid", c.pid, "version", version)
	asked := a.attend(ctx, c, used)
	if err := removeSocket(a.cfg.Socket); err != nil {
		a.cfg.Log.Warn("corrosion agent's socket stays", "err", err)
	}
	a.change(func(s *State) { s.Running, s.PID, s.Since = false, 0, time.Now() })
	ran = time.Since(began)
	if asked {
		return ran, nil
	}
	err = explain(c.ended, ran, out.lastLines())
	if other := usedBefore(a.cfg.Dir, version); other != "" {
		err = fmt.Errorf("%w; %s", err, other)
	}
	return ran, err
}

// attend is with c until it has ended. It says whether it ended at our wish.
func (a *Agent) attend(ctx context.Context, c *child, used []netip.AddrPort) (asked bool) {
	began := time.Now()
	settle, cancel := context.WithCancel(ctx)
	var settled sync.WaitGroup
	settled.Go(func() { a.settle(settle) })
	defer func() {
		cancel()
		settled.Wait()
	}()
	select {
	case <-a.again: // meant the one before
	default:
	}
	tick := time.NewTicker(rejoinTick)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return ctx.Err() != nil
		case <-ctx.Done():
			a.end(c)
			return true
		case <-a.again:
			if ctx.Err() != nil {
				continue // it is to end in order
			}
			a.rest(c)
			return true
		case <-a.news:
		case <-tick.C:
		}
		a.mu.Lock()
		wanted := a.wanted
		a.mu.Unlock()
		if slices.Equal(wanted, used) || time.Since(began) < max(a.patience, rejoinAfter) {
			continue
		}
		members, err := a.Members(ctx)
		if err != nil {
			a.cfg.Log.Debug("corrosion agent does not tell its members", "err", err)
			continue
		}
		restart, patience := restartFor(len(members), a.patience)
		a.patience = patience
		if !restart {
			continue
		}
		a.cfg.Log.Info("corrosion agent has no members: start it again with other peers", "peers", wanted)
		a.rest(c)
		return true
	}
}

const (
	rejoinTick  = 5 * time.Second
	rejoinAfter = 10 * time.Second // an agent announces itself at once and after 5 s
	rejoinMost  = 5 * time.Minute
)

// restartFor decides whether an agent that was started with other peers than are
// known now, and has run for patience, is started again: if it found no member.
// An agent reads its peers at its start only; a rejoin tells the members that it
// has. It returns the patience with the next agent, which doubles until one has
// members.
func restartFor(members int, patience time.Duration) (bool, time.Duration) {
	if members > 0 {
		return false, 0
	}
	return true, min(2*max(patience, rejoinAfter), rejoinMost)
}

// end ends c, with force where it does not end in order.
func (a *Agent) end(c *child) {
	if c.endWithin(a.stop) {
		return
	}
	line := fmt.Sprintf("killed: it did not end within %v when told to", a.stop)
	a.change(func(s *State) { s.LastExit = line })
	a.cfg.Log.Warn("corrosion agent does not end", "pid", c.pid, "err", line)
}

// rest ends c for the next one to take its place. An agent that is killed loses
// nothing that it confirmed.
func (a *Agent) rest(c *child) { c.endWithin(min(restPatience, a.stop)) }

// endWithin ends k, and reports whether it did not have to be killed.
func (k *child) endWithin(patience time.Duration) bool {
	k.out.ending.Store(true)
	k.signal(sigTerm)
	select {
	case <-k.done:
		return true
	case <-time.After(patience):
	}
	k.signal(sigKill)
	<-k.done
	return false
}

// Rejoin starts a running agent again. At its start an agent announces itself to
// its peers at once, and then after 5 s, 10 s and so on, up to every five minutes:
// so long two parts of a cluster that can reach each other again may stay apart.
func (a *Agent) Rejoin() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// SetBootstrap replaces the peers that an agent looks for when it starts. A
// running one that has found members goes on; one that has none is started
// again, if it ran for a moment.
func (a *Agent) SetBootstrap(peers []netip.AddrPort) {
	a.mu.Lock()
	same := slices.Equal(a.wanted, normal(peers))
	a.wanted = normal(peers)
	a.mu.Unlock()
	if same {
		return
	}
	if _, err := a.writeFiles(); err != nil { // the next start writes them again
		a.cfg.Log.Warn("peers of the corrosion agent not written", "err", err)
	}
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// normal returns the valid ones of peers, each once, in order: what follows is
// compared and written.
func normal(peers []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, p := range peers {
		if p.IsValid() && p.Port() != 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// change is called by Run's goroutine alone.
func (a *Agent) change(f func(*State)) {
	s := *a.state.Load()
	f(&s)
	a.state.Store(&s)
}
