// Package rtt measures the round-trip times to peers inside the tunnel: each is
// sent an ICMP echo about every 20 s, all of them from one socket.
//
// What counts is the least of the latest five, not a smoothed mean (RFC 6298): a
// busy processor, a queue or a handshake on the way only make a sample longer, and
// what is asked for is how far away a peer is, not when to give up on it. It
// follows a path that became shorter at once, and one that became longer when all
// five say so.
//
// An echo mostly takes the place of a persistent keepalive, which WireGuard sends
// after 25 s without another packet. A peer that filters ICMP answers it none the
// less, with a keepalive within 10 s, so that no other evidence of life suffers.
package rtt

import (
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

const (
	turn    = time.Second            // between two looks at who is due: waking up costs more than an echo
	most    = 64                     // echoes in a turn; more wait for the next one
	every   = 20 * time.Second       // between two echoes of a peer, a quarter more or less
	brief   = time.Second            // between its first ones, and after a lost one; up to twice as long
	first   = 3                      // echoes that follow one another briefly on a new path
	timeout = 2 * time.Second        // an answer that takes longer is none
	kept    = 5                      // samples of a peer
	retry   = 100 * time.Millisecond // after the socket could not be read
)

// A Target is a peer to be measured.
type Target struct {
	Addr netip.Addr     // IPv4, in the mesh
	Path netip.AddrPort // the endpoint that leads to it: what was measured on another is replaced
}

// Config is what a Prober needs; all of it is required.
type Config struct {
	// Targets are the peers that answer. One that is missing is forgotten. It is
	// called once a second from Run's goroutine.
	Targets func() []Target
	// Report is called from there when Times returns something new, at most once a
	// second. It must not block.
	Report func()
	Log    *slog.Logger
}

// A Conn carries ICMP messages without their IP headers: an *icmp.PacketConn.
// Close ends its other methods.
type Conn interface {
	ReadFrom([]byte) (int, net.Addr, error)
	WriteTo([]byte, net.Addr) (int, error)
	Close() error
}

// Listen opens the socket of a Prober on an address of this machine, which needs
// CAP_NET_RAW.
func Listen(addr netip.Addr) (Conn, error) {
	c, err := icmp.ListenPacket("ip4:icmp", addr.String())
	if err != nil {
		return nil, err
	}
	// Spares reading what parse refuses; only Linux can.
	var filter ipv4.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv4.ICMPTypeEchoReply)
	_ = c.IPv4PacketConn().SetICMPFilter(&filter)
	return c, nil
}

// A Prober measures.
type Prober struct {
	cfg   Config
	conn  Conn
	id    uint16 // of its echoes
	times atomic.Pointer[map[netip.Addr]time.Duration]

	// The rest belongs to Run.
	peers map[netip.Addr]*peer
	turns uint64
	seq   uint16  // of the latest echo
	due   []*peer // of this turn
}

// A peer is a target and its samples.
type peer struct {
	addr    netip.Addr
	path    netip.AddrPort
	turn    uint64    // when it was a target last
	due     time.Time // of the next echo, or the end of waiting for the answer to one
	waiting bool
	echo    echo                // the latest
	sent    time.Time           // of it
	samples [kept]time.Duration // latest first; 0: not answered
	count   int                 // of samples on this path
	moved   bool                // the samples are of another path
}

// An echo is what an answer has to repeat.
type echo struct {
	id, seq uint16
	nonce   [16]byte
}

// An arrival is an answer as it was read.
type arrival struct {
	from netip.Addr
	at   time.Time
	echo echo
}

// New returns a Prober that has measured nothing. Its Run closes conn.
func New(conn Conn, cfg Config) *Prober {
	return &Prober{cfg: cfg, conn: conn, id: uint16(rand.Uint32()), peers: map[netip.Addr]*peer{}}
}

// Times returns the round-trip times of the targets that have one. It is read-only,
// and may be called from any goroutine.
func (p *Prober) Times() map[netip.Addr]time.Duration {
	if m := p.times.Load(); m != nil {
		return *m
	}
	return nil
}

// Run measures until ctx is done, and returns nil then.
func (p *Prober) Run(ctx context.Context) error {
	context.AfterFunc(ctx, func() { p.conn.Close() })
	arrivals := make(chan arrival)
	var reader sync.WaitGroup
	reader.Go(func() { p.read(ctx, arrivals) })
	defer reader.Wait()
	tick := time.NewTicker(turn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-arrivals:
			p.take(a)
		case <-tick.C:
			p.follow(time.Now())
			p.tell()
			p.send()
		}
	}
}

// read sends what arrives to arrivals until the socket is closed.
func (p *Prober) read(ctx context.Context, arrivals chan<- arrival) {
	var b [512]byte // an answer of ours is much smaller
	failure := ""
	for {
		n, from, err := p.conn.ReadFrom(b[:])
		at := time.Now()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			if failure != err.Error() {
				failure = err.Error()
				p.cfg.Log.Warn("cannot read answers to echoes", "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			continue
		}
		failure = ""
		ip, ok := from.(*net.IPAddr)
		if !ok {
			continue
		}
		addr, _ := netip.AddrFromSlice(ip.IP)
		if e, ok := parse(b[:n]); ok && e.id == p.id {
			select {
			case arrivals <- arrival{addr.Unmap(), at, e}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// message is e as an ICMP message.
func (e echo) message() ([]byte, error) {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.id), Seq: int(e.seq), Data: e.nonce[:]}}
	return m.Marshal(nil)
}

// parse returns the echo that b answers.
func parse(b []byte) (e echo, ok bool) {
	m, err := icmp.ParseMessage(ipv4.ICMPTypeEchoReply.Protocol(), b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply || m.Code != 0 {
		return e, false
	}
	body, ok := m.Body.(*icmp.Echo)
	if !ok || len(body.Data) != len(e.nonce) {
		return e, false
	}
	return echo{uint16(body.ID), uint16(body.Seq), [16]byte(body.Data)}, true
}

// follow takes the targets as they are now, ends the waits that took too long, and
// notes who is due.
func (p *Prober) follow(now time.Time) {
	p.turns++
	for _, t := range p.cfg.Targets() {
		k := p.peers[t.Addr]
		switch {
		case k == nil:
			k = &peer{addr: t.Addr, path: t.Path, due: now}
			p.peers[t.Addr] = k
		case k.path != t.Path:
			k.path, k.moved, k.count = t.Path, true, 0
			k.waiting, k.due = false, now
		}
		k.turn = p.turns
	}
	p.due = p.due[:0]
	for addr, k := range p.peers {
		switch {
		case k.turn != p.turns:
			delete(p.peers, addr)
		case now.Before(k.due):
		case k.waiting:
			k.settle(now, 0)
		default:
			p.due = append(p.due, k)
		}
	}
}

// tell publishes what has changed.
func (p *Prober) tell() {
	times := make(map[netip.Addr]time.Duration, len(p.peers))
	for addr, k := range p.peers {
		if d := k.least(); d > 0 {
			times[addr] = d
		}
	}
	if maps.Equal(times, p.Times()) {
		return
	}
	p.times.Store(&times)
	p.cfg.Report()
}

// send sends an echo to each that is due, longest first. One that cannot be sent is
// one that is not answered.
func (p *Prober) send() {
	slices.SortFunc(p.due, func(a, b *peer) int { return a.due.Compare(b.due) })
	for _, k := range p.due[:min(len(p.due), most)] {
		p.seq++
		k.echo = echo{id: p.id, seq: p.seq}
		crand.Read(k.echo.nonce[:]) // never fails
		b, err := k.echo.message()
		k.sent = time.Now()
		k.waiting, k.due = true, k.sent.Add(timeout)
		if err == nil {
			_, err = p.conn.WriteTo(b, &net.IPAddr{IP: k.addr.AsSlice()})
		}
		if err != nil {
			p.cfg.Log.Debug("echo not sent", "to", k.addr, "err", err)
		}
	}
}

// take takes an answer, if it is the one that its sender owes.
func (p *Prober) take(a arrival) {
	k := p.peers[a.from]
	if k == nil || !k.waiting || a.echo != k.echo {
		return
	}
	if d := a.at.Sub(k.sent); d < timeout {
		k.settle(a.at, max(d, 1))
	}
}

// settle takes a sample, 0 for an echo that was not answered.
func (k *peer) settle(now time.Time, d time.Duration) {
	if k.moved && d > 0 {
		k.moved, k.samples = false, [kept]time.Duration{}
	}
	copy(k.samples[1:], k.samples[:])
	k.samples[0] = d
	k.count++
	k.waiting, k.due = false, now.Add(k.pause())
}

// pause returns how long after a sample the next echo is sent. After the first one
// that was lost that is not long: if the next is answered, nobody has to ask whether
// the peer still is there.
func (k *peer) pause() time.Duration {
	if k.count < first || k.samples[0] == 0 && k.samples[1] > 0 {
		return brief + rand.N(brief)
	}
	return every - every/4 + rand.N(every/2)
}

// least returns the least sample, 0 if there is none.
func (k *peer) least() (d time.Duration) {
	for _, s := range k.samples {
		if s > 0 && (d == 0 || s < d) {
			d = s
		}
	}
	return d
}
