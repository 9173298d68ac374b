package node

import (
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/rtt"
)

// Servers are near in classes, whose members are equal to whom asks for a name:
// class 0 has round-trip times below a millisecond, as within a network, class n
// those from 2^(n-1) ms to below 2^n ms.
const (
	nearest  = time.Millisecond
	farthest = 11 // has all longer times, too

	// unmeasured is behind them all: it may be near, as one that filters ICMP can
	// be, but of the others it is known.
	unmeasured = farthest + 1
)

// nearness returns the class of a round-trip time, 0 for none, of a server that is
// in class was. It stays there while the time is less than a quarter outside, so
// that one near a bound does not go to and fro.
func nearness(d time.Duration, was int) int {
	switch {
	case d == 0:
		return unmeasured
	case was == 0 && d < nearest*5/4, was > 0 && was <= farthest && d >= nearest<<(was-1)*3/4 && d < nearest<<was*5/4:
		return was
	}
	return min(bits.Len64(uint64(d/nearest)), farthest)
}

// openRTT opens what measures the round-trip times to the peers, without which
// they are all equal.
func (n *Node) openRTT() {
	self := n.members.Self()
	conn, err := rtt.Listen(self.WireGuardIP)
	if err != nil {
		n.degrade(fmt.Sprintf("round-trip times are not measured, and other servers take turns in the answers to names: %v", err))
		return
	}
	n.rtt = rtt.New(conn, rtt.Config{Targets: n.measured, Report: func() { poke(n.timesChanged) }, Log: n.log})
}

// measured are the peers that answer, or may do so in a moment.
func (n *Node) measured() []rtt.Target {
	states := n.monitor.Peers()
	list := make([]rtt.Target, 0, len(states))
	for _, s := range n.members.Topology().Servers {
		p, known := states[s.Key]
		if known && (p.State == monitor.Up || p.State == monitor.Suspect) && s.Subnet.IsValid() && s.RemovedAt.IsZero() {
			list = append(list, rtt.Target{Addr: s.WireGuardIP, Path: p.Endpoint})
		}
	}
	return list
}

// times are the round-trip times by WireGuard IP; a peer without one is not in it.
func (n *Node) times() map[netip.Addr]time.Duration {
	if n.rtt == nil {
		return nil
	}
	return n.rtt.Times()
}
