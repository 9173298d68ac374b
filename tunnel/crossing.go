package tunnel

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// Initiations of both ends may cross: two nodes start, or one is restarted as the
// other one asks for it. WireGuard then has each end answer, which takes the place
// of what it asked itself, so that both answers are void, and both ends try again
// after 5 s. The device may also take the answer to a question while another of
// its workers replaces that question, and has a session whose packets from the
// peer it cannot place, until the peer gives up on it after 15 s.
//
// So one question wins, and both ends know which: its ephemeral key is the smaller
// one. The end that asked it drops the other one, and sends its own once more, in
// case the peer was not there yet. The other end answers. With a peer that does not
// know the rule this helps where our key is smaller. An initiation of ours that is
// made while the device has one of the peer's waits, for it is void if the device
// answers. A copy of the one that the device has is dropped: as its workers compare
// timestamps before they hold the peer, two of them may answer one question, and the
// second answer makes the first one void. And one that follows the peer's answer to
// ours is dropped: those two would be dealt with at the same time.
//
// Initiations of one end may come in pairs, too: a packet that is sent has the
// device make one, moving the peer another. The later one makes the first one void,
// and is not answered when the peer answered the first: it comes within 20 ms, and
// maybe with the same timestamp, which is only told to 17 ms. So one that is made
// while a peer is moved waits until that is done, and only the latest is sent.
//
// Moving a peer ends its sessions. Who decides that may not know yet that the peer
// has just asked from there: if the device answers that, there is nothing to move.

// patience is for how long after an initiation one from the same endpoint may have
// crossed it, and for how long the device may take to answer one. A round trip is
// less; but where many programs start at once, it takes as long until one is run.
const patience = time.Second

// settling is for how long the device may take with the answer to an initiation of
// ours, while another message of the peer's would be dealt with at the same time.
const settling = 100 * time.Millisecond

// maxRead is how many initiations are remembered: more come from a flood.
const maxRead = 1024

// A crossingBind delivers one of two initiations that cross, and sends one of
// those that it is given while a peer is moved.
type crossingBind struct {
	conn.Bind
	meant func(initiation []byte) bool // for us, by who knows our key: the device drops others

	moves   sync.Mutex // held while a peer is moved; before mu
	mu      sync.Mutex // guards the rest
	to      map[string]*question
	indexed map[uint32]*question
	read    map[string]*reading // initiations that the device has or answered just now, by endpoint
	moved   map[string][]byte   // latest initiation to an endpoint that a peer is moved to; nil: none
	later   map[wgkey.Public]*laterMove
}

// A question is an initiation of ours, for as long as one of the peer's may cross it
// or the answer to it.
type question struct {
	message []byte
	to      string      // endpoint
	waits   bool        // it is not sent yet
	again   bool        // it was sent twice
	done    bool        // the peer has answered
	timer   *time.Timer // sends it, or ends it
}

// A reading is the latest initiation of a peer's, for patience.
type reading struct {
	message  []byte
	answered bool // so that it was valid
	ends     time.Time
	timer    *time.Timer // ends it
}

// A laterMove is one of a peer that waits until the device has dealt with an initiation
// from where the peer is moved to.
type laterMove struct {
	to    string // endpoint
	timer *time.Timer
}

func newCrossingBind(b conn.Bind, meant func([]byte) bool) *crossingBind {
	return &crossingBind{Bind: b, meant: meant, to: make(map[string]*question), indexed: make(map[uint32]*question), read: make(map[string]*reading), moved: make(map[string][]byte), later: make(map[wgkey.Public]*laterMove)}
}

func (b *crossingBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receivers, port, err := b.Bind.Open(port)
	for i, receive := range receivers {
		receivers[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, eps)
			for i, size := range sizes[:n] {
				if m := packets[i][:size]; isHandshake(m) && !b.arrived(m, eps[i]) {
					sizes[i] = 0 // which the device skips
				}
			}
			return n, err
		}
	}
	return receivers, port, err
}

func (b *crossingBind) Send(packets [][]byte, ep conn.Endpoint) error {
	if len(packets) != 1 || !isHandshake(packets[0]) { // one always comes alone
		return b.Bind.Send(packets, ep)
	}
	if packets[0][0] == device.MessageResponseType {
		err := b.Bind.Send(packets, ep)
		if err == nil {
			b.answered(ep)
		}
		return err
	}
	if !b.leaves(packets[0], ep) {
		return nil
	}
	return b.Bind.Send(packets, ep)
}

// move calls f, which moves a peer to an endpoint, and sends the latest initiation
// that the device made meanwhile. If the device has an initiation from there, f is
// only called if that is not answered, with the time of the call of move, which f else
// gets as zero; its error is not told. A move that waits for that is void when the
// peer is moved once more.
func (b *crossingBind) move(peer wgkey.Public, to conn.Endpoint, f func(since time.Time) error) error {
	b.moves.Lock()
	defer b.moves.Unlock()
	at := string(to.DstToBytes())
	b.mu.Lock()
	b.stay(peer)
	r := b.read[at]
	if r != nil && !r.answered {
		since, l := time.Now(), &laterMove{to: at}
		l.timer = time.AfterFunc(time.Until(r.ends), func() { b.moveLater(peer, l, to, since, f) })
		b.later[peer] = l
	}
	b.mu.Unlock()
	if r != nil {
		return nil
	}
	m, err := b.moving(to, func() error { return f(time.Time{}) })
	if m == nil {
		return err
	}
	return errors.Join(err, b.Send([][]byte{m}, to))
}

// moveLater makes a move that has waited, unless it is void.
func (b *crossingBind) moveLater(peer wgkey.Public, l *laterMove, to conn.Endpoint, since time.Time, f func(since time.Time) error) {
	b.moves.Lock()
	defer b.moves.Unlock()
	b.mu.Lock()
	due := b.later[peer] == l
	if due {
		delete(b.later, peer)
	}
	b.mu.Unlock()
	if !due {
		return
	}
	m, _ := b.moving(to, func() error { return f(since) }) // an error: as if the initiation had been lost
	if m == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take(&question{message: m, to: l.to}, to) // it has waited
}

// moving calls f, which moves a peer to an endpoint, and returns the latest initiation
// that the device made meanwhile. b.moves is held.
func (b *crossingBind) moving(to conn.Endpoint, f func() error) ([]byte, error) {
	at := string(to.DstToBytes())
	b.mu.Lock()
	b.moved[at] = nil
	b.mu.Unlock()
	err := f()
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.moved[at]
	delete(b.moved, at)
	return m, err
}

// stay ends a move that waits; b.mu is held.
func (b *crossingBind) stay(peer wgkey.Public) {
	if l := b.later[peer]; l != nil {
		l.timer.Stop()
		delete(b.later, peer)
	}
}

// answered is told that the device has answered the peer at ep, so that what it asked
// itself and what still waits is void.
func (b *crossingBind) answered(ep conn.Endpoint) {
	at := string(ep.DstToBytes())
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.read[at]; r != nil {
		r.answered = true
	}
	for peer, l := range b.later {
		if l.to == at {
			b.stay(peer)
		}
	}
	if q := b.to[at]; q != nil && q.waits {
		b.forget(q)
	}
}

// leaves reports whether to send an initiation now.
func (b *crossingBind) leaves(m []byte, ep conn.Endpoint) bool {
	q := &question{message: bytes.Clone(m), to: string(ep.DstToBytes())}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, moving := b.moved[q.to]; moving {
		b.moved[q.to] = q.message
		return false
	}
	if r := b.read[q.to]; r == nil || r.answered {
		b.begin(q)
		return true
	}
	b.replace(q)
	q.waits = true
	q.timer = time.AfterFunc(patience, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.to[q.to] == q {
			b.take(q, ep)
		}
	})
	return false
}

// take sends a question; b.mu is held.
func (b *crossingBind) take(q *question, ep conn.Endpoint) {
	b.begin(q)
	b.Bind.Send([][]byte{q.message}, ep) // an error: as if it had been lost
}

// replace puts q in the place of any other question; b.mu is held.
func (b *crossingBind) replace(q *question) {
	if old := b.to[q.to]; old != nil && old != q {
		b.forget(old)
	}
	b.to[q.to] = q
}

// begin begins the time of a question that is sent; b.mu is held.
func (b *crossingBind) begin(q *question) {
	b.replace(q)
	q.waits = false
	b.indexed[sender(q.message)] = q
	q.timer = time.AfterFunc(patience, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.forget(q)
	})
}

// forget ends a question, once or again; b.mu is held.
func (b *crossingBind) forget(q *question) {
	q.timer.Stop()
	if b.to[q.to] == q {
		delete(b.to, q.to)
	}
	if index := sender(q.message); b.indexed[index] == q {
		delete(b.indexed, index)
	}
}

// arrived reports whether to deliver a handshake message.
func (b *crossingBind) arrived(m []byte, ep conn.Endpoint) bool {
	if m[0] == device.MessageInitiationType && !b.meant(m) {
		return true // nothing waits for what the device makes of it
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if m[0] == device.MessageResponseType {
		if q := b.indexed[answered(m)]; q != nil && !q.done {
			q.done = true
			q.timer.Reset(settling)
		}
		return true
	}
	from := string(ep.DstToBytes())
	if r := b.read[from]; r != nil && bytes.Equal(r.message, m) {
		return false
	}
	switch q := b.to[from]; {
	case q == nil || q.waits:
	case q.done:
		return false
	default:
		if bytes.Compare(ephemeral(m), ephemeral(q.message)) > 0 {
			if !q.again {
				q.again = true
				b.Bind.Send([][]byte{q.message}, ep) // an error: as if it had been lost
			}
			return false
		}
		b.forget(q)
	}
	if r := b.read[from]; r != nil {
		r.timer.Stop()
	} else if len(b.read) >= maxRead {
		return true
	}
	r := &reading{message: bytes.Clone(m), ends: time.Now().Add(patience)}
	r.timer = time.AfterFunc(patience, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.read[from] == r {
			delete(b.read, from)
		}
	})
	b.read[from] = r
	return true
}

// ephemeral is the ephemeral key in an initiation, answered the index of the
// initiation that a response answers (whitepaper, sections 5.4.2 and 5.4.3).
func ephemeral(initiation []byte) []byte { return initiation[8:][:32] }
func answered(response []byte) uint32    { return receiver(response[4:]) }
