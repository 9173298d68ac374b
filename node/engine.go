package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/engine"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/journal"
	"github.com/acidtib/jiji-node/registry"
)

// NoEngine is the setting of a node that follows no container engine.
const NoEngine = "none"

const (
	engineKey     = "engine_containers" // of the registry file's notes: see engineNote
	prepareLimit  = 5 * time.Second     // for the network, before the tunnel is opened
	networksLimit = 10 * time.Second    // for all networks to be taken back
	engineRetry   = 2 * time.Second     // after a row that could not be written
	writesAtOnce  = 16
	engineMessage = "containers not registered as their engine has them; trying on"
)

// An enginePart keeps this server's rows as its container engine has them.
type enginePart struct {
	*Node
	undo    *journal.Journal
	watcher *engine.Watcher // nil: no engine is followed
	dns     atomic.Pointer[engineDNS]
	fault   atomic.Pointer[string] // why the rows are not as they should be; "" if they are

	restarting sync.WaitGroup // an engine that is being restarted

	note engineNote // what the file says; engineLoop's alone
}

// An engineNote says in the registry's file which rows an engine's containers were
// registered as. Those end with their containers, even while this node does not
// run; others, of the same server and the same form, were registered by hand. It is
// written before such a row is, and after it is gone.
type engineNote struct {
	Engine     engine.Kind     `json:"engine"`
	Containers map[string]bool `json:"containers"`
}

// openEngine prepares what the configuration asks for.
func (n *Node) openEngine(ctx context.Context, undo *journal.Journal) (*enginePart, error) {
	p := &enginePart{Node: n, undo: undo}
	text, err := n.local.Meta(ctx, engineKey)
	if err != nil {
		return nil, err
	}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &p.note); err != nil {
			return nil, fmt.Errorf("registry file: note %s is no JSON: %w", engineKey, err)
		}
	}
	if p.note.Containers == nil {
		p.note.Containers = map[string]bool{}
	}
	if n.cfg.Engine != NoEngine {
		p.watcher = engine.New(engine.Config{Engine: n.cfg.Engine, Rules: p.rules, Owner: p.note.Engine, Network: p.network(), Log: n.log})
	}
	return p, nil
}

func (p *enginePart) rules() engine.Rules {
	topo, self := p.members.Topology(), p.members.Self()
	return engine.Rules{ServerID: self.ID, Subnet: self.Subnet, Cluster: topo.Cluster}
}

func (p *enginePart) network() engine.NetworkConfig {
	topo, self := p.members.Topology(), p.members.Self()
	return engine.NetworkConfig{
		Name: p.cfg.EngineNetwork, Domain: topo.Domain, ServerID: self.ID, Subnet: self.Subnet, Bridge: containerBridge, Link: p.cfg.Interface,
		MTU: func() int { return int(p.mtu.Load()) }, Note: p.noteNetwork, Lift: p.lift,
	}
}

// noteNetwork puts into the journal that a network is about to be made.
func (p *enginePart) noteNetwork(kind engine.Kind, name string) error {
	p.log.Info("making the containers' network", "engine", kind, "network", name, "subnet", p.members.Self().Subnet)
	return p.undo.Record(journal.Change{Kind: journal.Network, Name: string(kind) + " " + name})
}

// prepare makes the network ahead of the tunnel, which has the gateway's address,
// too: Podman refuses a subnet of which this machine has one.
func (p *enginePart) prepare(ctx context.Context) {
	if p.watcher == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	p.watcher.Prepare(ctx)
}

// A lift is a call to be made while this machine does not have its WireGuard IP.
type lift struct {
	do    func() error
	reply chan error
}

// lift has the converge loop make the call: the address is its own.
func (p *enginePart) lift(ctx context.Context, do func() error) error {
	l := lift{do, make(chan error, 1)}
	select {
	case p.lifts <- l:
		return <-l.reply // the loop never leaves one unanswered
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lifted makes the call. The convergence after it puts back what went with the address.
func (n *Node) lifted(l lift) {
	n.log.Info("WireGuard IP lifted for a moment: Podman makes no network while this machine has an address of it")
	err := host.DropAddress(n.cfg.Interface, n.members.Self().WireGuardIP)
	if err == nil {
		err = l.do()
	}
	if t := n.tunnel.Load(); t != nil {
		if _, rerr := t.Restore(); rerr != nil {
			err = errors.Join(err, ignoreClosed(rerr))
		}
	}
	l.reply <- err
}

// leaveEngines takes back what the journal has of container engines, and says what
// became of it.
func leaveEngines(undo *journal.Journal) (u control.Undone) {
	ctx, cancel := context.WithTimeout(context.Background(), networksLimit)
	defer cancel()
	for _, c := range undo.Changes() {
		switch c.Kind {
		case journal.Daemon:
			undoDaemon(undo, c, &u)
			continue
		case journal.Network:
		default:
			continue
		}
		kind, name, _ := strings.Cut(c.Name, " ")
		removed, kept, err := engine.RemoveNetwork(ctx, engine.Sockets(), engine.Kind(kind), name)
		switch {
		case err != nil:
			u.Failed = append(u.Failed, fmt.Sprintf("network %s of %s: %v", name, kind, err))
			continue
		case kept != "":
			u.Kept = append(u.Kept, kept)
			continue
		case removed:
			u.Undone = append(u.Undone, fmt.Sprintf("network %s of %s removed", name, kind))
		}
		if err := undo.Forget(c); err != nil {
			u.Failed = append(u.Failed, err.Error())
		}
	}
	return u
}

// run follows the engine until ctx is done.
func (p *enginePart) run(ctx context.Context) error {
	if p.watcher == nil {
		return p.loop(ctx, nil)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.watcher.Run(ctx) })
	g.Go(func() error { return p.loop(ctx, p.watcher.Changed()) })
	return g.Wait()
}

// loop writes rows whenever the engine has news, and puts back once a minute what
// somebody else made of them.
func (p *enginePart) loop(ctx context.Context, changed <-chan struct{}) error {
	defer p.restarting.Wait()
	tick := time.NewTicker(convergeEvery)
	defer tick.Stop()
	var since time.Time // of the engine whose name server was looked after last
	for regular := true; ; {
		var again <-chan time.Time
		if !p.moving.Load() {
			if p.settle(ctx) != nil {
				again = time.After(engineRetry)
			}
			if p.watcher != nil {
				if s := p.watcher.State(); s.Up && (regular || !s.Since.Equal(since)) {
					since = s.Since
					p.keepDNS(ctx, s.Kind, s.NFT)
				}
			}
		}
		regular = false
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		case <-tick.C:
			regular = true
		}
	}
}

// settle brings this server's rows to what the engine says, and tells when that
// begins and ceases to fail.
func (p *enginePart) settle(ctx context.Context) error {
	err := p.reconcile(ctx)
	if ctx.Err() != nil {
		return nil
	}
	fault := ""
	if err != nil {
		fault = err.Error()
	}
	if was := p.fault.Swap(&fault); fault != "" && (was == nil || *was != fault) {
		p.log.Error(engineMessage, "err", strings.ReplaceAll(fault, "\n", "; "))
	}
	return err
}

// reconcile writes what differs. Where no engine is followed at all, what one ran
// is nobody's to keep: it goes.
func (p *enginePart) reconcile(ctx context.Context) error {
	s := &engine.State{Listed: true}
	if p.watcher != nil {
		s = p.watcher.State()
	}
	if !s.Listed { // nothing is known yet: absence is not removal
		return nil
	}
	self := p.members.Self().ID
	own := func(yield func(*registry.Container) bool) {
		for c := range p.local.Snapshot().All() {
			if c.ServerID == self && !yield(c) {
				return
			}
		}
	}
	put, gone := engine.Reconcile(s.View, own, p.note.Containers, s.Pending)
	noted := engineNote{Engine: s.Kind, Containers: maps.Clone(p.note.Containers)}
	for _, c := range s.View.In {
		noted.Containers[c.ID] = true
	}
	err := p.writeNote(ctx, noted)
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		_, err = p.store().Deregister(ctx, gone...)
		if err == nil {
			p.log.Info("containers deregistered", "ids", gone)
		}
	}
	err = errors.Join(err, p.register(ctx, put))
	if err != nil {
		return err
	}
	// What has neither a container nor a row is forgotten.
	rows := map[string]bool{}
	for c := range own {
		rows[c.ID] = true
	}
	noted.Containers = maps.Clone(noted.Containers)
	maps.DeleteFunc(noted.Containers, func(id string, _ bool) bool { return !rows[id] && !s.Pending[id] })
	return p.writeNote(ctx, noted)
}

// register writes rows. Several at once: an agent that does not answer keeps each
// of them waiting for a while.
func (p *enginePart) register(ctx context.Context, put []registry.Container) error {
	var mu sync.Mutex
	var faults []error
	var g errgroup.Group
	g.SetLimit(writesAtOnce)
	for _, c := range put {
		g.Go(func() error {
			if err := p.store().Register(ctx, c); err != nil {
				mu.Lock()
				faults = append(faults, fmt.Errorf("%s: %w", c.Name, err))
				mu.Unlock()
				return nil
			}
			p.log.Info("container registered", "id", c.ID, "service", c.Service, "ip", c.IP, "health", c.Health)
			return nil
		})
	}
	_ = g.Wait() // none fails
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// writeNote keeps the note, if it says something else.
func (p *enginePart) writeNote(ctx context.Context, n engineNote) error {
	if n.Engine == p.note.Engine && maps.Equal(n.Containers, p.note.Containers) {
		return nil
	}
	if p.full != "" {
		return fmt.Errorf("register containers: %s", p.full)
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := p.local.SetMeta(ctx, engineKey, string(text)); err != nil {
		return err
	}
	p.note = n
	return nil
}

// status is the part in the API's terms.
func (p *enginePart) status() control.Engine {
	e := control.Engine{Configured: p.cfg.Engine, Notes: []string{}, Refused: []control.RefusedContainer{}}
	if p.watcher == nil {
		return e
	}
	s := p.watcher.State()
	e.Kind, e.Version, e.Socket, e.Up, e.Since = string(s.Kind), s.Version, s.Socket, s.Up, s.Since
	e.Network, e.In, e.Problem = s.Network, len(s.View.In), s.Problem
	e.Notes = append(e.Notes, s.Notes...)
	for _, r := range s.View.Refused {
		e.Refused = append(e.Refused, control.RefusedContainer(r))
	}
	if d := p.dns.Load(); d != nil && s.Up {
		e.Restart = d.restart
		if d.fault != "" {
			e.Notes = append(e.Notes, d.fault)
		}
	}
	if fault := p.fault.Load(); fault != nil && *fault != "" {
		e.Notes = append(e.Notes, strings.Split(*fault, "\n")...)
	}
	return e
}
