package fullmesh

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// slowFor is how long a slow reader does not read.
const slowFor = 8 * time.Second

// A Tap is a proxy in front of an agent. It can make the first reader of containers
// a slow one.
type Tap struct {
	last  atomic.Int64 // when the last byte of a subscription came, in Unix nanoseconds
	bytes atomic.Int64 // of answers
	slow  atomic.Bool  // the next subscription to containers is read after a while
	close func()
}

// NewTap serves on l, which it closes, what dial reaches.
func NewTap(l net.Listener, dial func() (net.Conn, error)) *Tap {
	t := &Tap{}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { t.serve(ctx, c, dial) })
		}
	})
	t.close = func() {
		cancel()
		l.Close()
		serving.Wait()
	}
	return t
}

// Close ends it, and all connections through it.
func (t *Tap) Close() { t.close() }

// Last is when the last byte of a subscription came.
func (t *Tap) Last() time.Time { return time.Unix(0, t.last.Load()) }

// TakeBytes returns how many bytes of answers came since it was called last.
func (t *Tap) TakeBytes() int64 { return t.bytes.Swap(0) }

// Slow makes who subscribes to containers next read after 8 s: what an agent has no
// room for then is lost.
func (t *Tap) Slow() { t.slow.Store(true) }

func (t *Tap) serve(ctx context.Context, c net.Conn, dial func() (net.Conn, error)) {
	up, err := dial()
	if err != nil {
		c.Close()
		return
	}
	if tcp, ok := up.(*net.TCPConn); ok {
		tcp.SetReadBuffer(32 << 10)
	}
	stop := context.AfterFunc(ctx, func() { c.Close(); up.Close() })
	defer stop()
	var slow, subscription atomic.Bool
	var sending sync.WaitGroup
	sending.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if n > 0 {
				subscribes := bytes.Contains(b[:n], []byte(" /v1/subscriptions"))
				subscription.Store(subscribes)
				if subscribes && bytes.Contains(b[:n], []byte("FROM containers")) {
					slow.Store(t.slow.Swap(false))
				}
			}
			if _, werr := up.Write(b[:n]); err != nil || werr != nil {
				if half, ok := up.(interface{ CloseWrite() error }); ok {
					half.CloseWrite()
				}
				return
			}
		}
	})
	b := make([]byte, 256<<10)
	for {
		if slow.Swap(false) {
			select {
			case <-ctx.Done():
			case <-time.After(slowFor): // not to wait for something: this is the fault
			}
		}
		n, err := up.Read(b)
		if n > 0 {
			if subscription.Load() {
				t.last.Store(time.Now().UnixNano())
			}
			t.bytes.Add(int64(n))
		}
		if _, werr := c.Write(b[:n]); err != nil || werr != nil {
			break
		}
	}
	c.Close()
	up.Close()
	sending.Wait()
}
