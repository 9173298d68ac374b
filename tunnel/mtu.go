package tunnel

import (
	"errors"
	"fmt"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

const minPeerMTU = 576 // what everything takes that speaks IPv4 (RFC 1122, section 3.3.2)

// MTU returns the MTU that the interface is to have, in bytes.
func (t *Tunnel) MTU() int { return t.tun.limits.Load().mtu }

// SetMTU changes the MTU of the interface, and what TCP is let know of it. Peers
// keep a smaller one of theirs. When it fails, Restore is to do the rest.
func (t *Tunnel) SetMTU(mtu int) error {
	if mtu < minMTU || mtu > device.MaxContentSize {
		return fmt.Errorf("set MTU %d: want %d to %d", mtu, minMTU, device.MaxContentSize)
	}
	if t.isClosed() {
		return ErrClosed
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	t.tun.limits.Store(&limits{mtu, t.tun.limits.Load().peers})
	if _, err := configureLink(t.cfg.Name, mtu, t.cfg.Addresses); err != nil { // of which the device hears by an event
		return fmt.Errorf("set MTU: %w", err)
	}
	return nil
}

// TooLarge receives when the path to a peer turned out to carry less than packets
// for it need: they arrive in fragments, but a smaller MTU for that peer is
// called for. Several times may come as one.
func (t *Tunnel) TooLarge() <-chan struct{} { return t.tooLarge }

// A sizedBind sends what is too large for its path in fragments.
type sizedBind struct {
	conn.Bind
	tooLarge chan<- struct{}
}

// Send sends one by one what could not be sent at once. The kernel makes
// fragments of single datagrams only, and of those that a batch makes one of,
// for segmentation offload, it sends none: on a path whose MTU it has just
// learned the WireGuard device would lose all but single packets. What it did
// send comes twice, which the far end is used to.
func (b sizedBind) Send(packets [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(packets, ep)
	if !errors.Is(err, syscall.EMSGSIZE) {
		return err
	}
	select {
	case b.tooLarge <- struct{}{}:
	default: // it is known already
	}
	if len(packets) == 1 {
		return err
	}
	err = nil
	for i := range packets {
		err = errors.Join(err, b.Bind.Send(packets[i:i+1], ep))
	}
	return err
}
