package peerlink

import (
	"context"
	"net/netip"
	"time"
)

const (
	spacing    = 10 * time.Millisecond  // between two notices of one writer
	again      = 100 * time.Millisecond // after the last of them, once more: datagrams get lost
	patience   = 100 * time.Millisecond // with a system that takes no datagrams, per round
	maxTelling = 1024                   // writers that are told of at a time; a node is one
)

// An outbox holds what has to be sent, by writer.
type outbox map[[16]byte]*telling

// A telling is where one writer's notices stand.
type telling struct {
	version int64     // the newest
	sent    int64     // the newest that was sent; 0: none
	last    time.Time // when; zero: never
	repeat  time.Time // when to send it once more; zero: done
}

// put adds n, and reports whether it could.
func (o outbox) put(n Notice) bool {
	t := o[n.Writer]
	if t == nil {
		if len(o) == maxTelling || n.Writer == [16]byte{} || n.Version < 1 {
			return false
		}
		t = &telling{}
		o[n.Writer] = t
	}
	t.version = max(t.version, n.Version)
	return true
}

// take returns what has to be sent at now, and when to ask again unless
// something is put; zero if not at all.
func (o outbox) take(now time.Time) (due []Notice, next time.Time) {
	wait := func(at time.Time) (over bool) {
		if !at.After(now) {
			return true
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
		return false
	}
	for writer, t := range o {
		switch isNew := t.version > t.sent; {
		case isNew && wait(t.last.Add(spacing)):
			due = append(due, Notice{writer, t.version})
			t.sent, t.last, t.repeat = t.version, now, now.Add(again)
			wait(t.repeat)
		case isNew:
		case !t.repeat.IsZero():
			if wait(t.repeat) {
				due = append(due, Notice{writer, t.sent})
				t.last, t.repeat = now, time.Time{}
				wait(now.Add(spacing))
			}
		case wait(t.last.Add(spacing)):
			delete(o, writer)
		}
	}
	return due, next
}

// send sends what the outbox has to all peers, until ctx is done.
func (l *Link) send(ctx context.Context, conn packetConn) error {
	timer := time.NewTimer(0) // there may be something from before the sockets failed
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-timer.C:
		}
		l.mu.Lock()
		due, next := l.outbox.take(time.Now())
		l.mu.Unlock()
		if len(due) > 0 {
			l.tellPeers(conn, due)
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// tellPeers sends each notice to each peer. Failures are counted only: the
// address and the routes come and go with the tunnel.
func (l *Link) tellPeers(conn packetConn, notices []Notice) {
	_ = conn.SetWriteDeadline(time.Now().Add(patience)) // fails on closed sockets, as the writes do
	peers := l.cfg.Peers()
	for _, n := range notices {
		datagram := n.append(nil)
		for _, p := range peers {
			if p == l.cfg.Addr.Addr() {
				continue
			}
			if _, err := conn.WriteToUDPAddrPort(datagram, netip.AddrPortFrom(p, l.cfg.Addr.Port())); err != nil {
				l.stats.unsent.Add(1)
				continue
			}
			l.stats.sent.Add(1)
		}
	}
}
