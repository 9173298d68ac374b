package node

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/ipplan"
)

// containerBridge is the interface of the containers' network.
const containerBridge = "jiji-br0"

// controlPorts are the servers' own, on management addresses.
var controlPorts = []uint16{8786, 8787}

// wantedFirewall is the mesh as the firewall has to know it.
func (n *Node) wantedFirewall() (firewall.Wanted, error) {
	topo, self := n.members.Topology(), n.members.Self()
	w := firewall.Wanted{
		Link: n.cfg.Interface, Cluster: topo.Cluster, Management: ipplan.ManagementPrefix,
		Subnet: self.Subnet, WireGuardIP: self.WireGuardIP, Bridge: containerBridge,
		ForwardFrom: n.cfg.ForwardFrom, Masquerade: n.cfg.Masquerade,
		ListenPort: n.cfg.ListenPort, DNSPort: n.cfg.DNSPort, Control: controlPorts,
	}
	ups, err := host.Uplinks()
	for _, u := range ups {
		w.Uplinks = append(w.Uplinks, u.Name)
	}
	slices.Sort(w.Uplinks)
	return w, err
}

// guard brings the firewall to what is wanted now, if that is new or changed
// says that somebody changed it. What it cannot do is a warning, and tried again
// with the next change or regular check: programs are started for it.
func (n *Node) guard(changed, regular bool) {
	w, err := n.wantedFirewall()
	if err == nil {
		if !changed && !regular && reflect.DeepEqual(w, n.guarded) {
			return
		}
		n.guarded = w
		var changes []host.Change
		changes, err = n.keeper.ApplyFirewall(w, regular)
		n.logChanges(changes)
	}
	lines := []string{}
	if was := n.unguarded.Load(); was != nil && !regular && err == nil {
		lines = *was // the obstacles are looked for at regular checks
	} else if err == nil {
		lines, err = host.FirewallWarnings(w)
	}
	if err != nil {
		lines = append(lines, fmt.Sprintf("set firewall: %v", err))
	}
	n.tellUnguarded(lines)
}

// tellUnguarded keeps the warnings about the firewall, and logs new ones.
func (n *Node) tellUnguarded(lines []string) {
	was := n.unguarded.Swap(&lines)
	for _, line := range lines {
		if was == nil || !slices.Contains(*was, line) {
			n.log.Warn("the firewall is not as wanted", "problem", line)
		}
	}
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
