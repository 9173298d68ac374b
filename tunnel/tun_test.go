package tunnel

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

// A scriptedTUN reads what its script says, and offers more while there is more.
type scriptedTUN struct {
	tun.Device // nil: nothing else is called
	reads      []scriptedRead
	writeErr   error
	events     chan tun.Event
}

type scriptedRead struct {
	n   int
	err error
}

func (d *scriptedTUN) File() *os.File                       { return nil }
func (d *scriptedTUN) Events() <-chan tun.Event             { return d.events }
func (d *scriptedTUN) Write(b [][]byte, _ int) (int, error) { return len(b), d.writeErr }

func (d *scriptedTUN) Read(bufs [][]byte, sizes []int, _ int) (int, error) {
	r := d.reads[0]
	d.reads = d.reads[1:]
	for i := range r.n {
		sizes[i] = len(bufs[i])
	}
	return r.n, r.err
}

func TestReadGathers(t *testing.T) {
	ones := func(n int) []scriptedRead {
		reads := make([]scriptedRead, n)
		for i := range reads {
			reads[i].n = 1
		}
		return reads
	}
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		reads []scriptedRead
		room  int // as learned before
		n     int
		left  int // reads not done
		err   error
	}{
		{name: "one packet", reads: ones(1), n: 1},
		{name: "what there is", reads: ones(5), n: 5},
		{name: "while a super-packet fits", reads: ones(100), n: 64, left: 36},
		{name: "two super-packets", reads: []scriptedRead{{n: 48}, {n: 48}, {n: 48}}, n: 96, left: 1},
		{name: "after small segments", reads: append([]scriptedRead{{n: 3}}, ones(30)...), room: 120, n: 9, left: 24},
		{name: "ends with an error", reads: []scriptedRead{{n: 1}, {n: 1}, {err: broken}, {n: 1}}, n: 2, left: 1, err: broken},
		{name: "too many segments are told", reads: []scriptedRead{{n: 1}, {n: 126, err: tun.ErrTooManySegments}, {n: 1}}, n: 127, left: 1, err: tun.ErrTooManySegments},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &scriptedTUN{reads: tt.reads}
			td := &tunDevice{Device: d, in: newGate(), out: newGate(), room: tt.room, more: func() bool { return len(d.reads) > 0 }}
			bufs, sizes := make([][]byte, 128), make([]int, 128)
			for i := range bufs {
				bufs[i] = make([]byte, i+1)
			}
			n, err := td.Read(bufs, sizes, 0)
			if n != tt.n || err != tt.err || len(d.reads) != tt.left {
				t.Errorf("%d packets, %v, %d reads left; want %d, %v, %d", n, err, len(d.reads), tt.n, tt.err, tt.left)
			}
			for i, size := range sizes[:n] {
				if size != i+1 { // each read goes where the one before ended
					t.Fatalf("size %d is %d", i, size)
				}
			}
			if td.out.n != n {
				t.Errorf("the gate counts %d packets", td.out.n)
			}
			if tt.err == tun.ErrTooManySegments && td.room != 128 {
				t.Errorf("then room for %d, want a whole batch", td.room)
			}
		})
	}
}

func TestWriteToInterfaceThatIsDown(t *testing.T) {
	for _, tt := range []struct{ err, want error }{
		{nil, nil},
		{fmt.Errorf("write: %w", syscall.EIO), nil},
		{os.ErrClosed, os.ErrClosed},
	} {
		td := &tunDevice{Device: &scriptedTUN{writeErr: tt.err}, in: newGate()}
		td.in.enter(3)
		if _, err := td.Write(make([][]byte, 2), 0); err != tt.want {
			t.Errorf("%v becomes %v, want %v", tt.err, err, tt.want)
		}
		if td.in.n != 1 {
			t.Errorf("the gate counts %d packets, want 1", td.in.n)
		}
	}
}

func TestEventsHideUpAndDown(t *testing.T) {
	d := &scriptedTUN{events: make(chan tun.Event)}
	td, err := wrap(d, newGate(), newGate())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for _, e := range []tun.Event{tun.EventUp, tun.EventMTUUpdate, tun.EventDown, tun.EventUp | tun.EventMTUUpdate} {
			d.events <- e
		}
		close(d.events)
	}()
	n := 0
	for e := range td.Events() {
		if n++; e != tun.EventMTUUpdate {
			t.Errorf("event %v", e)
		}
	}
	if n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}
