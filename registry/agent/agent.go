// Package agent runs a Corrosion agent as a child process: it writes the
// agent's files, starts it in a clean environment, starts it again when it ends,
// and ends it.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	minDelay     = 100 * time.Millisecond // before the next start, doubled by each failure
	maxDelay     = 5 * time.Second        // an outage lasts so much longer than its cause
	steady       = time.Minute            // an agent that ran so long did not fail to start
	stopPatience = 10 * time.Second       // from SIGTERM to SIGKILL; agents take 7 s
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
}

// State is what is known of the child process at one instant.
type State struct {
	Running  bool
	PID      int       // 0 unless running
	Version  string    // as the binary prints it: "klukai 0.1.4"; empty until it was asked
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
	refused atomic.Pointer[string] // what the running agent says against the schema; nil: nothing

	starts   int           // of Run's goroutine
	patience time.Duration // of Run's goroutine: see restartFor

	mu     sync.Mutex       // guards what follows, and the writing of config.toml
	wanted []netip.AddrPort // sorted
	news   chan struct{}    // holds one element when wanted changed
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
		http:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, // and no proxy, whatever the environment says
		stop:   stopPatience,
		wanted: normal(cfg.Bootstrap),
		news:   make(chan struct{}, 1),
	}
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

// State returns what is known of the child process.
func (a *Agent) State() State { return *a.state.Load() }

// Run starts the agent, and starts it again when it ends, until ctx is done;
// then it ends the agent and returns nil. It must run once at a time. That the
// agent fails is no error of Run: State says so, and the log.
func (a *Agent) Run(ctx context.Context) error {
	a.change(func(s *State) { s.Since = time.Now() })
	var delay time.Duration
	var logged string
	for ctx.Err() == nil {
		ran, err := a.attempt(ctx)
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
// that was because ctx is done, or to start it with other peers.
func (a *Agent) attempt(ctx context.Context) (ran time.Duration, err error) {
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
	a.change(func(s *State) {
		s.Running, s.PID, s.Since, s.Restarts = true, c.pid, began, a.starts
	})
	a.starts++
	a.cfg.Log.Info("corrosion agent started", "pid", c.pid, "version", version)
	asked := a.attend(ctx, c, used)
	if err := removeSocket(a.cfg.Socket); err != nil {
		a.cfg.Log.Warn("corrosion agent's socket stays", "err", err)
	}
	a.change(func(s *State) { s.Running, s.PID, s.Since = false, 0, time.Now() })
	ran = time.Since(began)
	if asked {
		return ran, nil
	}
	return ran, explain(c.ended, ran, out.lastLines())
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
	tick := time.NewTicker(rejoinTick)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return ctx.Err() != nil
		case <-ctx.Done():
			a.end(c)
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
		members, err := a.members(ctx)
		if err != nil {
			a.cfg.Log.Debug("corrosion agent does not tell its members", "err", err)
			continue
		}
		restart, patience := restartFor(members, a.patience)
		a.patience = patience
		if !restart {
			continue
		}
		a.cfg.Log.Info("corrosion agent has no members: start it again with other peers", "peers", wanted)
		a.end(c)
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
	c.signal(sigTerm)
	select {
	case <-c.done:
		return
	case <-time.After(a.stop):
	}
	c.signal(sigKill)
	<-c.done
	line := fmt.Sprintf("killed: it did not end within %v when told to", a.stop)
	a.change(func(s *State) { s.LastExit = line })
	a.cfg.Log.Warn("corrosion agent does not end", "pid", c.pid, "err", line)
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
