package tunnel

import (
	"encoding/binary"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
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
)

// A gate counts the packets inside the device in one direction.
type gate struct {
	limit int

	mu sync.Mutex // guards n
	n  int
	c  sync.Cond // n fell
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
	if g.n < g.limit {
		return
	}
	overdue := time.AfterFunc(forget, func() { g.leave(math.MaxInt) })
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
type gatedBind struct {
	conn.Bind
	in, out *gate
	issued  *indices
}

func (b *gatedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receivers, port, err := b.Bind.Open(port)
	for i, receive := range receivers {
		receivers[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			b.in.wait()
			n, err := receive(packets, sizes, eps)
			data, now := 0, time.Now()
			for i, size := range sizes[:n] {
				if m := packets[i][:size]; isData(m) && b.issued.recent(receiver(m), now) {
					data++
				}
			}
			b.in.enter(data)
			return n, err
		}
	}
	return receivers, port, err
}

func (b *gatedBind) Send(packets [][]byte, ep conn.Endpoint) error {
	data := 0
	for _, p := range packets {
		if isData(p) {
			data++
		} else if isHandshake(p) {
			b.issued.note(sender(p), time.Now())
		}
	}
	err := b.Bind.Send(packets, ep)
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

// isHandshake reports whether a message is one in which we tell the peer how to
// address the session: with our index, which data from the peer then begins with.
func isHandshake(message []byte) bool {
	return len(message) == device.MessageInitiationSize && message[0] == device.MessageInitiationType ||
		len(message) == device.MessageResponseSize && message[0] == device.MessageResponseType
}

// sender is the index in a handshake message, receiver that of a data message:
// both in bytes 4 to 7 (whitepaper, section 5.4).
func sender(message []byte) uint32   { return binary.LittleEndian.Uint32(message[4:]) }
func receiver(message []byte) uint32 { return sender(message) }

// An indices remembers which session indices we issued in the last minutes. The
// device drops data with any other index at once, so that it never leaves: if it
// counted, a flood of forgeries would close the gate to everybody. It is lossy:
// of random indices it takes as many for ours as there are sessions, of 65,536.
type indices struct {
	begin time.Time
	at    [1 << 16]atomic.Int32 // seconds since begin, plus 1; zero: never
}

// sessionLife is for how long data may come: WireGuard refuses keys after 180 s,
// which begin with the handshake's end (whitepaper, section 6.1), tried for 90 s.
const sessionLife = (180 + 90 + 10) * time.Second

func newIndices() *indices { return &indices{begin: time.Now()} }

func (x *indices) note(index uint32, now time.Time) {
	x.at[uint16(index)].Store(int32(now.Sub(x.begin)/time.Second) + 1)
}

func (x *indices) recent(index uint32, now time.Time) bool {
	at := x.at[uint16(index)].Load()
	return at != 0 && now.Sub(x.begin)-time.Duration(at-1)*time.Second < sessionLife
}
