package tunnel

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
)

// limits say how large packets may be. They are not modified.
type limits struct {
	mtu     int         // of the interface
	peers   []peerLimit // for those whose path carries less
	minimum int         // of all
}

type peerLimit struct {
	prefix netip.Prefix
	mtu    int
}

func newLimits(mtu int, peers []Peer) *limits {
	l := &limits{mtu: mtu, minimum: mtu}
	for _, p := range peers {
		if p.MTU == 0 || p.MTU >= mtu {
			continue
		}
		l.minimum = min(l.minimum, p.MTU)
		for _, prefix := range p.AllowedIPs {
			l.peers = append(l.peers, peerLimit{prefix, p.MTU})
		}
	}
	return l
}

// of returns the limit of packets to or from a mesh address.
func (l *limits) of(a netip.Addr) int {
	for _, p := range l.peers {
		if p.prefix.Contains(a) {
			return min(p.mtu, l.mtu)
		}
	}
	return l.mtu
}

// A limitedTUN lets TCP know how large packets may be. Whole packets with
// complete checksums pass here: below, reading splits what the kernel hands over
// in one piece and writing joins it.
type limitedTUN struct {
	tun.Device
	limits atomic.Pointer[limits]
	alone  [][]byte // read, and to be handed over each in a batch of its own
}

// Read reads like Device, except that a packet too large for its peer's path is
// handed over alone. On its way it will be fragmented, and that the kernel does
// to single datagrams only: of a batch, which it is given in one piece for
// segmentation offload, nothing would be sent. IPv6 packets alone can be too
// large: others keep to the MTU of their route, which IPv6 has not below 1280.
func (t *limitedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(t.alone) > 0 {
		sizes[0] = copy(bufs[0][offset:], t.alone[0])
		t.alone = t.alone[1:]
		return 1, nil
	}
	n, err := t.Device.Read(bufs, sizes, offset)
	l := t.limits.Load()
	split := false
	for i := range n {
		b := bufs[i][offset : offset+sizes[i]]
		if mayLimitMSS(b) {
			limitMSS(b, l.of(address(b, target)))
		}
		if l.minimum < minMTU && len(b) > l.minimum && b[0]>>4 == 6 {
			split = split || len(b) > l.of(address(b, target))
		}
	}
	if !split {
		return n, err
	}
	for i := 1; i < n; i++ {
		t.alone = append(t.alone, slices.Clone(bufs[i][offset:offset+sizes[i]]))
	}
	return 1, err
}

func (t *limitedTUN) Write(bufs [][]byte, offset int) (int, error) {
	l := t.limits.Load()
	for _, b := range bufs {
		if b = b[offset:]; mayLimitMSS(b) {
			limitMSS(b, l.of(address(b, source)))
		}
	}
	return t.Device.Write(bufs, offset)
}

// An end is one of the two of a packet.
type end int

const (
	source end = iota
	target
)

// address returns the address of one end of a packet; zero if b is none.
func address(b []byte, which end) netip.Addr {
	var a netip.Addr
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(b[12+4*which:][:4])
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(b[8+16*which:][:16])
	}
	return a
}
