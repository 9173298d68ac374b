package node

import (
	"errors"
	"fmt"

	"github.com/acidtib/jiji-node/node/host"
)

// preflight decides whether this machine can carry the node, before anything
// on it is touched, and what the node has to do without.
func (n *Node) preflight() error {
	topo, self := n.members.Topology(), n.members.Self()
	want := host.Want{
		Link: n.cfg.Interface, ListenPort: n.cfg.ListenPort, WireGuardIP: self.WireGuardIP, DNSPort: n.cfg.DNSPort,
		Cluster: topo.Cluster, Subnet: self.Subnet,
	}
	facts, err := host.Observe(want)
	if err != nil {
		return fmt.Errorf("observe this machine: %w", err)
	}
	n.ipv6 = true
	var refused []error
	for _, p := range host.Check(facts, want) {
		if !p.Degraded {
			refused = append(refused, p)
			continue
		}
		n.degrade(p.Text)
		if p.Kind == host.KindIPv6 {
			n.ipv6 = false
		}
	}
	mtu, err := host.MTU(facts.Uplinks(), ipv6Endpoints(topo.Servers), n.cfg.MTU)
	if err != nil {
		refused = append(refused, err)
	}
	n.mtu.Store(int32(mtu))
	return errors.Join(refused...)
}
