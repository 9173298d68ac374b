package tunnel

import (
	"errors"
	"fmt"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// A tunDevice is the TUN as the WireGuard device sees it: every packet from the
// interface passes through its Read, and every packet to it through its Write.
type tunDevice struct {
	tun.Device
	more    func() bool // whether Device has something to read; nil: cannot tell
	room    int         // packets for which a further read needs room
	events  chan tun.Event
	in, out *gate
}

// wrap puts d between the gates. It takes over d, unless it fails.
func wrap(d tun.Device, in, out *gate) (*tunDevice, error) {
	t := &tunDevice{Device: d, events: make(chan tun.Event), in: in, out: out}
	if f := d.File(); f != nil {
		var err error
		if t.more, err = readable(f); err != nil {
			return nil, fmt.Errorf("poll the TUN: %w", err)
		}
	}
	go t.forwardEvents()
	return t, nil
}

// forwardEvents hides from the device that the interface goes up and down: it
// would close its sockets and drop its sessions. It is up from Open to Close, and
// an interface that somebody takes down comes up again by Restore.
func (t *tunDevice) forwardEvents() {
	defer close(t.events)
	for e := range t.Device.Events() {
		if e &= tun.EventMTUUpdate; e != 0 {
			t.events <- e
		}
	}
}

func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// segments is for how many packets a read needs room at least. With segmentation
// offload the kernel hands over up to 64 KiB of a TCP stream at once: 48 packets
// at an MTU of 1420, 54 at 1280.
const segments = 64

// Read reads as Device does, and then again while there is something to read and
// room for it. Device reads one packet, or the segments of one, and what follows
// costs by the batch.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.out.wait()
	n, err := t.Device.Read(bufs, sizes, offset)
	t.room = max(segments, t.room-1, n) // streams of smaller segments come and go
	for err == nil && t.more != nil && len(bufs)-n > t.room && t.more() {
		var m int
		m, err = t.Device.Read(bufs[n:], sizes[n:], offset)
		if errors.Is(err, tun.ErrTooManySegments) { // some are lost, once
			t.room = len(bufs)
		}
		n += m
	}
	t.out.enter(n)
	return n, err
}

// Write drops what arrives while the interface is down.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	n, err := t.Device.Write(bufs, offset)
	t.in.leave(len(bufs))
	if errors.Is(err, syscall.EIO) {
		err = nil
	}
	return n, err
}
