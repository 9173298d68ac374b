// Package forward answers names outside the mesh: from a cache, and from the
// upstreams of this host. It never waits longer than two seconds, tells old
// answers rather than none, and ends questions that go in circles.
package forward

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	patience   = 2 * time.Second         // of a client, for one question in all; then it is SERVFAIL
	staleAfter = 1800 * time.Millisecond // the same, where there is a stale answer to tell (RFC 8767, section 5)
	// An answer that comes after patience is there for the client's next try.
	flightTimeout = 4 * time.Second

	maxWaiting   = 1024 // clients' questions at a time that wait for an upstream
	maxFlights   = 512  // questions at a time that upstreams are asked; each may hold maxUpstreams sockets
	maxPerClient = 128  // of either, that one client may hold
	hotHits      = 3    // since an answer came: it is asked for again before its time is over

	warnEvery = time.Minute // of the same
)

var (
	errBusy   = errors.New("too many questions wait for an upstream")
	errClient = errors.New("too many questions of this client wait for an upstream")
	errLoop   = errors.New("the question came back to us from an upstream")
	errAgain  = errors.New("upstreams were asked a moment ago, and it is too soon to do so again")
	errDown   = errors.New("no upstream answers")
	errSlow   = fmt.Errorf("no upstream answered within %v", patience)
	errClosed = errors.New("the forwarder is closed")
)

// A Config says whom to ask.
type Config struct {
	// Upstreams returns whom to ask, in order of preference; empty: nobody,
	// and what is not in the cache is SERVFAIL. It is called for every question,
	// one at a time, and has to be fast.
	Upstreams func() []netip.AddrPort // required

	// Own reports whether we answer on an address ourselves: it is never asked.
	Own func(netip.AddrPort) bool // required

	// Mesh is where other nodes are. With them and with private addresses this
	// node tells its questions from those of others, to end loops.
	Mesh []netip.Prefix

	Log *slog.Logger // required
}

// A Reply is what a question is answered with.
type Reply struct {
	Msg      *dns.Msg       // to the client, not yet made to fit
	Upstream netip.AddrPort // whose answer it is, of now or of earlier; zero if it is ours
	Cached   bool           // it is of earlier
	Stale    bool           // and past its time
	Err      error          // why there is no newer answer, or none at all; nil: there is
}

// Stats counts what a Forwarder did. Each question counts in exactly one of
// Local, Hits, Stale, Answered, Failed, Busy and Loops.
type Stats struct {
	Local    uint64 // private reverse zones, answered here
	Hits     uint64 // answered from the cache
	Stale    uint64 // answered past their time, because no upstream did
	Answered uint64 // by an upstream
	Failed   uint64 // SERVFAIL, or what upstreams said that was of no use
	Busy     uint64 // SERVFAIL: too many were waiting
	Loops    uint64 // SERVFAIL: our own questions that came back

	Joined     uint64 // questions that waited for another one's answer
	Prefetched uint64 // asked because a hot answer was about to end

	Entries, Bytes int             // in the cache
	Upstreams      []UpstreamStats // those in use at the last question
}

// UpstreamStats is about one of the upstreams in use.
type UpstreamStats struct {
	Addr netip.AddrPort
	RTT  time.Duration // smoothed; zero: not measured
	Down bool          // it does not answer, and others are asked first

	Answers  uint64
	Failures uint64 // questions without an answer in a second, or with none of use
}

// A Forwarder answers names outside the mesh. Close ends it.
type Forwarder struct {
	cfg       Config
	dial      func(ctx context.Context, network string, up netip.AddrPort) (net.Conn, error)
	ctx       context.Context // of all that is asked
	cancel    context.CancelFunc
	running   sync.WaitGroup
	lingering atomic.Int64 // races whose losers are waited for

	mu      sync.Mutex // guards what follows
	closed  bool
	ups     []netip.AddrPort // as cfg.Upstreams said last
	changes int              // of ups
	cache   cache
	flights map[key]*flight  // that others may join
	marks   map[mark]*flight // all
	waiting int              // clients' questions
	clients map[netip.Addr]int
	health  map[netip.AddrPort]health
	warned  time.Time // of a loop, last

	stats struct {
		local, hits, stale, answered, failed, busy, loops, joined, prefetched atomic.Uint64
	}
}

// New returns a forwarder with an empty cache.
func New(c Config) *Forwarder {
	f := &Forwarder{
		cfg: c, dial: dial,
		cache:   cache{limit: cacheSize, entries: make(map[key]*list.Element)},
		flights: make(map[key]*flight), marks: make(map[mark]*flight),
		clients: make(map[netip.Addr]int), health: make(map[netip.AddrPort]health),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends all that is being asked. Questions after it get what the cache has.
func (f *Forwarder) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.running.Wait()
}

// A flight is a question that upstreams are being asked.
type flight struct {
	query   *query
	spelled string     // its name as it is sent
	shared  bool       // others may join it
	changes int        // of the upstreams, before it
	client  netip.Addr // that pays for it, to its end
	charged bool       // there is one
	done    chan struct{}

	// Once done is closed:
	answer *answer
	err    error
}

// A visit is what is to be done about one question, as decided at its arrival.
type visit struct {
	answer *answer // to tell: at once without a flight, else if that brings nothing good; may be nil
	stale  bool    // answer is
	flight *flight // to wait for
	joined bool    // flight is of another client, and this one is charged as well
	client netip.Addr
	err    error // without answer and flight: SERVFAIL
}

// Begin answers r if it can at once. Else wait is not nil: it has to be called,
// and returns the reply within 2 seconds, or when its context is done. r has
// one question, of class IN, for a name that is not ours; client is who asked,
// the zero value is this node itself.
func (f *Forwarder) Begin(r *dns.Msg, client netip.Addr) (reply Reply, wait func(context.Context) Reply) {
	if m := local(r); m != nil {
		f.stats.local.Add(1)
		return Reply{Msg: m}, nil
	}
	v := f.visit(r, limitedAs(client))
	if v.flight == nil {
		return f.conclude(r, v), nil
	}
	return Reply{}, func(ctx context.Context) Reply { return f.wait(ctx, r, v) }
}

// Forward is Begin and its wait.
func (f *Forwarder) Forward(ctx context.Context, r *dns.Msg, client netip.Addr) Reply {
	reply, wait := f.Begin(r, client)
	if wait != nil {
		return wait(ctx)
	}
	return reply
}

// limitedAs returns what a client's limit is for: its address, or the network
// of one that has as many as it likes.
func limitedAs(client netip.Addr) netip.Addr {
	client = client.Unmap().WithZone("")
	if client.Is6() {
		p, _ := client.Prefix(64)
		return p.Addr()
	}
	return client
}

// visit decides about r. It starts a flight where one is needed.
func (f *Forwarder) visit(r *dns.Msg, client netip.Addr) visit {
	k, marks, now := keyOf(r), marksOf(r), time.Now()
	v := visit{client: client}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.use(f.cfg.Upstreams())
	e := f.cache.get(k, now)
	if e != nil && e.fresh(now) {
		v.answer = e.answer
		if e.hits++; e.hits >= hotHits && e.answer.dueSoon(now) && !now.Before(e.after) {
			f.prefetch(k)
		}
		return v
	}
	if f.loops(k, r.Question[0].Name, marks) {
		v.err = errLoop
		return v
	}
	if e != nil {
		v.answer, v.stale = e.answer, true
		if now.Before(e.after) {
			v.err = errAgain
			return v
		}
	}
	v.err = f.board(&v, k, marks)
	if v.flight != nil && v.stale && f.allDown() {
		f.leave(v)
		v.flight, v.err = nil, errDown // it goes on
	}
	return v
}

// use has ups be the upstreams. What others said before is told only if nothing
// else is to be had: names may mean something else to them. f.mu is held.
func (f *Forwarder) use(ups []netip.AddrPort) {
	if slices.Equal(ups, f.ups) {
		return
	}
	f.ups = slices.Clone(ups)
	f.changes++
	f.cache.outdate()
	clear(f.flights)
	known := make(map[netip.AddrPort]health)
	for _, u := range ups {
		if h, ok := f.health[u]; ok {
			known[u] = h
		}
	}
	f.health = known
}

// loops reports whether a question is our own. f.mu is held.
func (f *Forwarder) loops(k key, name string, marks []mark) bool {
	for _, m := range marks {
		if f.marks[m] != nil {
			return true
		}
	}
	if len(marks) > 0 {
		return len(marks) >= maxMarks
	}
	fl := f.flights[k]
	return fl != nil && fl.spelled == name && letters(name) >= minLetter
}

// board has v wait for the flight that asks k, which may have to start. f.mu is held.
func (f *Forwarder) board(v *visit, k key, marks []mark) error {
	switch fl := f.flights[k]; {
	case f.waiting >= maxWaiting:
		return errBusy
	case f.clients[v.client] >= maxPerClient:
		return errClient
	case fl != nil && len(marks) == 0: // two nodes whose questions join one another's would both wait
		v.flight, v.joined = fl, true
		f.clients[v.client]++
		f.stats.joined.Add(1)
	default:
		fl, err := f.start(k, marks)
		if err != nil {
			return err
		}
		v.flight = fl
		fl.client, fl.charged = v.client, true
		f.clients[v.client]++
	}
	f.waiting++
	return nil
}

// leave takes back what board counted. f.mu is held.
func (f *Forwarder) leave(v visit) {
	f.waiting--
	if v.joined {
		f.discharge(v.client)
	}
}

func (f *Forwarder) discharge(client netip.Addr) {
	f.clients[client]--
	if f.clients[client] == 0 {
		delete(f.clients, client)
	}
}

// prefetch asks for k, unless that is being done or there is much to do. f.mu is held.
func (f *Forwarder) prefetch(k key) {
	if f.flights[k] != nil || len(f.marks) >= maxFlights/2 {
		return
	}
	if _, err := f.start(k, nil); err == nil {
		f.stats.prefetched.Add(1)
	}
}

// start asks k of upstreams. f.mu is held.
func (f *Forwarder) start(k key, marks []mark) (*flight, error) {
	switch {
	case f.closed:
		return nil, errClosed
	case len(f.marks) >= maxFlights:
		return nil, errBusy
	}
	own := mark(rand.Uint64())
	q, err := newQuery(k, append(marks, own))
	if err != nil {
		return nil, err
	}
	fl := &flight{query: q, spelled: q.spelled(), shared: len(marks) == 0, changes: f.changes, done: make(chan struct{})}
	f.marks[own] = fl
	if fl.shared {
		f.flights[k] = fl
	}
	f.running.Go(func() {
		a, err := f.race(q)
		f.land(fl, own, a, err)
	})
	return fl, nil
}

// land ends a flight and keeps what it brought.
func (f *Forwarder) land(fl *flight, own mark, a *answer, err error) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.answer, fl.err = a, err
	close(fl.done)
	delete(f.marks, own)
	k := fl.query.key
	if f.flights[k] == fl {
		delete(f.flights, k)
	}
	if fl.charged {
		f.discharge(fl.client)
	}
	e := f.cache.get(k, now)
	switch {
	case fl.changes != f.changes: // others are to be asked now
	case err == nil && good(a.rcode):
		if a.ttl > 0 {
			f.cache.put(k, a)
		}
	case !fl.shared || f.closed: // a failure that others need not share
	case e != nil && good(e.answer.rcode):
		e.after = now.Add(recheck)
	default:
		if kept, err := failed(k, a, err, now); err == nil {
			f.cache.put(k, kept)
		}
	}
}

// wait returns the reply to r once v's flight is over, or the client's patience.
func (f *Forwarder) wait(ctx context.Context, r *dns.Msg, v visit) Reply {
	limit := patience
	if v.stale {
		limit = staleAfter
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-v.flight.done:
		v.err = v.flight.err
		switch a := v.flight.answer; {
		case a == nil:
		case good(a.rcode) || v.answer == nil:
			v.answer, v.stale = a, false
		default:
			v.err = fmt.Errorf("%v says %s", a.from, dns.RcodeToString[a.rcode])
		}
	case <-timer.C:
		v.err = errSlow
	case <-ctx.Done():
		v.err = ctx.Err()
	}
	f.mu.Lock()
	f.leave(v)
	f.mu.Unlock()
	return f.conclude(r, v)
}

// conclude returns and counts the reply that v says.
func (f *Forwarder) conclude(r *dns.Msg, v visit) Reply {
	if a := v.answer; a != nil {
		m, err := a.reply(r, time.Now(), v.stale)
		if a.cause != nil {
			v.err = a.cause
		}
		switch {
		case err != nil:
			v.err = err
		case v.stale:
			f.stats.stale.Add(1)
		case !good(a.rcode):
			f.stats.failed.Add(1)
		case v.flight == nil:
			f.stats.hits.Add(1)
		default:
			f.stats.answered.Add(1)
		}
		if err == nil {
			return Reply{Msg: m, Upstream: a.from, Cached: v.flight == nil || v.stale, Stale: v.stale, Err: v.err}
		}
	}
	switch v.err {
	case errLoop:
		f.stats.loops.Add(1)
		f.warnOfLoop(r.Question[0].Name, v.client)
	case errBusy, errClient:
		f.stats.busy.Add(1)
	default:
		f.stats.failed.Add(1)
	}
	return Reply{Msg: Failure(r, dns.RcodeServerFailure), Err: v.err}
}

// warnOfLoop logs a loop, once in a while.
func (f *Forwarder) warnOfLoop(name string, client netip.Addr) {
	now := time.Now()
	f.mu.Lock()
	quiet := !f.warned.IsZero() && now.Sub(f.warned) < warnEvery
	if !quiet {
		f.warned = now
	}
	f.mu.Unlock()
	if !quiet {
		f.cfg.Log.Warn("an upstream sends our own questions back to us: it must not forward to this node", "name", name, "client", client)
	}
}

// Stats returns the counts so far.
func (f *Forwarder) Stats() Stats {
	s := Stats{
		Local:      f.stats.local.Load(),
		Hits:       f.stats.hits.Load(),
		Stale:      f.stats.stale.Load(),
		Answered:   f.stats.answered.Load(),
		Failed:     f.stats.failed.Load(),
		Busy:       f.stats.busy.Load(),
		Loops:      f.stats.loops.Load(),
		Joined:     f.stats.joined.Load(),
		Prefetched: f.stats.prefetched.Load(),
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Entries, s.Bytes = len(f.cache.entries), f.cache.bytes
	for _, u := range f.upstreams() {
		h := f.health[u]
		s.Upstreams = append(s.Upstreams, UpstreamStats{Addr: u, RTT: h.rtt, Down: h.backoff > 0, Answers: h.answers, Failures: h.failures})
	}
	return s
}
