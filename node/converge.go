package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	convergeEvery = 55 * time.Second // puts back what somebody changed without news of it: all of it within a minute
	tellLeaving   = 30 * time.Second // a removed server hears so through the mesh
	convergeRetry = 2 * time.Second  // after a plan that could not be applied whole; twice as long each time it fails alike
)

// converge applies the plan that follows from all that is known now. Applying
// twice is harmless, so whatever fails is tried again with the next news. The
// plan and the zone are made anew only if fresh, or if the underlay changed. What
// another program fights over is put back only if regular.
func (n *Node) converge(fresh, regular bool) error {
	t := n.tunnel.Load()
	var err error
	if t != nil {
		var changed bool
		changed, err = n.followUnderlay(t)
		fresh = fresh || changed
	}
	if fresh {
		err = errors.Join(err, n.replan())
	}
	wanted := host.Wanted{Closed: n.closed(), Subnet: n.members.Self().Subnet, Forwarding: true}
	if t != nil {
		wanted.Link, wanted.Routes = n.cfg.Interface, n.plan.routes
		err = errors.Join(err, n.convergeTunnel(t, regular))
	}
	changes, herr := n.keeper.Apply(wanted, regular)
	n.logChanges(changes)
	if errors.Is(herr, host.ErrNoLink) {
		t.Close() // renamed, if not deleted: its name is free for another
		err, herr = nil, nil
	}
	if herr != nil {
		err = errors.Join(err, fmt.Errorf("set routes: %w", herr))
	}
	return err
}

// replan makes the plan and the zone anew.
func (n *Node) replan() error {
	topo := n.members.Topology()
	c := n.cluster.Load()
	n.noteLeaving(topo)
	n.plan = makePlan(topo, n.key, n.ipv6, c != nil, n.isLeaving, n.peerMTU)
	if c != nil {
		c.setPeers(topo)
	}
	n.monitor.SetCandidates(n.plan.candidates)
	return n.answer()
}

// answer has the name server answer by what is known now. That is all that a
// change of the catalog, or of which servers are reached, asks for.
func (n *Node) answer() error {
	c := n.cluster.Load()
	states := n.monitor.Peers()
	changed, err := n.directory.update(view{
		topo: n.members.Topology(), key: n.key, catalog: n.store().Snapshot(), partial: c != nil && !c.store.Whole(),
		down:  func(key wgkey.Public) bool { return states[key].State == monitor.Down },
		times: n.times(), rotate: n.cfg.RotateDNS,
	})
	if err != nil {
		return fmt.Errorf("build zone: %w", err)
	}
	if !changed {
		return nil
	}
	n.logRefused()
	n.dns.SetZone(n.directory.zone)
	n.names.Store(int64(n.directory.zone.Len()))
	return nil
}

// onPath is told of every event of the monitor.
func (n *Node) onPath(e monitor.Event) {
	if (e.From == monitor.Down) != (e.To == monitor.Down) {
		poke(n.namesChanged)
	}
}

// containers are those of the catalog.
func (n *Node) containers() iter.Seq[*registry.Container] {
	return n.store().Snapshot().All()
}

// noteLeaving notes which peers have been removed since the last plan.
func (n *Node) noteLeaving(t topology.Topology) {
	now := time.Now()
	for _, s := range t.Servers {
		was := slices.ContainsFunc(n.plan.peers, func(p tunnel.Peer) bool { return p.Key == s.Key })
		if _, known := n.leaving[s.Key]; was && !known && !s.RemovedAt.IsZero() {
			n.leaving[s.Key] = now.Add(tellLeaving)
		} else if known && s.RemovedAt.IsZero() {
			delete(n.leaving, s.Key)
		}
	}
}

func (n *Node) isLeaving(key wgkey.Public) bool { return time.Now().Before(n.leaving[key]) }

// logRefused tells of containers that are not answered, once.
func (n *Node) logRefused() {
	refused := n.directory.skipped
	was := n.refused.Swap(&refused)
	for _, r := range refused {
		known := false
		if was != nil {
			_, known = slices.BinarySearchFunc(*was, r, bySkipped)
		}
		if !known {
			n.log.Warn("container refused", "id", r.Key, "reason", r.Reason)
		}
	}
}

// convergeTunnel gives the tunnel the plan's peers, and its interface what
// somebody took from it. One that is closed is left to the loop.
func (n *Node) convergeTunnel(t *tunnel.Tunnel, regular bool) (err error) {
	if regular || !n.keeper.Fights.Fought(n.cfg.Interface) {
		restored, rerr := t.Restore()
		if rerr != nil {
			err = fmt.Errorf("restore tunnel: %w", rerr)
		}
		var lost []string
		for _, what := range restored {
			lost = append(lost, fmt.Sprintf("interface %s had lost: %s", n.cfg.Interface, what))
		}
		n.repaired(lost...)
	}
	changes, serr := t.SetPeers(n.plan.peers)
	if serr != nil {
		err = errors.Join(err, fmt.Errorf("set peers: %w", serr))
	}
	for _, c := range changes {
		if c.Key.IsZero() { // the device's own: nobody else sets those but wg(8)
			n.log.Warn("tunnel was changed by somebody else; put back", "what", c.What)
			continue
		}
		n.log.Info("peer set", "peer", n.peerName(c.Key), "change", c.What)
	}
	return ignoreClosed(err)
}

// reopen makes another tunnel in place of one whose interface was taken away,
// and calls each peer where it was last.
func (n *Node) reopen(ctx context.Context, g *errgroup.Group, regular bool) error {
	if n.tunnel.Load() != nil || !regular && n.keeper.Fights.Fought(n.cfg.Interface) {
		return nil
	}
	t, err := n.openTunnel()
	if err != nil {
		return err
	}
	n.tunnel.Store(t)
	n.serveTunnel(ctx, g)
	poke(n.resolverChanged)
	n.repaired(fmt.Sprintf("interface %s was gone, made again", n.cfg.Interface))
	if _, err := t.SetPeers(n.plan.peers); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	paths := n.monitor.Peers()
	for _, p := range n.plan.peers {
		if at := paths[p.Key].Endpoint; at.IsValid() {
			err = errors.Join(err, t.Move(p.Key, at))
		}
	}
	return err
}

// serveTunnel has n.lost tell when the tunnel ends.
func (n *Node) serveTunnel(ctx context.Context, g *errgroup.Group) {
	t := n.tunnel.Load()
	g.Go(func() error {
		n.lost <- t.Run(ctx)
		return nil
	})
}

// logChanges tells what was done to the host.
func (n *Node) logChanges(changes []host.Change) {
	for _, c := range changes {
		switch c.Reason {
		case host.News:
			n.log.Info("host changed", "change", c.What)
		case host.Repair:
			n.log.Warn("host was changed by somebody else; repaired", "what", c.What)
		case host.FightBegins:
			n.log.Warn("another program changes this again and again; it is put back once a minute from now on", "what", c.What)
		case host.Fighting:
			n.log.Debug("host was changed by somebody else; repaired", "what", c.What)
		}
	}
}

// repaired tells and counts a repair of the interface: what was put back at one
// time, a link that was set down loses several things, is one.
func (n *Node) repaired(what ...string) {
	if len(what) == 0 {
		return
	}
	reason := n.keeper.Fights.Repaired(n.cfg.Interface, strings.Join(what, "; "), time.Now())
	for _, w := range what {
		n.logChanges([]host.Change{{What: w, Reason: reason}})
	}
}

// convergeLoop converges on any news, and is the node's heart beat for systemd.
// It alone changes the host; g is what runs the tunnel.
func (n *Node) convergeLoop(ctx context.Context, g *errgroup.Group) error {
	tick := time.NewTicker(convergeEvery)
	defer tick.Stop()
	beat, err := daemon.SdWatchdogEnabled(false)
	if err != nil { // and beat is 0
		n.log.Warn("watchdog's interval cannot be read; the service manager gets no heart beat", "err", err)
	}
	var alive <-chan time.Time
	if beat > 0 {
		t := time.NewTicker(beat / 3)
		defer t.Stop()
		alive = t.C
	}
	paths := time.NewTicker(pathsEvery)
	defer paths.Stop()
	tooLarge := n.tooLarge()
	retry := n.retry()
	for {
		fresh, regular := true, false
		select {
		case <-ctx.Done():
			return nil
		case <-alive:
			n.notify(daemon.SdNotifyWatchdog)
			continue
		case <-paths.C:
			tooLarge = n.tooLarge()
			if !n.pathsChanged() {
				continue
			}
		case <-tooLarge:
			tooLarge = nil // again at the next tick: some packets may not become smaller
			if !n.pathsChanged() {
				continue
			}
		case reply := <-n.downs:
			u := make(chan control.Undone, 1)
			go func() { u <- n.takeDown(ctx) }()
			for {
				select {
				case undone := <-u:
					reply <- undone
					return errDown
				case <-alive: // an agent, and firewalls, take their time
					n.notify(daemon.SdNotifyWatchdog)
				}
			}
		case l := <-n.lifts:
			n.lifted(l)
			fresh = false
		case err := <-n.lost:
			if err = errors.Join(ignoreClosed(err), n.closeTunnel()); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
		case <-n.members.Changed():
			if c := n.cluster.Load(); c != nil {
				poke(c.news)
			}
		case <-n.namesChanged:
			if n.moving.Load() || !n.faulty() && n.answer() == nil {
				continue
			}
		case <-n.timesChanged: // as often as once a second, so that nothing else is tried again with it
			if n.moving.Load() || n.faulty() || n.answer() == nil {
				continue
			}
		case <-n.registryChanged:
		case <-n.hostChanged:
			fresh = n.faulty()
			poke(n.underlayChanged)
			if err := n.classes.Refresh(); err != nil {
				n.log.Error("interfaces not classified", "err", err)
			}
		case <-tick.C:
			regular = true
		case <-retry:
		}
		if n.moving.Load() {
			continue
		}
		n.settle(n.reopen(ctx, g, regular), fresh, regular)
		retry = n.retry()
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, tunnel.ErrClosed) {
		return nil
	}
	return err
}

// retry fires when it is time to try again; it is nil when there is no need.
func (n *Node) retry() <-chan time.Time {
	if !n.faulty() {
		return nil
	}
	return time.After(n.again)
}

// settle converges, and logs when that begins and ceases to fail; err has
// failed before.
func (n *Node) settle(err error, fresh, regular bool) {
	err = errors.Join(err, n.converge(fresh, regular))
	fault := ""
	if err != nil {
		fault = err.Error()
	}
	was := n.fault.Swap(&fault)
	if n.again = min(2*n.again, convergeEvery); was == nil || *was != fault {
		n.again = convergeRetry
	}
	switch {
	case fault != "" && (was == nil || *was != fault):
		n.log.Error("plan not applied whole; trying on", "err", fault)
	case fault == "" && was != nil && *was != "":
		n.log.Info("plan applied whole again")
	}
	n.logEnded(&n.keeper.Fights)
	fights := n.keeper.Fights.Warnings()
	n.fights.Store(&fights)
}

// logEnded tells which fights are over.
func (n *Node) logEnded(f *host.Fights) {
	for _, what := range f.End(time.Now()) {
		n.log.Info("no other program changes this any more", "what", what)
	}
}

func (n *Node) faulty() bool {
	fault := n.fault.Load()
	return fault != nil && *fault != ""
}

// observe is the monitor's view of the device.
func (n *Node) observe() ([]monitor.Observed, error) {
	t := n.tunnel.Load()
	if t == nil {
		return nil, monitor.ErrNoDevice
	}
	peers, err := t.Peers()
	if errors.Is(err, tunnel.ErrClosed) {
		return nil, monitor.ErrNoDevice
	}
	if err != nil {
		return nil, err
	}
	states := n.monitor.Peers()
	seen := make([]monitor.Observed, len(peers))
	for i, p := range peers {
		if states[p.Key].State == monitor.Down { // who sends to it sends again
			t.Discard(p.Key)
		}
		seen[i] = monitor.Observed{Key: p.Key, Endpoint: p.Endpoint, LastHandshake: p.LastHandshake, RxBytes: p.RxBytes, TxBytes: p.TxBytes}
	}
	return seen, nil
}

// move and ask are the monitor's hands.
func (n *Node) move(key wgkey.Public, endpoint netip.AddrPort) error {
	if t := n.tunnel.Load(); t != nil {
		return t.Move(key, endpoint)
	}
	return tunnel.ErrClosed
}

func (n *Node) ask(key wgkey.Public) error {
	if t := n.tunnel.Load(); t != nil {
		return t.Ask(key)
	}
	return tunnel.ErrClosed
}
