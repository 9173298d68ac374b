package node

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/ipplan"
)

// containerBridge is the interface of the containers' network, unless another
// one has its address, as the predecessor's has.
const containerBridge = "jiji-br0"

// controlPorts are the servers' own, on management addresses.
func (n *Node) controlPorts() []uint16 {
	return []uint16{n.cfg.Corrosion.ControlPort, n.cfg.Corrosion.GossipPort}
}

// wantedFirewall is the mesh as the firewall has to know it.
func (n *Node) wantedFirewall() (firewall.Wanted, error) {
	topo, self := n.members.Topology(), n.members.Self()
	net, err := host.ReadNetwork()
	if err != nil {
		return firewall.Wanted{}, err
	}
	w := firewall.Wanted{
		Link: n.cfg.Interface, Cluster: topo.Cluster, Management: ipplan.ManagementPrefix,
		Subnet: self.Subnet, WireGuardIP: self.WireGuardIP, Bridge: bridgeOf(net.Links, self.Subnet), Masquerade: n.cfg.Masquerade,
		ListenPort: n.cfg.ListenPort, DNSPort: n.cfg.DNSPort, Control: n.controlPorts(),
	}
	for _, name := range n.cfg.ForwardFrom {
		if name != w.Bridge { // which setFirewall tells
			w.ForwardFrom = append(w.ForwardFrom, name)
		}
	}
	w.Uplinks = uplinkNames(net.Uplinks(w.Link, w.Bridge), net.Links, n.guard.wanted.Uplinks)
	return w, nil
}

// uplinkNames are the names of the uplinks, and of those that were before and are down:
// they come back, and what guards them should be there when they do.
func uplinkNames(ups []host.Uplink, links []host.LinkInfo, before []string) (names []string) {
	for _, u := range ups {
		names = append(names, u.Name)
	}
	for _, l := range links {
		if !l.Up && slices.Contains(before, l.Name) {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// bridgeOf is the bridge that holds the subnet's gateway address, or the one
// that will.
func bridgeOf(links []host.LinkInfo, subnet netip.Prefix) string {
	gateway := netip.PrefixFrom(ipplan.WireGuardIP(subnet), subnet.Bits())
	for _, l := range links {
		if l.Kind == "bridge" && slices.ContainsFunc(l.Addrs, func(a host.AddrInfo) bool { return a.Prefix == gateway }) {
			return l.Name
		}
	}
	return containerBridge
}

// A guard is the node's firewall. It belongs to guardLoop, once that runs.
type guard struct {
	*host.Guard
	wanted    firewall.Wanted // what the firewall was last brought to
	fault     []string        // why it could not be
	obstacles []string        // what it does against the mesh all the same; one line each
}

// guardLoop keeps the firewall as it is wanted, and tries again what fails, after
// 4 s and then twice as long each time. It has a goroutine of its own
// because programs are started for it, which names must not wait for.
func (n *Node) guardLoop(ctx context.Context) error {
	tick := time.NewTicker(convergeEvery)
	defer tick.Stop()
	again := convergeRetry
	for regular := true; ; {
		n.setFirewall(true, regular)
		regular = false
		var retry <-chan time.Time
		if again = min(2*again, convergeEvery); n.guard.fault == nil {
			again = convergeRetry
		} else {
			retry = time.After(again)
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-n.firewallChanged:
				wait = false
			case <-retry:
				wait = false
			case <-n.underlayChanged:
				n.setFirewall(false, false)
			case <-tick.C:
				wait, regular = false, true
			}
		}
	}
}

// setFirewall brings the firewall to what is wanted now, if that is new, or
// changed says that somebody may have changed it.
func (n *Node) setFirewall(changed, regular bool) {
	g := &n.guard
	w, err := n.wantedFirewall()
	if err == nil {
		if !changed && reflect.DeepEqual(w, g.wanted) {
			return
		}
		g.wanted = w
		var changes []host.Change
		changes, err = g.Apply(w, regular)
		n.logChanges(changes)
	}
	g.fault = nil
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			g.fault = append(g.fault, "set firewall: "+line)
		}
	}
	if regular {
		n.logEnded(&g.Fights)
		if g.obstacles, err = g.Warnings(w); err != nil {
			g.obstacles = append(g.obstacles, fmt.Sprintf("look for what drops packets of the mesh: %v", err))
		}
	}
	lines := slices.Concat(g.fault, g.obstacles)
	if slices.Contains(n.cfg.ForwardFrom, w.Bridge) {
		lines = append(lines, fmt.Sprintf("--forward-from %s names the containers' own bridge, from which they reach the mesh anyway: take it away", w.Bridge))
	}
	was := n.unguarded.Load()
	for _, line := range lines {
		if was == nil || !slices.Contains(*was, line) {
			n.log.Warn("the firewall is not as wanted", "problem", line)
		}
	}
	lines = append(lines, g.Fights.Warnings()...)
	n.unguarded.Store(&lines)
}

// watchFirewall pokes firewallChanged. Where the kernel tells nothing, the
// regular check has to do.
func (n *Node) watchFirewall(ctx context.Context) error {
	events := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		host.Coalesce(ctx, events, func() { poke(n.firewallChanged) })
	}()
	if err := firewall.Watch(ctx, func() { poke(events) }); err != nil {
		n.log.Warn("changes of the firewall are noticed once a minute only", "err", err)
	}
	<-done
	return nil
}
