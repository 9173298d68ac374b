package tunnel

import (
	"fmt"

	"golang.zx2c4.com/wireguard/device"
)

const (
	minMTU     = 1280 // RFC 8200, section 5
	minPeerMTU = 576  // what everything takes that speaks IPv4 (RFC 1122, section 3.3.2)
)

func checkMTU(mtu int) error {
	if mtu < minMTU || mtu > device.MaxContentSize {
		return fmt.Errorf("MTU %d: want %d to %d", mtu, minMTU, device.MaxContentSize)
	}
	return nil
}

// MTU returns the MTU that the interface is to have, in bytes.
func (t *Tunnel) MTU() int { return t.tun.limits.Load().mtu }

// SetMTU changes the MTU of the interface, and what TCP is let know of it. Peers
// keep a smaller one of theirs. When it fails, Restore is to do the rest.
func (t *Tunnel) SetMTU(mtu int) error {
	if err := checkMTU(mtu); err != nil {
		return fmt.Errorf("set MTU: %w", err)
	}
	if t.isClosed() {
		return ErrClosed
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	l := *t.tun.limits.Load()
	l.mtu, l.minimum = mtu, min(l.minimum, mtu)
	t.tun.limits.Store(&l)
	if _, err := configureLink(t.cfg.Name, mtu, t.cfg.Addresses); err != nil { // of which the device hears by an event
		return fmt.Errorf("set MTU: %w", err)
	}
	return nil
}

// TooLarge receives when packets were not sent because the path to a peer turned
// out to carry less than they need: a smaller MTU for that peer is called for.
// Several times may come as one.
func (t *Tunnel) TooLarge() <-chan struct{} { return t.tooLarge }

// notice makes the device's complaints about that go to TooLarge.
func (t *Tunnel) notice(l *device.Logger) *device.Logger {
	log := l.Errorf
	l.Errorf = func(format string, args ...any) {
		for _, a := range args {
			if err, ok := a.(error); ok && tooLarge(err) {
				select {
				case t.tooLarge <- struct{}{}:
				default: // it is known already
				}
				return
			}
		}
		log(format, args...)
	}
	return l
}

// fragmentable makes the sockets in use fragmentable. Without that all works but
// paths through a smaller MTU whose ICMP is dropped.
func (t *Tunnel) fragmentable() {
	if err := fragmentable(t.cfg.ListenPort); err != nil {
		t.cfg.Log.Warn("large packets may get lost on the way", "err", err)
	}
}
