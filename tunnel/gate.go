package tunnel

import (
	"math"
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// The device reads as fast as packets come, and holds what its slower stages
// have not dealt with in 64 KiB buffers: under a single TCP stream a whole
// window of it, hundreds of megabytes that no cache holds. A gate in front of
// each direction makes the kernel's queues hold the excess.

const (
	// perCore is how many packets one direction may have in the device for each
	// core. More make nothing faster.
	perCore = 32
	// forget is for how long to wait for packets to leave. The device also drops
	// some, which nobody is told of.
	forget = 2 * time.Millisecond
	// aside is for how long a gate stays open after it forgot some. Packets that
	// the device drops, as a flood of forgeries is or what is for a dead peer,
	// would else close it again and again to those of everybody.
	aside = 50 * forget
)

// A gate counts the packets inside the device in one direction.
type gate struct {
	limit int

	mu   sync.Mutex // guards n and open
	n    int
	open time.Time // until then, whatever n
	c    sync.Cond // n fell
}

func newGate() *gate {
	g := &gate{limit: perCore * runtime.GOMAXPROCS(0)}
	g.c.L = &g.mu
	return g
}

// wait waits until there are fewer packets than the limit, or forgets those
// that are overdue.
func (g *gate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n < g.limit || time.Now().Before(g.open) {
		return
	}
	overdue := time.AfterFunc(forget, func() {
		g.mu.Lock()
		g.open = time.Now().Add(aside)
		g.mu.Unlock()
		g.leave(math.MaxInt)
	})
	defer overdue.Stop()
	for g.n >= g.limit {
		g.c.Wait()
	}
}

func (g *gate) enter(packets int) {
	g.mu.Lock()
	g.n += packets
	g.mu.Unlock()
}

func (g *gate) leave(packets int) {
	g.mu.Lock()
	g.n = max(0, g.n-packets) // below zero after forgetting what was only late
	g.mu.Unlock()
	g.c.Broadcast()
}

// A gatedBind is a bind between the two gates.
//
// Of the standard bind, when wrapped, the device does not know any more that it
// should forget source addresses as routes change. That bind holds none where
// the kernel coalesces datagrams (Linux 5.12 and later): splitting them loses it.
type gatedBind struct {
	conn.Bind
	in, out *gate
}

func (b gatedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receivers, port, err := b.Bind.Open(port)
	for i, receive := range receivers {
		receivers[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			b.in.wait()
			n, err := receive(packets, sizes, eps)
			data := 0
			for i, size := range sizes[:n] {
				if isData(packets[i][:size]) {
					data++
				}
			}
			b.in.enter(data)
			return n, err
		}
	}
	return receivers, port, err
}

func (b gatedBind) Send(packets [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(packets, ep)
	data := 0
	for _, p := range packets {
		if isData(p) {
			data++
		}
	}
	if data > 0 {
		b.out.leave(data)
	}
	return err
}

// isData reports whether a message carries a packet: what is of another type or
// a keepalive does not pass through both the TUN and the bind.
func isData(message []byte) bool {
	return len(message) > device.MessageKeepaliveSize && message[0] == device.MessageTransportType
}
