package tunnel

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
			time.Sleep(1)
			synctest.Wait()
			if through.Load() != 2 {
				t.Error("closed for ever")
			}
			g.enter(9 * g.limit)
			if waiting(g, 1).Load() != 1 {
				t.Error("closed again at once: what is dropped keeps the rest waiting")
			}
			time.Sleep(aside)
			g.leave(9 * g.limit) // it was only late
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
