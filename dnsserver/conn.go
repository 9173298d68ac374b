package dnsserver

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/dnsserver/arrival"
)

const (
	writeTimeout = 2 * time.Second // for a client that does not read

	maxConns     = 512 // TCP connections at a time from interfaces that are answered
	maxPerClient = 64  // of these
	maxStrangers = 16  // others: they are told REFUSED, and must not take the places of those
)

// An origin is where a query came from. To the library it is the address of
// the client, so that each query comes with it.
type origin struct {
	client  netip.AddrPort
	local   netip.Addr // that was asked; zero if not known
	ifindex int        // on which it arrived
	known   bool       // whether ifindex is; it always is 0 where the system does not tell
	tcp     *tcpConn   // nil: UDP
	udp     *packetConn
	pending *sync.WaitGroup // of the queries that are being forwarded
	at      time.Time       // when the query was read
}

func (o *origin) Network() string {
	if o.tcp != nil {
		return "tcp"
	}
	return "udp"
}

func (o *origin) String() string { return o.client.String() }

// send sends a reply. That the client is gone is no error of ours.
func (o *origin) send(b []byte) {
	if o.tcp != nil {
		o.tcp.send(b)
		return
	}
	o.udp.WriteMsgUDPAddrPort(b, arrival.From(o.local, o.ifindex), o.client)
}

// A listener accepts TCP connections within limits.
type listener struct {
	*net.TCPListener
	answered func(*origin) bool
	rejected *atomic.Uint64

	mu        sync.Mutex // guards what follows
	conns     int
	strangers int
	clients   map[netip.Addr]int
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				time.Sleep(50 * time.Millisecond) // no descriptors left: the library tries again at once
			}
			return nil, err
		}
		o := &origin{client: c.RemoteAddr().(*net.TCPAddr).AddrPort()}
		o.ifindex, o.known = arrival.Of(c, o.client.Addr().Is6())
		stranger := !l.answered(o)
		if !l.enter(o.client.Addr(), stranger) {
			l.rejected.Add(1)
			c.Close()
			continue
		}
		o.tcp = &tcpConn{TCPConn: c, origin: o, leave: sync.OnceFunc(func() { l.leave(o.client.Addr(), stranger) })}
		o.pending = &o.tcp.pending
		return o.tcp, nil
	}
}

// enter reports whether there is a place for one more connection.
func (l *listener) enter(client netip.Addr, stranger bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case stranger && l.strangers < maxStrangers:
		l.strangers++
	case !stranger && l.conns < maxConns && l.clients[client] < maxPerClient:
		l.conns++
		l.clients[client]++
	default:
		return false
	}
	return true
}

func (l *listener) leave(client netip.Addr, stranger bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stranger {
		l.strangers--
		return
	}
	l.conns--
	l.clients[client]--
	if l.clients[client] == 0 {
		delete(l.clients, client)
	}
}

// A tcpConn is a client's connection. Forwarded queries are answered out of
// order (RFC 7766, section 6.2.1.1), while the library reads on.
type tcpConn struct {
	*net.TCPConn
	origin  *origin
	leave   func()
	pending sync.WaitGroup // queries being forwarded; added to by the reader alone
}

func (c *tcpConn) RemoteAddr() net.Addr { return c.origin }

// Write writes whole messages. After one that was cut short the client could
// not find the next, so there is none.
func (c *tcpConn) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := c.TCPConn.Write(b)
	if err != nil {
		c.TCPConn.Close()
	}
	return n, err
}

// send writes one message. Unlike the library's own it may be called while
// the reader goes on.
func (c *tcpConn) send(m []byte) error {
	b := make([]byte, 2, 2+len(m))
	binary.BigEndian.PutUint16(b, uint16(len(m)))
	_, err := c.Write(append(b, m...))
	return err
}

// Close is called by the reader at its end, which may be that the client has
// sent its last query and still waits for the answers.
func (c *tcpConn) Close() error {
	c.pending.Wait()
	c.leave()
	return c.TCPConn.Close()
}
