package corrotest

import (
	"context"
	"net"
	"sync"
	"syscall"
)

// A memory is a listener without a network: it is dialled by the agent's Dial
// alone, so that agent and client may live in virtual time (testing/synctest).
type memory struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func newMemory() *memory {
	return &memory{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.close.Do(func() { close(m.closed) })
	return nil
}

func (m *memory) Addr() net.Addr { return memoryAddr{} }

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }

// Dial connects to an agent that has no network, as net.Dialer.DialContext does to
// others: one that is stopped refuses.
func (a *Agent) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	a.mu.Lock()
	m := a.memory
	a.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: network, Addr: memoryAddr{}, Err: syscall.ECONNREFUSED}
	if m == nil {
		return nil, refused
	}
	here, there := net.Pipe()
	select {
	case m.conns <- there:
		return here, nil
	case <-m.closed:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
