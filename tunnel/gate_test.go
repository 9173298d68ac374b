package tunnel

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

func TestGate(t *testing.T) {
	// waiting starts n goroutines that wait at g, and counts those that are through.
	waiting := func(g *gate, n int) *atomic.Int32 {
		var through atomic.Int32
		for range n {
			go func() { g.wait(); through.Add(1) }()
		}
		synctest.Wait()
		return &through
	}
	t.Run("open below the limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			g.enter(g.limit - 1)
			if waiting(g, 2).Load() != 2 {
				t.Error("closed")
			}
		})
	})
	t.Run("opens for all when packets leave", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			g.enter(g.limit + 5)
			through := waiting(g, 2)
			g.leave(5)
			synctest.Wait()
			if through.Load() != 0 {
				t.Error("open at the limit")
			}
			g.leave(1)
			synctest.Wait()
			if through.Load() != 2 {
				t.Error("closed below the limit")
			}
		})
	})
	t.Run("forgets what does not leave, however much", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			g.enter(5 * g.limit)
			through := waiting(g, 2)
			time.Sleep(forget - 1)
			synctest.Wait()
			if through.Load() != 0 {
				t.Error("open before it was time")
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if through.Load() != 2 {
				t.Error("closed for ever")
			}
			g.leave(5 * g.limit) // it was only late
			g.enter(g.limit - 1)
			if waiting(g, 1).Load() != 1 {
				t.Error("closed below the limit")
			}
			g.enter(1)
			through = waiting(g, 1)
			if through.Load() != 0 {
				t.Error("what was late counts as room")
			}
			g.leave(1)
			synctest.Wait()
		})
	})
}

func TestIsData(t *testing.T) {
	message := func(kind byte, size int) []byte { m := make([]byte, size); m[0] = kind; return m }
	for _, tt := range []struct {
		name    string
		message []byte
		want    bool
	}{
		{"data", message(4, 48), true},
		{"keepalive", message(4, 32), false},
		{"initiation", message(1, 148), false},
		{"nothing", nil, false},
	} {
		if got := isData(tt.message); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestIndices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndices()
		if x.recent(0, time.Now()) || x.recent(7, time.Now()) {
			t.Error("an index is known before any was issued")
		}
		x.note(7, time.Now())
		if !x.recent(7, time.Now()) || x.recent(8, time.Now()) {
			t.Error("issued 7, and 7 is unknown or 8 known")
		}
		time.Sleep(sessionLife - time.Second)
		if !x.recent(7, time.Now()) {
			t.Error("forgotten while its session may live")
		}
		time.Sleep(2 * time.Second)
		if x.recent(7, time.Now()) {
			t.Error("remembered after its session")
		}
		x.note(7, time.Now())
		if !x.recent(7, time.Now()) {
			t.Error("issued again, and unknown")
		}
	})
}

// A bindScript receives the messages it holds, then none, and keeps what is sent.
type bindScript struct {
	conn.Bind
	arrive [][]byte
}

func (b *bindScript) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, _ []conn.Endpoint) (int, error) {
		for i, m := range b.arrive {
			sizes[i] = copy(packets[i], m)
		}
		return len(b.arrive), nil
	}}, 0, nil
}

func (b *bindScript) Send([][]byte, conn.Endpoint) error { return nil }

func TestForgeriesDoNotCountAtTheGate(t *testing.T) {
	message := func(kind byte, index uint32, size int) []byte {
		m := make([]byte, size)
		m[0] = kind
		binary.LittleEndian.PutUint32(m[4:], index)
		return m
	}
	for _, handshake := range [][]byte{message(1, 0xfeed0007, 148), message(2, 0xfeed0007, 92)} {
		in := newGate()
		b := &gatedBind{&bindScript{arrive: [][]byte{message(4, 0xfeed0007, 100), message(4, 0xbad0008, 100), message(4, 0xfeed0007, 32)}}, in, newGate(), newIndices()}
		if err := b.Send([][]byte{handshake}, nil); err != nil {
			t.Fatal(err)
		}
		receivers, _, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		packets := [][]byte{make([]byte, 200), make([]byte, 200), make([]byte, 200)}
		if _, err := receivers[0](packets, make([]int, 3), make([]conn.Endpoint, 3)); err != nil {
			t.Fatal(err)
		}
		if in.n != 1 {
			t.Errorf("after handshake message %d, one packet of its session, one forgery and a keepalive, %d are counted, want 1", handshake[0], in.n)
		}
	}
}
