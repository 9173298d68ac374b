// Package dnsserver answers the names of the mesh from an immutable Zone and
// forwards the others. It answers nobody who asks from outside.
package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/acidtib/jiji-node/dnsserver/arrival"
	"github.com/acidtib/jiji-node/dnsserver/forward"
)

const (
	readTimeout = 2 * time.Second // for the first query of a TCP connection, to its last byte
	idleTimeout = 8 * time.Second // for each one after it (RFC 7766, section 6.2.3: a few seconds)
	readBuffer  = 1 << 20         // bytes asked of the kernel for each UDP socket, for bursts
)

// A Config says where to listen, whom to answer and whom to ask.
type Config struct {
	Listen []netip.AddrPort // required; each by UDP and TCP. Port 0: one that is free, see Addrs

	// Apex and Reverse are as in ZoneConfig. They say which names are SERVFAIL,
	// and never forwarded, before the first SetZone.
	Apex    string // required
	Reverse []netip.Prefix

	// Answer says whether to answer what arrives on an interface; nil: always.
	// It is called for every query, by many goroutines, and has to be fast. On
	// Linux a query whose interface is not known is refused; elsewhere ifindex
	// always is 0. A query of this host itself arrives on the interface that has
	// the address it asks, as Linux sees it, and not on loopback.
	Answer func(ifindex int) bool

	// Upstreams returns whom to ask for names that are not ours, in order of
	// preference. Our own addresses among them are left out. nil or empty: SERVFAIL.
	Upstreams func() []netip.AddrPort

	Log *slog.Logger // nil: none
}

// Stats counts what a Server did since Listen.
type Stats struct {
	Queries   uint64        // that were answered, of whatever Source
	Zone      uint64        // of these: from the zone, in whatever way
	Refused   uint64        // of these: arrived on an interface that is not answered
	Malformed uint64        // messages that could not be parsed
	Rejected  uint64        // TCP connections, because there were too many
	Unsent    uint64        // replies by UDP that the kernel did not take
	Forward   forward.Stats // of all other queries
}

// A Server is a DNS server on sockets that are open. Close or Run ends it.
type Server struct {
	answer  func(ifindex int) bool
	log     *slog.Logger
	zone    atomic.Pointer[Zone]
	forward *forward.Forwarder
	addrs   []netip.AddrPort
	packets []*packetConn
	streams []*listener
	tally   tally
	watches atomic.Pointer[[]*Watch] // nil: nobody

	malformed, rejected, unsent atomic.Uint64 // see Stats
}

// Listen opens the sockets, or none. An error names the address and the
// protocol; errors.Is(err, syscall.EADDRINUSE) says that somebody else is there.
func Listen(c Config) (*Server, error) {
	z, err := emptyZone(c.Apex, c.Reverse)
	if err != nil {
		return nil, err
	}
	z.unknown = true
	if len(c.Listen) == 0 {
		return nil, errors.New("no address to listen on")
	}
	s := &Server{answer: c.Answer, log: c.Log}
	s.zone.Store(z)
	if s.answer == nil {
		s.answer = func(int) bool { return true }
	}
	if c.Upstreams == nil {
		c.Upstreams = func() []netip.AddrPort { return nil }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.forward = forward.New(forward.Config{Upstreams: c.Upstreams, Own: s.own, Mesh: c.Reverse, Log: s.log})
	for _, addr := range c.Listen {
		if err := s.listen(addr); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// listen opens both sockets of one address.
func (s *Server) listen(addr netip.AddrPort) error {
	ip := addr.Addr().Unmap()
	if !ip.IsValid() {
		return fmt.Errorf("listen on %v: want an IP address and a port", addr)
	}
	family := "4"
	if ip.Is6() {
		family = "6"
	}
	lc := net.ListenConfig{Control: arrival.Want}
	for tries := 10; ; tries-- {
		pc, err := lc.ListenPacket(context.Background(), "udp"+family, netip.AddrPortFrom(ip, addr.Port()).String())
		if err != nil {
			return err
		}
		udp := pc.(*net.UDPConn)
		udp.SetReadBuffer(readBuffer) // as much of it as the kernel allows
		widen(udp)
		bound := netip.AddrPortFrom(ip, udp.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		l, err := lc.Listen(context.Background(), "tcp"+family, bound.String())
		if err != nil {
			udp.Close()
			if addr.Port() == 0 && tries > 0 {
				continue // the free port is taken for TCP
			}
			return err
		}
		s.addrs = append(s.addrs, bound)
		s.packets = append(s.packets, &packetConn{UDPConn: udp})
		s.streams = append(s.streams, &listener{
			TCPListener: l.(*net.TCPListener), answered: s.answered, rejected: &s.rejected,
			clients: make(map[netip.Addr]int),
		})
		return nil
	}
}

// Close closes the sockets of a server that does not Run. After Run it does nothing.
func (s *Server) Close() error {
	s.forward.Close()
	var err error
	for i := range s.packets {
		for _, c := range []io.Closer{s.packets[i], s.streams[i]} {
			if e := c.Close(); !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// Addrs returns the addresses that s listens on, with their real ports.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// SetZone has all queries from now on answered from z, which is not nil. It may
// be called at any time, from any goroutine.
func (s *Server) SetZone(z *Zone) { s.zone.Store(z) }

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	st := Stats{
		Zone:      s.tally.counted(Mesh),
		Refused:   s.tally.counted(Refused),
		Malformed: s.malformed.Load(),
		Rejected:  s.rejected.Load(),
		Unsent:    s.unsent.Load(),
		Forward:   s.forward.Stats(),
	}
	st.Queries = st.Zone + st.Refused + s.tally.counted(Forwarded)
	return st
}

// Run serves until ctx is done, then closes the sockets and returns nil. It
// may be called once.
func (s *Server) Run(ctx context.Context) error {
	defer s.forward.Close()
	g, ctx := errgroup.WithContext(ctx)
	for i := range s.packets {
		s.servePackets(ctx, g, s.packets[i])
		s.serve(ctx, g, &dns.Server{
			Listener: s.streams[i], ReadTimeout: readTimeout, IdleTimeout: func() time.Duration { return idleTimeout },
			MaxTCPQueries: -1, // connections are limited instead: one closed on pipelined queries loses answers
		})
	}
	return g.Wait()
}

// serve runs srv in g until ctx is done.
func (s *Server) serve(ctx context.Context, g *errgroup.Group, srv *dns.Server) {
	started := make(chan struct{}) // Shutdown does nothing before
	srv.NotifyStartedFunc = func() { close(started) }
	srv.MsgInvalidFunc = func([]byte, error) { s.malformed.Add(1) }
	srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { s.handle(ctx, w.RemoteAddr().(*origin), r) })
	g.Go(func() error {
		if err := srv.ActivateAndServe(); err != nil {
			return fmt.Errorf("serve dns: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		<-started
		srv.Shutdown()
		return nil
	})
}

// handle answers r. What has to be forwarded keeps nothing else waiting.
func (s *Server) handle(ctx context.Context, o *origin, r *dns.Msg) {
	if o.tcp != nil { // a connection's origin is that of all its queries
		o = &origin{client: o.client, ifindex: o.ifindex, known: o.known, tcp: o.tcp, pending: o.pending, at: time.Now()}
	}
	if !s.answered(o) {
		s.send(o, Refused, r, pack(forward.Failure(r, dns.RcodeRefused), r, o.tcp != nil), nil)
		return
	}
	if b := respond(s.zone.Load(), r, o.client.Addr().Unmap(), o.tcp != nil, rand.Uint32()); b != nil {
		s.send(o, Mesh, r, b, nil)
		return
	}
	reply, wait := s.forward.Begin(r, o.client.Addr())
	if wait == nil {
		s.relay(ctx, o, r, reply)
		return
	}
	o.pending.Go(func() { s.relay(ctx, o, r, wait(ctx)) })
}

// codeOf returns the code in the header of a reply.
func codeOf(b []byte) int { return int(b[3] & 15) }

// relay answers r with what the forwarder said.
func (s *Server) relay(ctx context.Context, o *origin, r *dns.Msg, reply forward.Reply) {
	if s.log.Enabled(ctx, slog.LevelDebug) {
		s.log.Debug("forwarded a query", "name", r.Question[0].Name, "type", dns.TypeToString[r.Question[0].Qtype],
			"client", o.client, "upstream", reply.Upstream, "cached", reply.Cached, "stale", reply.Stale,
			"rcode", dns.RcodeToString[reply.Msg.Rcode], "err", reply.Err)
	}
	s.send(o, Forwarded, r, pack(reply.Msg, r, o.tcp != nil), &reply)
}

// send sends the reply to r, counts it, and tells who watches.
func (s *Server) send(o *origin, from Source, r *dns.Msg, b []byte, reply *forward.Reply) {
	if b == nil {
		return
	}
	o.send(b)
	took := time.Since(o.at)
	qtype, code := dns.TypeNone, codeOf(b)
	if len(r.Question) > 0 {
		qtype = r.Question[0].Qtype
	}
	if opt := r.IsEdns0(); code == 0 && opt != nil && opt.Version() != 0 {
		code = dns.RcodeBadVers // whose low bits are 0
	}
	s.tally.at(from, qtype, code).add(took)
	s.tell(o, from, b, code, took, reply)
}

func (s *Server) answered(o *origin) bool { return o.known && s.answer(o.ifindex) }

// own reports whether up is an address that s listens on.
func (s *Server) own(up netip.AddrPort) bool {
	for _, a := range s.addrs {
		if a.Port() != up.Port() {
			continue
		}
		if a.Addr() == up.Addr().Unmap() || a.Addr().IsUnspecified() && onThisHost(up.Addr().Unmap()) {
			return true
		}
	}
	return false
}

func onThisHost(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == ip {
			return true
		}
	}
	return false
}

// Resolve answers a question as a client that s answers would be, from the
// zone or from upstream. The type is a mnemonic like "A". A question
// that got no answer is an error; SERVFAIL of the zone or an upstream is none.
func (s *Server) Resolve(ctx context.Context, name, qtype string) (Result, error) {
	if _, ok := dns.IsDomainName(name); !ok {
		return Result{}, fmt.Errorf("%q is not a domain name", name)
	}
	t, err := parseType(qtype)
	if err != nil {
		return Result{}, err
	}
	r := new(dns.Msg).SetQuestion(dns.Fqdn(name), t)
	if res := s.zone.Load().Lookup(name, t); res.Ours {
		return res, nil
	}
	reply := s.forward.Forward(ctx, r, netip.Addr{})
	if reply.Err != nil && !reply.Stale {
		return Result{}, fmt.Errorf("forward %s: %w", name, reply.Err)
	}
	res := result(reply.Msg)
	res.Upstream, res.Cached, res.Stale = reply.Upstream, reply.Cached, reply.Stale
	res.Ours = reply.Err == nil && !reply.Upstream.IsValid() // a private reverse zone
	return res, nil
}

func parseType(text string) (uint16, error) {
	t, ok := dns.StringToType[strings.ToUpper(text)]
	if !ok {
		return 0, fmt.Errorf("unknown record type %q", text)
	}
	return t, nil
}
