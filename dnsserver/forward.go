package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	forwardTimeout = 2 * time.Second        // for one question in all; then it is SERVFAIL
	hedgeAfter     = 250 * time.Millisecond // an upstream is silent: ask the next one too
	againAfter     = 750 * time.Millisecond // all were asked: begin a second round, for lost packets
	maxUpstreams   = 3                      // that are asked, as glibc does (resolv.conf(5), MAXNS)
	maxForwarded   = 256                    // questions at a time; each may hold several sockets
	maxStray       = 32                     // packets that are not the answer, before an upstream is given up
)

var (
	errNoUpstream = errors.New("no upstream")
	errStray      = errors.New("too many packets that answer something else")
)

// A forwarder asks upstreams. A cache will stand in front of forward.
type forwarder struct {
	upstreams func() []netip.AddrPort
	own       func(netip.AddrPort) bool // never asked: the question would come back
	ask       func(context.Context, netip.AddrPort, *dns.Msg) (*dns.Msg, error)
	slots     chan struct{} // one for each question being forwarded
}

// enter reports whether there is room for one more question; leave follows.
func (f *forwarder) enter() bool {
	select {
	case f.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (f *forwarder) leave() { <-f.slots }

// forward returns the upstream's answer to r, not yet made to fit, and who gave it.
func (f *forwarder) forward(ctx context.Context, r *dns.Msg) (*dns.Msg, netip.AddrPort, error) {
	var ups []netip.AddrPort
	for _, up := range f.upstreams() {
		if len(ups) < maxUpstreams && !f.own(up) {
			ups = append(ups, up)
		}
	}
	if len(ups) == 0 {
		return nil, netip.AddrPort{}, errNoUpstream
	}
	q := &dns.Msg{Question: r.Question}
	q.RecursionDesired = r.RecursionDesired
	q.CheckingDisabled = r.CheckingDisabled
	q.AuthenticatedData = r.AuthenticatedData
	if opt := r.IsEdns0(); opt != nil {
		q.SetEdns0(ednsSize, opt.Do()) // options are from hop to hop (RFC 6891, section 6.1.1)
	}
	reply, up, err := f.race(ctx, q, ups)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	return relay(r, reply), up, nil
}

// race asks ups in order of preference, the next one when those before it
// failed or were silent for a while, and returns the first good answer; if
// there is none, the last bad one.
func (f *forwarder) race(ctx context.Context, q *dns.Msg, ups []netip.AddrPort) (*dns.Msg, netip.AddrPort, error) {
	var wg sync.WaitGroup
	defer wg.Wait() // those that lost end at once, being canceled
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	type result struct {
		up    netip.AddrPort
		reply *dns.Msg
		err   error
	}
	results := make(chan result, 2*len(ups))
	asked, waiting := 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	last := result{err: errNoUpstream}
	for {
		select {
		case <-next.C:
			up := ups[asked%len(ups)]
			asked, waiting = asked+1, waiting+1
			wg.Go(func() {
				reply, err := f.ask(ctx, up, q)
				results <- result{up, reply, err}
			})
			switch {
			case asked == len(ups):
				next.Reset(againAfter)
			case asked < 2*len(ups):
				next.Reset(hedgeAfter)
			}
		case r := <-results:
			waiting--
			if r.err == nil && (r.reply.Rcode == dns.RcodeSuccess || r.reply.Rcode == dns.RcodeNameError) {
				return r.reply, r.up, nil
			}
			if r.err == nil || last.reply == nil {
				last = r
			}
			if asked < len(ups) {
				next.Reset(0)
			} else if waiting == 0 {
				return last.reply, last.up, last.err
			}
		case <-ctx.Done():
			if last.reply == nil {
				last.err = fmt.Errorf("no answer from %v: %w", ups, ctx.Err())
			}
			return last.reply, last.up, last.err
		}
	}
}

// ask sends q to one upstream, from a port and with an ID that nobody can
// guess, and again by TCP if the answer does not fit.
func ask(ctx context.Context, up netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	q = &dns.Msg{MsgHdr: q.MsgHdr, Question: q.Question, Extra: q.Extra}
	q.Id = dns.Id()
	reply, err := exchange(ctx, "udp", up, q)
	if err == nil && reply.Truncated {
		reply, err = exchange(ctx, "tcp", up, q)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %v: %w", up, err)
	}
	return reply, nil
}

// exchange returns the first answer to q. By UDP one that is Truncated may be
// without its records.
func exchange(ctx context.Context, network string, up netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, up.String()) // connected: the kernel takes packets of up alone
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: nc, UDPSize: dns.DefaultMsgSize}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	for range maxStray {
		m, err := conn.ReadMsg()
		switch {
		case m == nil && errors.Is(err, dns.ErrShortRead) && network == "udp":
			continue
		case m == nil:
			return nil, err
		case !answers(m, q):
			if network == "tcp" {
				return nil, errStray
			}
			continue
		case err != nil && !m.Truncated: // some cut their answers anywhere
			return nil, err
		}
		return m, nil
	}
	return nil, errStray
}

// answers reports whether m is an answer to q (RFC 5452, section 9.1).
func answers(m, q *dns.Msg) bool {
	if m.Id != q.Id || !m.Response || m.Opcode != q.Opcode {
		return false
	}
	if len(m.Question) == 0 { // with these some leave it out
		return m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented
	}
	mq, qq := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && mq.Qtype == qq.Qtype && mq.Qclass == qq.Qclass && strings.EqualFold(mq.Name, qq.Name)
}
