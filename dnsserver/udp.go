package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/dnsserver/arrival"
	"github.com/acidtib/jiji-node/dnsserver/forward"
)

const (
	batch      = 32               // datagrams that are read, and answered, with one system call
	maxQuery   = forward.EDNSSize // bytes of a query; what is cut is malformed
	readPause  = 10 * time.Millisecond
	deadlineAt = 1 // a time that is past
)

// A packetConn is a UDP socket.
type packetConn struct {
	*net.UDPConn
	pending sync.WaitGroup // queries that are being forwarded
}

// servePackets runs c in g until ctx is done: the zone's answers are given by
// the goroutine that reads, the others by ones of their own.
func (s *Server) servePackets(ctx context.Context, g *errgroup.Group, c *packetConn) {
	g.Go(func() error {
		stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(deadlineAt, 0)) })
		defer stop()
		defer c.Close()
		defer c.pending.Wait()
		if err := s.readPackets(ctx, c); err != nil {
			return fmt.Errorf("serve dns: %w", err)
		}
		return nil
	})
}

func (s *Server) readPackets(ctx context.Context, c *packetConn) error {
	p, err := newPacketBatch(c.UDPConn)
	if err != nil {
		return err
	}
	replies, kinds := make([][]byte, batch), make([]kind, batch)
	origins := make([]origin, batch)
	for i := range replies {
		replies[i] = make([]byte, 0, forward.EDNSSize)
	}
	var source sender
	for {
		n, err := p.receive()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // no memory
			select {
			case <-ctx.Done():
			case <-time.After(readPause):
			}
			continue
		}
		read := time.Now()
		count := 0
		for i := range n {
			q, client, oob := p.query(i)
			o := &origins[count]
			*o = origin{client: client, udp: c, pending: &c.pending, at: read}
			o.ifindex, o.local, o.known = arrival.Parse(oob)
			b, k := s.packet(ctx, o, q, replies[count][:0])
			if b == nil {
				continue
			}
			replies[count], kinds[count] = b, k
			p.reply(i, b, source.control(o))
			count++
		}
		if unsent := p.flush(); unsent > 0 {
			s.unsent.Add(uint64(unsent))
		}
		took := time.Since(read)
		for i, b := range replies[:count] {
			s.tally.at(kinds[i].source, kinds[i].qtype, codeOf(b)).add(took)
			s.tell(&origins[i], kinds[i].source, b, codeOf(b), took, nil)
		}
	}
}

// A kind is what a query is counted as, beside its reply's code.
type kind struct {
	source Source
	qtype  uint16
}

// packet answers a datagram: it returns the reply, appended to b, if the zone
// has it or it is refused, and nil if it is answered later, or not at all.
func (s *Server) packet(ctx context.Context, o *origin, p, b []byte) ([]byte, kind) {
	var room [maxName]byte
	if q, ok := parseQuery(p, &room); ok {
		if !s.answered(o) {
			return s.zone.Load().appendReply(b, &q, &answer{rcode: dns.RcodeRefused}, 0), kind{Refused, q.qtype}
		}
		if b := s.zone.Load().reply(b, &q, o.client.Addr().Unmap(), rand.Uint32()); b != nil {
			return b, kind{Mesh, q.qtype}
		}
	}
	later := *o
	s.unusual(ctx, &later, p)
	return nil, kind{}
}

// unusual has the library read what is not a plain query for the zone.
func (s *Server) unusual(ctx context.Context, o *origin, p []byte) {
	r := new(dns.Msg)
	err := r.Unpack(p)
	switch {
	case len(p) < headerSize || p[2]&0x80 != 0: // nothing to answer, or an answer
		s.malformed.Add(1)
	case err != nil || len(p) > maxQuery:
		s.malformed.Add(1)
		if !s.answered(o) {
			return
		}
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: r.Id, Response: true, Opcode: int(p[2]>>3) & 15, RecursionDesired: p[2]&1 != 0, Rcode: dns.RcodeFormatError}}
		b, err := m.Pack()
		if err == nil {
			o.send(b)
		}
	default:
		s.handle(ctx, o, r)
	}
}

// A sender makes the control messages of replies, which mostly leave from the
// same address.
type sender struct {
	local   netip.Addr
	ifindex int
	oob     []byte
}

func (s *sender) control(o *origin) []byte {
	if o.local != s.local || o.ifindex != s.ifindex {
		s.local, s.ifindex, s.oob = o.local, o.ifindex, arrival.From(o.local, o.ifindex)
	}
	return s.oob
}
