package lab

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	queueLimit  = 8192            // datagrams that wait in a direction; more are dropped
	clientLimit = 256             // sources that have a socket of their own
	clientIdle  = 3 * time.Minute // without a datagram, until a source loses its socket
	heldBack    = 10 * time.Millisecond
)

// Faults are what a direction of a path does to datagrams. The zero value does nothing.
type Faults struct {
	Delay     time.Duration // of each datagram
	Jitter    time.Duration // a random part of it is added to Delay; the order is kept
	Loss      float64       // probability, 0 to 1, that a datagram is dropped
	Duplicate float64       // probability that it arrives twice
	Reorder   float64       // probability that it is held back for 10 ms, while later ones go on
	MaxSize   int           // bytes of payload: larger datagrams are dropped; 0: no limit
	BlackHole bool          // nothing arrives, not even what is already on its way
}

func (f Faults) check() error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"Loss", f.Loss}, {"Duplicate", f.Duplicate}, {"Reorder", f.Reorder}} {
		if !(p.value >= 0 && p.value <= 1) {
			return fmt.Errorf("%s is %v, want a probability from 0 to 1", p.name, p.value)
		}
	}
	if f.Delay < 0 || f.Jitter < 0 || f.MaxSize < 0 {
		return fmt.Errorf("Delay %v, Jitter %v, MaxSize %d: want none below 0", f.Delay, f.Jitter, f.MaxSize)
	}
	return nil
}

// Counts say what became of the datagrams of a direction.
type Counts struct {
	In        uint64 // taken from the sender
	Out       uint64 // sent on, copies included
	Lost      uint64 // dropped by Loss, MaxSize or BlackHole
	Overflown uint64 // dropped because too many waited
}

// A Direction is one of the two of a path. Its faults may change at any time.
type Direction struct {
	faults atomic.Pointer[Faults]
	wake   chan struct{} // capacity 1: the queue has a new first datagram

	in, out, lost, overflown atomic.Uint64

	mu     sync.Mutex // guards what follows
	random *rand.Rand
	queue  queue
	sent   uint64    // numbers the datagrams
	last   time.Time // when the latest one that keeps the order is due
}

func newDirection(seed uint64) *Direction {
	d := &Direction{wake: make(chan struct{}, 1), random: rand.New(rand.NewPCG(seed, 0))}
	d.faults.Store(&Faults{})
	return d
}

// Set makes f the direction's faults, for all datagrams that arrive from now on. It
// panics when f makes no sense.
func (d *Direction) Set(f Faults) {
	if err := f.check(); err != nil {
		panic("lab: " + err.Error())
	}
	d.faults.Store(&f)
}

// Faults returns the faults in force.
func (d *Direction) Faults() Faults { return *d.faults.Load() }

// Counts returns what became of the datagrams so far.
func (d *Direction) Counts() Counts {
	return Counts{In: d.in.Load(), Out: d.out.Load(), Lost: d.lost.Load(), Overflown: d.overflown.Load()}
}

// A datagram waits until it is due.
type datagram struct {
	due    time.Time
	number uint64 // orders those that are due at the same time
	data   []byte
	send   func([]byte)
}

type queue []datagram

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if c := q[i].due.Compare(q[j].due); c != 0 {
		return c < 0
	}
	return q[i].number < q[j].number
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(datagram)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = datagram{}
	*q = (*q)[:last]
	return x
}

// take accepts a datagram at now, to be sent by send when it is due. It keeps data.
func (d *Direction) take(now time.Time, data []byte, send func([]byte)) {
	d.in.Add(1)
	f := d.faults.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.BlackHole || f.MaxSize > 0 && len(data) > f.MaxSize || d.random.Float64() < f.Loss {
		d.lost.Add(1)
		return
	}
	due := now.Add(f.Delay)
	if f.Jitter > 0 {
		due = due.Add(time.Duration(d.random.Int64N(int64(f.Jitter))))
	}
	if d.random.Float64() < f.Reorder {
		due = due.Add(heldBack)
	} else {
		if due.Before(d.last) && f.Jitter > 0 {
			due = d.last
		}
		d.last = due
	}
	copies := 1
	if d.random.Float64() < f.Duplicate {
		copies = 2
	}
	for range copies {
		if len(d.queue) >= queueLimit {
			d.overflown.Add(1)
			continue
		}
		d.sent++
		heap.Push(&d.queue, datagram{due: due, number: d.sent, data: data, send: send})
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run sends datagrams when they are due, until stop is closed.
func (d *Direction) run(stop <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for _, g := range d.takeDue(time.Now()) {
			if d.faults.Load().BlackHole {
				d.lost.Add(1)
				continue
			}
			d.out.Add(1) // first, so that who has the datagram finds it counted
			g.send(g.data)
		}
		timer.Reset(d.untilNext(time.Now()))
		select {
		case <-stop:
			return
		case <-d.wake:
		case <-timer.C:
		}
	}
}

// takeDue removes from the queue what is due at now, and returns it in order.
func (d *Direction) takeDue(now time.Time) []datagram {
	d.mu.Lock()
	defer d.mu.Unlock()
	var due []datagram
	for len(d.queue) > 0 && !d.queue[0].due.After(now) {
		due = append(due, heap.Pop(&d.queue).(datagram))
	}
	return due
}

// untilNext returns how long nothing is due after now.
func (d *Direction) untilNext(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		return time.Hour
	}
	return max(d.queue[0].due.Sub(now), 0)
}

// A forwarder passes datagrams that arrive at a socket on to a target and the answers
// back, as an address translator does: each source has a socket of its own on the far
// side, and the target answers to that.
type forwarder struct {
	forward, back *Direction

	near *net.UDPConn
	dial func() (*net.UDPConn, error) // makes a socket connected to the target
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	clients map[netip.AddrPort]*client
}

type client struct {
	conn *net.UDPConn
	used time.Time // guarded by forwarder.mu
}

// newForwarder starts to forward what arrives at near, which it closes in the end. The
// same seed drops the same datagrams of the same traffic.
func newForwarder(near *net.UDPConn, dial func() (*net.UDPConn, error), seed uint64) *forwarder {
	f := &forwarder{
		forward: newDirection(seed),
		back:    newDirection(seed + 1),
		near:    near,
		dial:    dial,
		stop:    make(chan struct{}),
		clients: make(map[netip.AddrPort]*client),
	}
	f.done.Go(func() { f.forward.run(f.stop) })
	f.done.Go(func() { f.back.run(f.stop) })
	f.done.Go(f.read)
	return f
}

// read takes datagrams from the sources until near is closed.
func (f *forwarder) read() {
	buf := make([]byte, 1<<16)
	for {
		n, source, err := f.near.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		now := time.Now()
		c, err := f.client(source, now)
		if err != nil {
			f.forward.in.Add(1)
			f.forward.lost.Add(1)
			continue
		}
		f.forward.take(now, append([]byte(nil), buf[:n]...), func(b []byte) { c.conn.Write(b) })
	}
}

// client returns the source's socket, which it makes for a new one.
func (f *forwarder) client(source netip.AddrPort, now time.Time) (*client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.clients[source]; c != nil {
		c.used = now
		return c, nil
	}
	if f.closed {
		return nil, net.ErrClosed
	}
	f.forget(now)
	conn, err := f.dial()
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, used: now}
	f.clients[source] = c
	f.done.Go(func() { f.readBack(source, c) })
	return c, nil
}

// forget closes the sockets of idle sources, and the one that was idle longest when
// there are too many. The caller holds f.mu.
func (f *forwarder) forget(now time.Time) {
	var oldest netip.AddrPort
	for source, c := range f.clients {
		if now.Sub(c.used) > clientIdle {
			c.conn.Close()
			delete(f.clients, source)
		} else if !oldest.IsValid() || c.used.Before(f.clients[oldest].used) {
			oldest = source
		}
	}
	if len(f.clients) >= clientLimit {
		f.clients[oldest].conn.Close()
		delete(f.clients, oldest)
	}
}

// readBack takes the target's answers to a source until the source's socket is closed.
func (f *forwarder) readBack(source netip.AddrPort, c *client) {
	buf := make([]byte, 1<<16)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // what an ICMP message said of an earlier datagram
		}
		now := time.Now()
		f.mu.Lock()
		c.used = now
		f.mu.Unlock()
		f.back.take(now, append([]byte(nil), buf[:n]...), func(b []byte) { f.near.WriteToUDPAddrPort(b, source) })
	}
}

// sources returns how many sources have a socket.
func (f *forwarder) sources() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.clients)
}

// close ends the forwarder. What waits is not sent any more.
func (f *forwarder) close() {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	f.closed = true
	for _, c := range f.clients {
		c.conn.Close()
	}
	f.mu.Unlock()
	close(f.stop)
	f.near.Close()
	f.done.Wait()
}
