package peerlink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one member may send, and all together. A member that writes without a
// pause sends 100 notices a second.
const (
	noticeRate, noticeBurst   = 200, 400 // datagrams a second
	noticesRate, noticesBurst = 4000, 8000

	requestRate, requestBurst = 5, 10 // connections a second, with one request each
	maxConns, maxPerPeer      = 256, 4

	membersAge = 500 * time.Millisecond // how old the list of members may be
)

// receive hands on what members say, until ctx is done or conn fails.
func (l *Link) receive(ctx context.Context, conn packetConn) error {
	all := rate.NewLimiter(noticesRate, noticesBurst)
	b := make([]byte, 2048)
	for {
		size, source, err := conn.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive notices: %w", err)
		}
		from := source.Addr().Unmap()
		m := l.members.find(from)
		if m == nil {
			l.stats.strangers.Add(1)
			continue
		}
		if !m.notices.Allow() || !all.Allow() {
			l.stats.limited.Add(1)
			continue
		}
		n, err := parseNotice(b[:size])
		switch {
		case errors.Is(err, errVersion):
			l.stats.unknown.Add(1)
		case err != nil:
			l.stats.malformed.Add(1)
		default:
			l.stats.heard.Add(1)
			if l.cfg.Heard != nil {
				l.cfg.Heard(from, n)
			}
		}
	}
}

// members knows who may talk to this node, and how much.
type members struct {
	list func() []netip.Addr

	mu     sync.Mutex // guards what follows
	read   time.Time  // list, last
	byAddr map[netip.Addr]*member
	conns  int // of all
}

// A member is one of them.
type member struct {
	notices, requests *rate.Limiter
	conns             int // guarded by members.mu
}

func newMembers(list func() []netip.Addr) *members { return &members{list: list} }

// find returns the member with this address, nil if there is none.
func (ms *members) find(addr netip.Addr) *member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.at(addr)
}

// at is find; ms.mu is held.
func (ms *members) at(addr netip.Addr) *member {
	if now := time.Now(); ms.byAddr == nil || now.Sub(ms.read) >= membersAge {
		known := ms.byAddr
		ms.read, ms.byAddr = now, map[netip.Addr]*member{}
		for _, a := range ms.list() {
			m := known[a]
			if m == nil {
				m = &member{notices: rate.NewLimiter(noticeRate, noticeBurst), requests: rate.NewLimiter(requestRate, requestBurst)}
			}
			ms.byAddr[a] = m
		}
	}
	return ms.byAddr[addr]
}

// A refusal says why a connection is closed.
type refusal uint8

const (
	admitted  refusal = iota
	stranger          // not from a member
	tooOften          // for the rate of its requests
	tooManyAt         // a time
)

// enter admits a connection from addr. leave has to be called once when it ends.
func (ms *members) enter(addr netip.Addr) (why refusal, leave func()) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.at(addr)
	switch {
	case m == nil:
		return stranger, nil
	case ms.conns == maxConns || m.conns == maxPerPeer:
		return tooManyAt, nil
	case !m.requests.Allow():
		return tooOften, nil
	}
	ms.conns++
	m.conns++
	return admitted, func() {
		ms.mu.Lock()
		defer ms.mu.Unlock()
		ms.conns--
		m.conns--
	}
}
