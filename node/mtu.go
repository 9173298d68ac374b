package node

import (
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/tunnel"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	pathsEvery = 5 * time.Second // for paths that change with no news of it, such as another endpoint
	minMTU6    = 1280            // of IPv6 (RFC 8200, section 5)
)

// An underlay is what carries the tunnel, as last observed.
type underlay struct {
	tight atomic.Pointer[string] // why the uplinks leave too little for the tunnel's MTU; nil or "" if they do not

	// The rest is the converge loop's alone.
	smallest int                  // MTU of the smallest uplink; 0: none was there yet
	ipv6     bool                 // whether peers may have to be reached in IPv6
	peers    map[wgkey.Public]int // MTU of each peer of the device; 0: the tunnel's
}

// followUnderlay adapts the tunnel to what carries it, and reports whether the plan
// has to be adapted, too.
func (n *Node) followUnderlay(t *tunnel.Tunnel) (changed bool, err error) {
	smallest, ipv6 := n.underlay.smallest, n.underlay.ipv6
	err = n.followUplinks(t)
	changed, perr := n.followPaths(t)
	changed = changed || n.underlay.smallest != smallest || n.underlay.ipv6 != ipv6
	return changed, ignoreClosed(errors.Join(err, perr))
}

// followUplinks gives the tunnel the MTU that the uplinks leave for it now. Where
// they leave too little it keeps the one it has, and status says why.
func (n *Node) followUplinks(t *tunnel.Tunnel) error {
	uplinks, err := host.Uplinks(n.cfg.Interface)
	if err != nil {
		return fmt.Errorf("read uplinks: %w", err)
	}
	if len(uplinks) == 0 {
		return nil // what carried the tunnel will come back, most likely
	}
	n.underlay.smallest, n.underlay.ipv6 = host.SmallestMTU(uplinks), ipv6Endpoints(n.members.Topology().Servers)
	mtu, problem := host.MTU(uplinks, n.underlay.ipv6, n.cfg.MTU)
	n.noteTight(problem)
	was := t.MTU()
	if problem != nil || mtu == was {
		return nil
	}
	n.mtu.Store(int32(mtu))
	if err := t.SetMTU(mtu); err != nil {
		return err
	}
	n.log.Info("mtu changed", "interface", n.cfg.Interface, "mtu", mtu, "was", was)
	return nil
}

// noteTight keeps, and logs once, why the uplinks leave too little; nil: they do not.
func (n *Node) noteTight(problem error) {
	text := ""
	if problem != nil {
		text = problem.Error()
	}
	was := n.underlay.tight.Swap(&text)
	switch {
	case text != "" && (was == nil || *was != text):
		n.log.Warn("mtu kept", "problem", text)
	case text == "" && was != nil && *was != "":
		n.log.Info("uplinks leave enough again for the tunnel's mtu")
	}
}

// followPaths reads what the paths to the peers carry, and reports whether that
// has changed.
func (n *Node) followPaths(t *tunnel.Tunnel) (changed bool, err error) {
	peers, err := t.Peers()
	if err != nil {
		return false, fmt.Errorf("read the paths to the peers: %w", err)
	}
	now := map[wgkey.Public]int{}
	for _, p := range peers {
		if !p.Endpoint.IsValid() {
			continue
		}
		path, err := host.PathMTU(p.Endpoint)
		if err != nil { // no route to it now: the way back is most likely the one before
			if mtu, known := n.underlay.peers[p.Key]; known {
				now[p.Key] = mtu
			}
			continue
		}
		now[p.Key] = host.PeerMTU(t.MTU(), path, p.Endpoint.Addr().Is6())
	}
	changed = !maps.Equal(now, n.underlay.peers)
	n.underlay.peers = now
	return changed, nil
}

// peerMTU returns what a packet to a peer may have, 0 if as much as the tunnel's.
// Where the path to it is not known yet, that is what any uplink carries.
func (n *Node) peerMTU(key wgkey.Public) int {
	mtu, known := n.underlay.peers[key]
	if known || n.underlay.smallest == 0 {
		return mtu
	}
	return host.PeerMTU(int(n.mtu.Load()), n.underlay.smallest, n.underlay.ipv6)
}

// pathsChanged is followPaths between two plans.
func (n *Node) pathsChanged() bool {
	t := n.tunnel.Load()
	if t == nil {
		return false
	}
	changed, err := n.followPaths(t)
	return changed || ignoreClosed(err) != nil
}

// tooLarge receives when a path turns out to carry less; nil while there is no tunnel.
func (n *Node) tooLarge() <-chan struct{} {
	if t := n.tunnel.Load(); t != nil {
		return t.TooLarge()
	}
	return nil
}
