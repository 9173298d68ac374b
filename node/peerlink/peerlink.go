// Package peerlink is what nodes say to each other inside the tunnel, on their
// management addresses: "writer X is at version V", so that the others look
// into their registries at once instead of when the next batch comes.
//
// A notice is a datagram of 29 bytes:
//
//	0   4  "jiji"
//	4   1  version of the format: 1
//	5  16  writer: Corrosion's site id, not zero
//	21  8  the writer's db_version, big-endian, 1 to 2^63-1
//
// Datagrams of another version are ignored. Notices may be lost, repeated,
// reordered and forged by any member: what one says is never more than a reason
// to look again. Who wants to know for certain asks over TCP, by HTTP:
//
//	GET /v1/versions
//	{"versions":{"<writer, 32 hexadecimal digits>":<db_version>}}
//
// Two machines with one key write as one to Corrosion, if its database was copied,
// too, and look like one from afar. So each process says who it is, and hears who
// else said so from the same address in the last five minutes:
//
//	GET /v1/boots?boot=<16 hexadecimal digits>
//	{"others":[{"boot":"<16 hexadecimal digits>","ageMs":<since it said so last>}]}
//
// Agents of some versions do not understand each other. So nodes tell which they use:
//
//	GET /v1/agent
//	{"version":"klukai 0.1.4","managed":true}
package peerlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	firstRetry = 100 * time.Millisecond // after sockets failed, doubled each time
	lastRetry  = 10 * time.Second
)

// A Notice says that a writer has reached a version.
type Notice struct {
	Writer  [16]byte // Corrosion's site id; zero is none
	Version int64    // db_version, from 1
}

// A Config says whom a Link serves.
type Config struct {
	Addr     netip.AddrPort                                        // this node's management address and the port of all nodes; required
	Peers    func() []netip.Addr                                   // management addresses of the members: whom to tell, and the only sources believed; required, called from several goroutines
	Heard    func(from netip.Addr, n Notice)                       // called by the reading goroutine, has to return at once; nil: nobody listens
	Versions func(ctx context.Context) (map[[16]byte]int64, error) // the version that this node's registry has, by writer; nil: peers are told that there is none
	Agent    func() Agent                                          // what this node uses now; nil: peers are not told
	Log      *slog.Logger                                          // nil: none
}

// Stats counts since Listen.
type Stats struct {
	Sent       uint64 // datagrams
	Unsent     uint64 // datagrams that the system refused
	Dropped    uint64 // notices not sent, because too many writers were told of at once
	Heard      uint64 // notices handed on
	Malformed  uint64 // datagrams that are no notice
	Unknown    uint64 // datagrams of another version of the format
	Strangers  uint64 // datagrams and connections that no member sent
	Limited    uint64 // datagrams and requests beyond the limits of their rate
	Rejected   uint64 // connections, because there were too many
	Answered   uint64 // requests
	Reopenings uint64 // of sockets that had failed
}

// A Link is this node's end. Close or Run ends it.
type Link struct {
	cfg     Config
	log     *slog.Logger
	opened  sockets // by Listen, for Run
	members *members
	guests  guestbook
	wake    chan struct{} // that outbox has news

	mu     sync.Mutex // guards outbox
	outbox outbox

	stats struct {
		sent, unsent, dropped, heard, malformed, unknown, strangers, limited, rejected, answered, reopenings atomic.Uint64
	}
}

// Listen opens both sockets, or none. An error names address and protocol;
// errors.Is(err, syscall.EADDRINUSE) says that somebody else is there.
func Listen(cfg Config) (*Link, error) {
	if a := cfg.Addr; !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().Is4In6() || a.Port() == 0 {
		return nil, fmt.Errorf("listen for peers on %v: want this node's management address and a port", a)
	}
	if cfg.Peers == nil {
		return nil, errors.New("listen for peers: Peers is required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := open(cfg.Addr)
	if err != nil {
		return nil, err
	}
	return newLink(cfg, s), nil
}

func newLink(cfg Config, s sockets) *Link {
	return &Link{
		cfg: cfg, log: cfg.Log, opened: s, wake: make(chan struct{}, 1),
		members: newMembers(cfg.Peers), outbox: outbox{},
	}
}

// Close closes the sockets of a Link that does not Run. After Run it does nothing.
func (l *Link) Close() error { return l.opened.Close() }

// Run serves until ctx is done, then closes the sockets and returns nil. Sockets
// that fail are opened again, for as long as it takes. It may be called once.
func (l *Link) Run(ctx context.Context) error {
	s, retry := l.opened, firstRetry
	for {
		began := time.Now()
		err := l.serve(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		l.log.Warn("lost the sockets for peers, opening them again", "addr", l.cfg.Addr, "err", err)
		if s, retry, err = l.reopen(ctx, retry); err != nil {
			return nil
		}
		l.stats.reopenings.Add(1)
		l.log.Info("listening for peers again", "addr", l.cfg.Addr)
	}
}

// reopen opens the sockets after retry, and then until it succeeds. It returns
// the time to wait before the next call; an error says that ctx is done.
func (l *Link) reopen(ctx context.Context, retry time.Duration) (sockets, time.Duration, error) {
	for {
		select {
		case <-ctx.Done():
			return sockets{}, 0, ctx.Err()
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
		if s, err := open(l.cfg.Addr); err == nil {
			return s, retry, nil
		}
	}
}

// serve uses s, which it closes, until ctx is done or one of the sockets fails.
func (l *Link) serve(ctx context.Context, s sockets) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.receive(ctx, s.packets) })
	g.Go(func() error { return l.send(ctx, s.packets) })
	g.Go(func() error { return l.answer(ctx, s.streams) })
	g.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
	return g.Wait()
}

// Tell has n sent to all peers, at once or a few milliseconds after the last
// notice of the same writer. It never blocks. Of several versions the newest
// counts.
func (l *Link) Tell(n Notice) {
	l.mu.Lock()
	taken := l.outbox.put(n)
	l.mu.Unlock()
	if !taken {
		l.stats.dropped.Add(1)
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Stats returns the counts so far.
func (l *Link) Stats() Stats {
	return Stats{
		Sent:       l.stats.sent.Load(),
		Unsent:     l.stats.unsent.Load(),
		Dropped:    l.stats.dropped.Load(),
		Heard:      l.stats.heard.Load(),
		Malformed:  l.stats.malformed.Load(),
		Unknown:    l.stats.unknown.Load(),
		Strangers:  l.stats.strangers.Load(),
		Limited:    l.stats.limited.Load(),
		Rejected:   l.stats.rejected.Load(),
		Answered:   l.stats.answered.Load(),
		Reopenings: l.stats.reopenings.Load(),
	}
}

// sockets are the two on one address.
type sockets struct {
	packets packetConn
	streams net.Listener
}

// A packetConn is what a Link needs of a *net.UDPConn.
type packetConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	SetWriteDeadline(t time.Time) error
	Close() error
}

// open opens both sockets on addr alone, which need not be there yet: an
// interface that is made anew takes its addresses away for a while.
func open(addr netip.AddrPort) (sockets, error) {
	family := "6"
	if addr.Addr().Is4() {
		family = "4"
	}
	lc := net.ListenConfig{Control: withoutAddress}
	packets, err := lc.ListenPacket(context.Background(), "udp"+family, addr.String())
	if err != nil {
		return sockets{}, fmt.Errorf("listen for peers: %w", err)
	}
	streams, err := lc.Listen(context.Background(), "tcp"+family, addr.String())
	if err != nil {
		packets.Close()
		return sockets{}, fmt.Errorf("listen for peers: %w", err)
	}
	return sockets{packets.(*net.UDPConn), streams}, nil
}

// Close may be called again.
func (s sockets) Close() error {
	var err error
	for _, c := range []interface{ Close() error }{s.packets, s.streams} {
		if e := c.Close(); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}
