package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// Without help both ends would be silent for 5 or 15 s.
func TestInitiationsThatCross(t *testing.T) {
	for i := range 30 {
		n := newMemNet()
		a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
		a.set(t, b.peer())
		b.set(t, a.peer())
		n.hold = make(map[netip.AddrPort]memDatagram)
		if err := a.Move(b.key.Public(), b1); err != nil {
			t.Fatal(err)
		}
		if err := b.Move(a.key.Public(), a1); err != nil {
			t.Fatal(err)
		}
		mustGet(t, a, b)
		mustGet(t, b, a)
		if t.Failed() {
			t.Fatalf("in round %d", i+1)
		}
		a.Close()
		b.Close()
	}
}

// anyone knows our key.
func anyone([]byte) bool { return true }

// What a stranger sends with a peer's address keeps no initiation of ours back.
func TestForgedInitiationIsIgnored(t *testing.T) {
	n := newMemNet()
	a, b := newNode(t, n, "10.210.1.1", a1), newNode(t, n, "10.210.2.1", b1)
	a.set(t, b.peer())
	n.mu.Lock()
	at := n.at[a1]
	n.mu.Unlock()
	for i := range byte(100) {
		forged := make([]byte, device.MessageInitiationSize)
		forged[0], forged[4] = device.MessageInitiationType, i
		at.queue <- memDatagram{b1, forged}
	}
	for len(at.queue) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := a.Move(b.key.Public(), b1); err != nil {
		t.Fatal(err)
	}
	if sent := n.initiations(b1); sent != 1 {
		t.Errorf("%d initiations were sent as the peer was moved, want 1", sent)
	}
}

// Of the initiations that are made while a peer is moved the latest is sent, once
// it is.
func TestOneInitiationForAMove(t *testing.T) {
	n := newMemNet()
	b, other := newCrossingBind(n.bind(a1), anyone), n.bind(b1)
	initiation := func(index byte) []byte {
		m := make([]byte, device.MessageInitiationSize)
		m[0], m[4] = device.MessageInitiationType, index
		return m
	}
	to, broken := memEndpoint{b1}, errors.New("broken")
	err := b.move(wgkey.Public{1}, to, func(time.Time) error {
		for i := range byte(2) {
			m := initiation(i + 1)
			if err := b.Send([][]byte{m}, to); err != nil {
				t.Error(err)
			}
			clear(m) // it is the device's
		}
		if len(other.queue) != 0 {
			t.Error("sent before the peer was moved")
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	if err := b.move(wgkey.Public{1}, to, func(time.Time) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := b.Send([][]byte{initiation(3)}, to); err != nil {
		t.Error(err)
	}
	for _, want := range []byte{2, 3} {
		if got := (<-other.queue).data; !bytes.Equal(got, initiation(want)) {
			t.Errorf("sent %x, want initiation %d", got, want)
		}
	}
	if len(other.queue) != 0 {
		t.Errorf("%d more were sent", len(other.queue))
	}
}

// An initiation that is made while the device has one of the peer's is sent only if
// the device does not answer.
func TestInitiationWaitsForAnAnswer(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet()
			wire, far := n.bind(a1), n.bind(b1)
			b := newCrossingBind(wire, anyone)
			receivers, _, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			send := func(kind byte, size int) {
				m := make([]byte, size)
				m[0] = kind
				if err := b.Send([][]byte{m}, memEndpoint{b1}); err != nil {
					t.Fatal(err)
				}
			}
			theirs := make([]byte, device.MessageInitiationSize)
			theirs[0] = device.MessageInitiationType
			wire.queue <- memDatagram{b1, theirs}
			if _, err := receivers[0]([][]byte{make([]byte, 200)}, make([]int, 1), make([]conn.Endpoint, 1)); err != nil {
				t.Fatal(err)
			}
			send(device.MessageInitiationType, device.MessageInitiationSize)
			time.Sleep(patience - 1)
			if len(far.queue) != 0 {
				t.Error("ours is sent although the device may answer")
			}
			want := byte(device.MessageInitiationType)
			if answers {
				want = device.MessageResponseType
				send(device.MessageResponseType, device.MessageResponseSize)
			}
			time.Sleep(patience)
			synctest.Wait()
			if len(far.queue) != 1 {
				t.Fatalf("answers %v: %d messages are sent, want 1", answers, len(far.queue))
			}
			if got := (<-far.queue).data[0]; got != want {
				t.Errorf("answers %v: a message of type %d is sent, want %d", answers, got, want)
			}
			time.Sleep(patience)
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.to)+len(b.indexed)+len(b.read)+len(b.later) != 0 {
				t.Errorf("something is remembered: %v %v %v", b.to, b.indexed, b.read)
			}
		})
	}
}

// A peer that was just answered there is not moved, which would end its new session;
// one whose initiation the device has is, unless the device answers.
func TestMoveWhereThePeerAsks(t *testing.T) {
	theirs := make([]byte, device.MessageInitiationSize)
	theirs[0] = device.MessageInitiationType
	for _, tt := range []struct {
		name      string
		arrives   bool
		answer    time.Duration // since the initiation; 0: none
		move      time.Duration
		elsewhere bool          // it is moved at once to somewhere else
		at        time.Duration // when the peer is moved; -1: it is not
	}{
		{"not asked", false, 0, 1, false, 1},
		{"asked, but not answered", true, 0, 1, false, patience},
		{"asked, and answered later", true, 2, 1, false, -1},
		{"asked, and moved elsewhere", true, 0, 1, true, -1},
		{"answered", true, 1, 2, false, -1},
		{"answered long ago", true, 1, 1 + patience, false, 1 + patience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				wire := n.bind(a1)
				n.bind(b1)
				b, start := newCrossingBind(wire, anyone), time.Now()
				receivers, _, err := b.Open(0)
				if err != nil {
					t.Fatal(err)
				}
				if tt.arrives {
					sizes := make([]int, 1)
					for range 2 {
						wire.queue <- memDatagram{b1, theirs}
						if _, err := receivers[0]([][]byte{make([]byte, 200)}, sizes, make([]conn.Endpoint, 1)); err != nil {
							t.Fatal(err)
						}
					}
					if sizes[0] != 0 {
						t.Error("a copy is delivered")
					}
				}
				if tt.answer > 0 {
					time.AfterFunc(tt.answer, func() {
						m := make([]byte, device.MessageResponseSize)
						m[0] = device.MessageResponseType
						if err := b.Send([][]byte{m}, memEndpoint{b1}); err != nil {
							t.Error(err)
						}
					})
				}
				time.Sleep(tt.move)
				synctest.Wait()
				moved := time.Duration(-1)
				if err := b.move(wgkey.Public{1}, memEndpoint{b1}, func(time.Time) error {
					moved = time.Since(start)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if tt.elsewhere {
					if err := b.move(wgkey.Public{1}, memEndpoint{b2}, func(time.Time) error { return nil }); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(2 * patience)
				synctest.Wait()
				if moved != tt.at {
					t.Errorf("moved after %v, want %v", moved, tt.at)
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				if len(b.read)+len(b.later)+len(b.moved) != 0 {
					t.Errorf("something is remembered: %v %v %v", b.read, b.later, b.moved)
				}
			})
		})
	}
}

// A flood from many addresses is the device's to judge, and takes no memory here.
func TestFloodOfInitiations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		wire := n.bind(a1)
		b := newCrossingBind(wire, anyone)
		receivers, _, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		sizes := make([]int, 1)
		for port := range uint16(2 * maxRead) {
			m := make([]byte, device.MessageInitiationSize)
			m[0] = device.MessageInitiationType
			wire.queue <- memDatagram{netip.AddrPortFrom(b1.Addr(), port+1), m}
			if _, err := receivers[0]([][]byte{make([]byte, 200)}, sizes, make([]conn.Endpoint, 1)); err != nil {
				t.Fatal(err)
			}
			if sizes[0] == 0 {
				t.Fatalf("initiation %d is not delivered", port)
			}
		}
		b.mu.Lock()
		if len(b.read) != maxRead {
			t.Errorf("%d are remembered, want %d", len(b.read), maxRead)
		}
		b.mu.Unlock()
		time.Sleep(patience)
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.read) != 0 {
			t.Errorf("%d are remembered for ever", len(b.read))
		}
	})
}

func TestCrossingBind(t *testing.T) {
	message := func(kind byte, size int, index uint32) []byte {
		m := make([]byte, size)
		m[0] = kind
		binary.LittleEndian.PutUint32(m[4:], index)
		return m
	}
	initiation := func(index uint32, key byte) []byte {
		m := message(device.MessageInitiationType, device.MessageInitiationSize, index)
		m[8] = key
		return m
	}
	response := func(to uint32) []byte {
		m := message(device.MessageResponseType, device.MessageResponseSize, 99)
		binary.LittleEndian.PutUint32(m[8:], to)
		return m
	}
	type arrival struct {
		message []byte
		from    netip.AddrPort
		deliver bool
	}
	const wins, loses = 6, 4 // keys of the peer's against which ours, 5, does so
	for _, tt := range []struct {
		name   string
		after  time.Duration // since our initiation, whose index is 1
		arrive []arrival
		sent   int // how often ours is
	}{
		{"the answer", 0, []arrival{{response(1), b1, true}}, 1},
		{"after the answer", 0, []arrival{{response(1), b1, true}, {initiation(7, wins), b1, false}, {initiation(8, loses), b1, false}}, 1},
		{"ours wins", 0, []arrival{{initiation(7, wins), b1, false}, {response(1), b1, true}}, 2},
		{"ours wins against two", 0, []arrival{{initiation(7, wins), b1, false}, {initiation(8, wins), b1, false}}, 2},
		{"ours loses", 0, []arrival{{initiation(7, loses), b1, true}}, 1},
		{"ours loses, and is over", 0, []arrival{{initiation(7, loses), b1, true}, {initiation(8, wins), b1, true}}, 1},
		{"ours wins after an answer to another one", 0, []arrival{{response(2), b1, true}, {initiation(7, wins), b1, false}}, 2},
		{"after the answer from elsewhere", 0, []arrival{{response(1), b2, true}, {initiation(7, wins), b1, false}}, 1},
		{"copies", 0, []arrival{{initiation(7, loses), b1, true}, {initiation(7, loses), b1, false}, {initiation(8, loses), b1, true}}, 1},
		{"another peer's", 0, []arrival{{initiation(7, wins), b2, true}}, 1},
		{"just in time to cross", patience - 1, []arrival{{initiation(7, wins), b1, false}}, 2},
		{"too late to cross", patience, []arrival{{initiation(7, wins), b1, true}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				wire, far := n.bind(a1), n.bind(b1)
				b := newCrossingBind(wire, anyone)
				receivers, _, err := b.Open(0)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Send([][]byte{initiation(1, 5)}, memEndpoint{b1}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(tt.after)
				synctest.Wait()
				packets, sizes, eps := [][]byte{make([]byte, 200)}, make([]int, 1), make([]conn.Endpoint, 1)
				for i, a := range tt.arrive {
					wire.queue <- memDatagram{a.from, a.message}
					if _, err := receivers[0](packets, sizes, eps); err != nil {
						t.Fatal(err)
					}
					if got := sizes[0] > 0; got != a.deliver {
						t.Errorf("message %d: delivered is %v, want %v", i+1, got, a.deliver)
					}
				}
				if len(far.queue) != tt.sent {
					t.Errorf("ours is sent %d times, want %d", len(far.queue), tt.sent)
				}
				for range len(far.queue) {
					if got := (<-far.queue).data; !bytes.Equal(got, initiation(1, 5)) {
						t.Errorf("sent %x, want ours", got)
					}
				}
				time.Sleep(patience)
				synctest.Wait()
				b.mu.Lock()
				defer b.mu.Unlock()
				if len(b.to)+len(b.indexed)+len(b.read)+len(b.later) != 0 {
					t.Errorf("something is remembered: %v %v %v", b.to, b.indexed, b.read)
				}
			})
		})
	}
}
