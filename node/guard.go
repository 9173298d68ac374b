package node

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/ipplan"
)

// containerBridge is the interface of the containers' network, unless another
// one has its address, as the predecessor's has.
const containerBridge = "jiji-br0"

// controlPorts are the servers' own, on management addresses.
var controlPorts = []uint16{8786, 8787}

// wantedFirewall is the mesh as the firewall has to know it.
func (n *Node) wantedFirewall() (firewall.Wanted, error) {
	topo, self := n.members.Topology(), n.members.Self()
	links, err := host.Links()
	if err != nil {
		return firewall.Wanted{}, err
	}
	w := firewall.Wanted{
		Link: n.cfg.Interface, Cluster: topo.Cluster, Management: ipplan.ManagementPrefix,
		Subnet: self.Subnet, WireGuardIP: self.WireGuardIP, Bridge: bridgeOf(links, self.Subnet),
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

// guard brings the firewall to what is wanted now, if that is new, or changed
// says that somebody changed it. Programs are started for it, so what fails is
// tried again with the next change or regular check.
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
	n.unset = nil
	if err != nil {
		n.unset = []string{fmt.Sprintf("set firewall: %v", err)}
	}
	if regular {
		n.inspect()
	}
	n.tellUnguarded(append(slices.Clone(n.unset), n.obstacles...))
}

// inspect looks for what the firewall does against the mesh in spite of guard.
func (n *Node) inspect() {
	var err error
	if n.obstacles, err = host.FirewallWarnings(n.guarded); err != nil {
		n.obstacles = append(n.obstacles, fmt.Sprintf("look for what drops packets of the mesh: %v", err))
	}
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
