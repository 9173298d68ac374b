package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/host"
)

const (
	convergeEvery = time.Minute     // puts back what somebody changed without news of it
	convergeRetry = 2 * time.Second // after a plan that could not be applied whole
)

// converge applies the plan that follows from all that is known now. Applying
// twice is harmless, so whatever fails is tried again with the next news.
func (n *Node) converge() error {
	topo, snapshot := n.members.Topology(), n.store.Snapshot()
	p := makePlan(topo, n.key, snapshot.Containers, n.ipv6)

	restored, err := n.tunnel.Restore()
	if err != nil {
		err = fmt.Errorf("restore tunnel: %w", err)
	}
	for _, what := range restored {
		n.log.Warn("tunnel was changed by somebody else; put back", "what", what)
	}
	changes, serr := n.tunnel.SetPeers(p.peers)
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
	n.monitor.SetCandidates(p.candidates)

	done, herr := host.Apply(host.Wanted{Link: n.cfg.Interface, Routes: p.routes, Forwarding: true})
	if herr != nil {
		err = errors.Join(err, fmt.Errorf("set routes: %w", herr))
	}
	for _, c := range done {
		n.log.Info("host changed", "change", c.What)
	}

	n.serial++
	p.zone.Serial = n.serial
	zone, zerr := dnsserver.NewZone(p.zone)
	if zerr != nil {
		return errors.Join(err, fmt.Errorf("build zone: %w", zerr))
	}
	n.dns.SetZone(zone)
	n.names.Store(int64(len(p.zone.Names)))
	return err
}

// convergeLoop converges on any news, and is the node's heart beat for systemd.
func (n *Node) convergeLoop(ctx context.Context) error {
	tick := time.NewTicker(convergeEvery)
	defer tick.Stop()
	beat, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog's interval: %w", err)
	}
	var alive <-chan time.Time
	if beat > 0 {
		t := time.NewTicker(beat / 3)
		defer t.Stop()
		alive = t.C
	}
	retry := n.retry()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-alive:
			n.notify(daemon.SdNotifyWatchdog)
			continue
		case <-n.members.Changed():
		case <-n.store.Changed():
		case <-n.linksChanged:
			if err := n.classes.Refresh(); err != nil {
				n.log.Error("interfaces not classified", "err", err)
			}
		case <-tick.C:
		case <-retry:
		}
		n.settle()
		retry = n.retry()
	}
}

// retry fires when it is time to try again; it is nil when there is no need.
func (n *Node) retry() <-chan time.Time {
	if !n.faulty() {
		return nil
	}
	return time.After(convergeRetry)
}

// settle converges, and logs when that begins and ceases to fail.
func (n *Node) settle() {
	fault := ""
	if err := n.converge(); err != nil {
		fault = err.Error()
	}
	was := n.fault.Swap(&fault)
	switch {
	case fault != "" && (was == nil || *was != fault):
		n.log.Error("plan not applied whole; trying on", "err", fault)
	case fault == "" && was != nil && *was != "":
		n.log.Info("plan applied whole again")
	}
}

func (n *Node) faulty() bool {
	fault := n.fault.Load()
	return fault != nil && *fault != ""
}

// observe is the monitor's view of the device.
func (n *Node) observe() ([]monitor.Observed, error) {
	peers, err := n.tunnel.Peers()
	if err != nil {
		return nil, err
	}
	seen := make([]monitor.Observed, len(peers))
	for i, p := range peers {
		seen[i] = monitor.Observed{Key: p.Key, Endpoint: p.Endpoint, LastHandshake: p.LastHandshake, RxBytes: p.RxBytes, TxBytes: p.TxBytes}
	}
	return seen, nil
}
