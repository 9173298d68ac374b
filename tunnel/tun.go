package tunnel

import (
	"errors"
	"fmt"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// A tunDevice is the TUN as the WireGuard device sees it: every packet from the
// interface passes through its Read and every packet to it through its Write.
type tunDevice struct {
	tun.Device
	more   func() bool // whether Device has a packet to read; nil: cannot tell
	events chan tun.Event
}

// wrap takes over d, unless it fails.
func wrap(d tun.Device) (*tunDevice, error) {
	t := &tunDevice{Device: d, events: make(chan tun.Event)}
	if f := d.File(); f != nil {
		var err error
		if t.more, err = readable(f); err != nil {
			return nil, fmt.Errorf("poll the TUN: %w", err)
		}
	}
	go t.forwardEvents()
	return t, nil
}

// forwardEvents hides the interface's going up and down from the device, which
// would close its sockets and drop its sessions: it is up from Open to Close,
// and an interface that somebody takes down is brought up again by Restore.
func (t *tunDevice) forwardEvents() {
	defer close(t.events)
	for e := range t.Device.Events() {
		if e &= tun.EventMTUUpdate; e != 0 {
			t.events <- e
		}
	}
}

func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// segments is for how many packets a read may need room: with segmentation
// offload the kernel hands over up to 64 KiB of a TCP stream at once, 48
// segments at an MTU of 1420.
const segments = 48

// Read reads like Device, and then again while there is something to read and
// room for it. A read yields one packet otherwise, and everything after costs
// per batch.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	for err == nil && len(bufs)-n >= segments && t.more != nil && t.more() {
		var m int
		m, err = t.Device.Read(bufs[n:], sizes[n:], offset)
		n += m
	}
	return n, err
}

// Write drops what arrives while the interface is down.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	n, err := t.Device.Write(bufs, offset)
	if errors.Is(err, syscall.EIO) {
		err = nil
	}
	return n, err
}
