package tunnel

import (
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// limits say how large packets may be. They are not modified.
type limits struct {
	mtu   int         // of the interface
	peers []peerLimit // of those that have one
}

type peerLimit struct {
	prefix netip.Prefix
	mtu    int
}

func newLimits(mtu int, peers []Peer) *limits {
	l := &limits{mtu: mtu}
	for _, p := range peers {
		if p.MTU == 0 {
			continue
		}
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
// in one piece, and writing joins it.
type limitedTUN struct {
	tun.Device
	limits atomic.Pointer[limits]
}

func (t *limitedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	l := t.limits.Load()
	for i := range n {
		if b := bufs[i][offset : offset+sizes[i]]; mayLimitMSS(b) {
			limit := l.of(targetOf(b))
			limitMSS(b, func(packet int) int { return min(packet, limit) })
		}
	}
	return n, err
}

// Write also sees to what this end will send: the device fills it up to a
// multiple of 16 bytes, which might no longer fit the interface of a far end whose
// MTU is smaller than this one's and no such multiple.
func (t *limitedTUN) Write(bufs [][]byte, offset int) (int, error) {
	l := t.limits.Load()
	for _, b := range bufs {
		if b = b[offset:]; mayLimitMSS(b) {
			limit := l.of(sourceOf(b))
			limitMSS(b, func(packet int) int {
				if packet = min(packet, limit); packet < l.mtu {
					packet -= packet % device.PaddingMultiple
				}
				return packet
			})
		}
	}
	return t.Device.Write(bufs, offset)
}

// sourceOf and targetOf return an address of a packet; zero if b is none.
func sourceOf(b []byte) netip.Addr { return addressAt(b, 12, 8) }
func targetOf(b []byte) netip.Addr { return addressAt(b, 16, 24) }

func addressAt(b []byte, at4, at6 int) netip.Addr {
	var a netip.Addr
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(b[at4:][:4])
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(b[at6:][:16])
	}
	return a
}
