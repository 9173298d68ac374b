package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	resyncEvery = time.Minute            // events may be lost, by the engine or by us
	lookAgain   = 2 * time.Second        // for a container that the engine did not describe
	retryFirst  = 200 * time.Millisecond // after the engine went away; doubled up to
	retryMost   = 5 * time.Second
	looksAtOnce = 8                // questions to the engine that are open at one time
	eventsSlack = time.Second      // events are asked for from so long before the list
	settleAfter = 10 * time.Second // a connection that lasted so long was none that failed
)

// looksLater are pauses after a health event of Podman, which may come before the
// outcome can be read, until it is asked once more.
var looksLater = [...]time.Duration{100 * time.Millisecond, 400 * time.Millisecond}

// A Config is what a Watcher needs.
type Config struct {
	Engine  string       // auto, docker or podman
	Sockets []Socket     // where to look; nil: Sockets()
	Rules   func() Rules // asked again each time; Network is found out
	Network NetworkConfig
	Owner   Kind // the engine that had the network last; "": none
	Log     *slog.Logger

	Dial func(context.Context, netip.AddrPort) error // of probes; nil: TCP
}

// A State is what is known of the engine, and what follows from it. It is shared:
// read only.
type State struct {
	Kind     Kind   // "" before one was found
	Version  string //
	Socket   string
	NFT      bool // see Client
	Up       bool
	Since    time.Time       // up or not since
	Problem  string          // why it is not up, in one line; "" if it is, or if there is none and none is wanted
	Notes    []string        // what is wrong otherwise, one line each: a second engine, the network
	Network  string          // name of the network that containers are to be on
	View     View            // of the latest that is known, which outlasts the engine's absence
	Listed   bool            // all containers were listed once, so that one that is not in View is not there
	Pending  map[string]bool // ids of containers that were listed, and not described yet
	Attached int             // containers on the network
}

// A Watcher follows one engine. Run belongs to one goroutine.
type Watcher struct {
	cfg     Config
	log     *slog.Logger
	state   atomic.Pointer[State]
	changed chan struct{}

	// The rest is Run's.
	owner    Kind // the engine that was followed last
	s        State
	known    map[string]Container
	probes   map[string]Probe
	probing  map[string]prober
	probed   chan Probe
	inFlight map[string]bool // containers that are asked about
	again    map[string]bool // those that something happened to meanwhile
	later    map[string]bool // those that are to be asked about once more
	due      chan due
	failed   map[string]bool // those that the engine did not describe
	results  chan result
	slots    chan struct{}
	running  sync.WaitGroup // goroutines
}

type prober struct {
	target Target
	stop   context.CancelFunc
}

// A due question is to be asked now.
type due struct {
	session context.Context
	id      string
	last    bool // of those after one event
}

// A result is what one question was answered.
type result struct {
	session context.Context
	id      string
	c       Container
	there   bool
	err     error
}

// New returns a Watcher that has seen nothing yet.
func New(cfg Config) *Watcher {
	if cfg.Sockets == nil {
		cfg.Sockets = Sockets()
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	w := &Watcher{cfg: cfg, log: cfg.Log, owner: cfg.Owner, changed: make(chan struct{}, 1),
		known: map[string]Container{}, probes: map[string]Probe{}, probing: map[string]prober{}, probed: make(chan Probe),
		inFlight: map[string]bool{}, again: map[string]bool{}, later: map[string]bool{}, due: make(chan due), failed: map[string]bool{},
		results: make(chan result), slots: make(chan struct{}, looksAtOnce)}
	w.s = State{Since: time.Now(), Network: cfg.Network.Name}
	w.publish()
	return w
}

// State returns the latest; never nil.
func (w *Watcher) State() *State { return w.state.Load() }

// Changed is received from once after any number of new States. It is for one consumer.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// publish makes w.s the latest State.
func (w *Watcher) publish() {
	s := w.s
	s.Pending = maps.Clone(s.Pending)
	w.state.Store(&s)
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Run follows the engine, and any that takes its place, until ctx is done.
func (w *Watcher) Run(ctx context.Context) error {
	defer func() {
		for _, p := range w.probing {
			p.stop()
		}
		w.running.Wait()
	}()
	wait := retryFirst
	for {
		began := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if wait = min(2*wait, retryMost); time.Since(began) >= settleAfter {
			wait = retryFirst
		}
		w.lost(err)
		if err := w.rest(ctx, wait); err != nil {
			return nil
		}
	}
}

// lost notes why no engine is followed.
func (w *Watcher) lost(err error) {
	problem := w.problem(err)
	if !w.s.Up && w.s.Problem == problem {
		return
	}
	if problem != "" {
		w.log.Warn("container engine is not followed; what it runs stays as it was", "err", problem)
	} else if w.s.Up {
		w.log.Warn("container engine is gone; what it ran stays as it was", "engine", w.s.Kind)
	}
	w.s.Up, w.s.Problem, w.s.Since = false, problem, time.Now()
	w.publish()
}

// problem is err in one line; "" for the absence of an engine that nobody asked for.
func (w *Watcher) problem(err error) string {
	var none *noneError
	if errors.As(err, &none) && w.cfg.Engine == "auto" && none.hint == "" {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

// rest waits, and keeps probing. It fails when ctx is done.
func (w *Watcher) rest(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case p := <-w.probed:
			w.takeProbe(p)
		}
	}
}

// A noneError says that no engine was found.
type noneError struct{ wanted, hint string }

func (e *noneError) Error() string {
	if e.hint != "" {
		return e.hint
	}
	return e.wanted
}

// connect finds the engine to follow: the one that is configured, or of those that
// are here the one that had the network before, or that has it now, or the first.
func (w *Watcher) connect(ctx context.Context) (*Client, []string, error) {
	var here []*Client
	var faults []error
	var away error // of the engine that was followed
	for _, s := range w.cfg.Sockets {
		if w.cfg.Engine != "auto" && w.cfg.Engine != string(s.Kind) {
			if c, err := Dial(ctx, s); err == nil { // only to see whose the network is
				here = append(here, c)
			}
			continue
		}
		c, err := Dial(ctx, s)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			switch {
			case w.cfg.Engine == "auto" && s.Kind == w.owner:
				away = fmt.Errorf("%s, which ran this server's containers, has no socket %s: is it running? --engine takes another one", s.Kind, s.Path)
			case w.cfg.Engine != "auto":
				faults = append(faults, &noneError{wanted: fmt.Sprintf("%s: there is no socket %s: is it installed and running?", s.Kind, s.Path)})
			}
		case err != nil && w.cfg.Engine == "auto" && s.Kind == w.owner: // it is about to come: no other takes its place
			return nil, nil, err
		case err != nil:
			faults = append(faults, err)
		case slices.ContainsFunc(here, func(o *Client) bool { return o.Kind == c.Kind }): // one link to the other
		default:
			here = append(here, c)
		}
	}
	if away != nil && len(here) > 0 && !slices.ContainsFunc(here, func(c *Client) bool { return c.Kind == w.owner }) {
		return nil, nil, away // stopped or being upgraded: to follow another would be to end all its containers
	}
	return w.choose(ctx, here, faults)
}

// choose picks one of the engines that answer.
func (w *Watcher) choose(ctx context.Context, here []*Client, faults []error) (*Client, []string, error) {
	holders := map[Kind]string{} // engines that have a network with our subnet, and its name
	for _, c := range here {
		if name := c.holds(ctx, w.cfg.Network.Subnet); name != "" {
			holders[c.Kind] = name
		}
	}
	usable := here
	if w.cfg.Engine != "auto" {
		usable = slices.DeleteFunc(slices.Clone(here), func(c *Client) bool { return string(c.Kind) != w.cfg.Engine })
	}
	if len(usable) == 0 {
		if err := errors.Join(faults...); err != nil {
			return nil, nil, err
		}
		none := &noneError{wanted: fmt.Sprintf("%s: behind its socket is another engine", w.cfg.Engine)}
		if w.cfg.Engine == "auto" {
			none.hint = rootlessHint()
		}
		return nil, nil, none
	}
	best := slices.MinFunc(usable, func(a, b *Client) int {
		rank := func(c *Client) int {
			switch {
			case c.Kind == w.owner:
				return 0
			case holders[c.Kind] != "":
				return 1
			}
			return 2
		}
		return cmp.Compare(rank(a), rank(b))
	})
	for kind, name := range holders {
		if kind != best.Kind && holders[best.Kind] == "" {
			return nil, nil, fmt.Errorf("%s is not used: %s's network %q has this server's subnet %v, and one engine has it: --engine %[2]s, or end that network: %[2]s network rm %[3]s", best.Kind, kind, name, w.cfg.Network.Subnet)
		}
	}
	var notes []string
	for _, err := range faults {
		notes = append(notes, err.Error())
	}
	for _, c := range here {
		if c != best && w.cfg.Engine == "auto" {
			notes = append(notes, fmt.Sprintf("%s runs here, too, and its containers are not registered: %s has this server's subnet, and one engine has it; --engine %[1]s chooses the other", c.Kind, best.Kind))
		}
	}
	return best, notes, nil
}

// rootlessHint names the socket of a Podman that a user runs, where there is no other engine.
func rootlessHint() string {
	found, _ := filepath.Glob("/run/user/[0-9]*/podman/podman.sock") // the pattern is right
	for _, path := range found {
		if _, err := os.Stat(path); err == nil {
			return fmt.Sprintf("podman on %s %v", path, errRootless)
		}
	}
	return ""
}

// follow watches an engine until it is lost, and says how.
func (w *Watcher) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, notes, err := w.connect(ctx)
	if err != nil {
		return err
	}
	clear(w.inFlight)
	clear(w.again)
	clear(w.failed)
	clear(w.later)

	started := time.Now()
	events, ended := make(chan Event), make(chan error, 1)
	w.running.Go(func() {
		ended <- c.Events(ctx, started.Add(-eventsSlack), func(e Event) {
			select {
			case events <- e:
			case <-ctx.Done():
			}
		})
	})
	name, problems, err := c.Keep(ctx, w.cfg.Network)
	if err != nil {
		return err
	}
	ids, err := c.Running(ctx)
	if err != nil {
		return err
	}
	w.log.Info("container engine followed", "engine", c.Kind, "version", c.Version, "socket", c.Socket, "containers", len(ids), "network", name)
	w.owner = c.Kind
	if w.s.Kind != c.Kind { // what another one ran is nothing that this one could end
		clear(w.known)
	}
	w.s.Kind, w.s.Version, w.s.Socket, w.s.NFT, w.s.Network = c.Kind, c.Version, c.Socket, c.NFT, name
	w.s.Up, w.s.Problem, w.s.Since = true, "", started
	w.note(notes, problems)
	w.listed(ctx, c, ids)

	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	retry := time.NewTicker(lookAgain)
	defer retry.Stop()
	lists := make(chan list, 1)
	networks := make(chan kept, 1)
	var relist, rekeep bool // one is being made
	keep := func() {
		if !rekeep {
			rekeep = true
			w.running.Go(func() {
				name, problems, err := c.Keep(ctx, w.cfg.Network)
				networks <- kept{name, problems, err}
			})
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case e := <-events:
			w.happened(ctx, c, e)
			if e.ID == "" && (e.Network == w.s.Network || e.Network == w.cfg.Network.Name) {
				keep()
			}
		case r := <-w.results:
			w.described(ctx, c, r)
		case d := <-w.due:
			if d.session == ctx {
				if d.last {
					delete(w.later, d.id)
				}
				w.look(ctx, c, d.id)
			}
		case p := <-w.probed:
			w.takeProbe(p)
		case <-retry.C:
			for id := range w.failed {
				w.look(ctx, c, id)
			}
		case <-resync.C:
			if !relist {
				relist = true
				w.running.Go(func() {
					ids, err := c.Running(ctx)
					lists <- list{ids, err}
				})
			}
			keep()
		case l := <-lists:
			relist = false
			if l.err != nil {
				return l.err
			}
			w.listed(ctx, c, l.ids)
		case k := <-networks:
			rekeep = false
			if k.err != nil { // containers are on the network that they were on
				k.name, k.problems = w.s.Network, []string{k.err.Error()}
			}
			w.s.Network = k.name
			w.note(notes, k.problems)
			w.replan()
		}
	}
}

type list struct {
	ids []string
	err error
}

type kept struct {
	name     string
	problems []string
	err      error
}

// note keeps what is wrong, and tells of what was not told before.
func (w *Watcher) note(lists ...[]string) {
	was := w.s.Notes
	w.s.Notes = slices.Concat(lists...)
	for _, n := range w.s.Notes {
		if !slices.Contains(was, n) {
			w.log.Warn("container engine is not as wanted", "problem", n)
		}
	}
}

// listed looks at all that run, and at those that are thought to.
func (w *Watcher) listed(ctx context.Context, c *Client, ids []string) {
	w.s.Listed = true
	w.s.Pending = map[string]bool{}
	for _, id := range ids {
		if _, ok := w.known[id]; !ok {
			w.s.Pending[id] = true
		}
		w.look(ctx, c, id)
	}
	for id := range w.known {
		w.look(ctx, c, id)
	}
	w.replan()
}

// happened takes an event's news, and has the engine describe the container anew.
func (w *Watcher) happened(ctx context.Context, c *Client, e Event) {
	if e.ID == "" {
		return
	}
	if v, ok := w.known[e.ID]; ok && e.Ended && v.Running && !e.At.Before(v.StartedAt) {
		v.Running = false
		w.known[e.ID] = v
		w.replan()
	}
	w.look(ctx, c, e.ID)
	if e.Health && c.Kind == Podman && !w.later[e.ID] {
		w.later[e.ID] = true
		w.running.Go(func() {
			for i, wait := range looksLater {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
				select {
				case w.due <- due{ctx, e.ID, i == len(looksLater)-1}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

// look asks the engine about a container; once more if it was asking already.
func (w *Watcher) look(ctx context.Context, c *Client, id string) {
	if w.inFlight[id] {
		w.again[id] = true
		return
	}
	w.inFlight[id] = true
	w.running.Go(func() {
		r := result{session: ctx, id: id}
		select {
		case w.slots <- struct{}{}:
			r.c, r.there, r.err = c.Inspect(ctx, id)
			<-w.slots
		case <-ctx.Done():
			return
		}
		select {
		case w.results <- r:
		case <-ctx.Done():
		}
	})
}

// described takes the answer.
func (w *Watcher) described(ctx context.Context, c *Client, r result) {
	if r.session != ctx { // of a connection before this one
		return
	}
	delete(w.inFlight, r.id)
	told := w.failed[r.id]
	delete(w.failed, r.id)
	if w.again[r.id] {
		delete(w.again, r.id)
		w.look(ctx, c, r.id)
	}
	switch {
	case r.err != nil:
		if ctx.Err() == nil {
			w.failed[r.id] = true
			if !told {
				w.log.Warn("container not described by its engine; asking again", "id", r.id, "err", r.err)
			}
		}
		return
	case !r.there:
		delete(w.known, r.id)
	default:
		w.known[r.id] = r.c
	}
	delete(w.s.Pending, r.id)
	w.replan()
}

// replan makes the view anew, and has the right ports probed.
func (w *Watcher) replan() {
	rules := w.cfg.Rules()
	rules.Network = w.s.Network
	all := slices.SortedFunc(maps.Values(w.known), func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	was := w.s.View
	w.s.View = Plan(all, rules, w.probes)
	w.s.Attached = 0
	for _, v := range all {
		if _, on := v.Addrs[rules.Network]; on && v.Running {
			w.s.Attached++
		}
	}
	for _, r := range w.s.View.Refused {
		if !slices.Contains(was.Refused, r) {
			w.log.Warn("container is not in the mesh", "id", r.ID, "name", r.Name, "reason", r.Reason)
		}
	}
	w.probeAll()
	w.publish()
}

// probeAll starts and ends probing as the view asks for.
func (w *Watcher) probeAll() {
	wanted := targets(w.s.View)
	for id, p := range w.probing {
		if wanted[id] != p.target {
			p.stop()
			delete(w.probing, id)
			delete(w.probes, id)
		}
	}
	for id, t := range wanted {
		if _, ok := w.probing[id]; ok {
			continue
		}
		probing, stop := context.WithCancel(context.Background()) // it outlasts the engine's absence
		w.probing[id] = prober{t, stop}
		w.running.Go(func() {
			probe(probing, t, w.cfg.Dial, func(p Probe) {
				select {
				case w.probed <- p:
				case <-probing.Done():
				}
			})
		})
	}
}

// takeProbe notes what a probe found.
func (w *Watcher) takeProbe(p Probe) {
	if w.probing[p.Target.ID].target != p.Target {
		return
	}
	was := w.probes[p.Target.ID]
	w.probes[p.Target.ID] = p
	if was.Health != p.Health || was.Target != p.Target {
		w.replan()
	}
}
