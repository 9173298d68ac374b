package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	maxUpstreams = 3                      // that are asked, as glibc does (resolv.conf(5), MAXNS)
	minHedge     = 30 * time.Millisecond  // how long an upstream is waited for before the next one is asked too
	maxHedge     = 250 * time.Millisecond // and the most, which also is for those that were not measured
	silence      = time.Second            // without an answer, of an upstream that may be down
	maxSilent    = 3                      // questions with that in a row: others are preferred
	maxLinger    = 64                     // races at a time whose losers may answer within silence all the same
	minBackoff   = time.Second            // until an upstream that does not answer is tried beside another one
	maxBackoff   = 30 * time.Second
)

var errNoUpstream = errors.New("no upstream")

// A health is what is known of an upstream. The zero value is one that was never asked.
type health struct {
	rtt, deviation time.Duration // smoothed as in RFC 6298; zero if not measured
	silent         int           // questions since the last answer
	backoff        time.Duration // zero: it is up
	due            time.Time     // when one that is down is to be tried again

	answers, failures uint64 // in all
}

// answered returns h after an answer that took rtt.
func (h health) answered(rtt time.Duration) health {
	rtt = max(rtt, time.Microsecond)
	after := health{rtt: rtt, deviation: rtt / 2, answers: h.answers + 1, failures: h.failures}
	if h.rtt > 0 {
		after.rtt = (7*h.rtt + rtt) / 8
		after.deviation = (3*h.deviation + (h.rtt - rtt).Abs()) / 4
	}
	return after
}

// failed returns h after a question that got no answer, or none of use, at now.
func (h health) failed(now time.Time) health {
	h.silent++
	h.failures++
	switch {
	case h.silent < maxSilent || h.backoff > 0 && now.Before(h.due):
		return h
	case h.backoff == 0:
		h.backoff = minBackoff
	default:
		h.backoff = min(2*h.backoff, maxBackoff)
	}
	h.due = now.Add(h.backoff)
	return h
}

// hedge returns how long to wait for an upstream before the next one is asked.
func (h health) hedge() time.Duration {
	if h.rtt == 0 {
		return maxHedge
	}
	return min(max(h.rtt+4*h.deviation, minHedge), maxHedge)
}

// A step asks one upstream.
type step struct {
	up    netip.AddrPort
	after time.Duration // since the step before, if that one was silent
}

// steps returns whom to ask at now: ups in their order, those that are down
// last. One of them that is due is tried beside the first, which costs nobody time.
func steps(now time.Time, ups []netip.AddrPort, known map[netip.AddrPort]health) []step {
	var up, due, down []netip.AddrPort
	for _, u := range ups {
		switch h := known[u]; {
		case h.backoff == 0:
			up = append(up, u)
		case !now.Before(h.due):
			due = append(due, u)
		default:
			down = append(down, u)
		}
	}
	var all []step
	add := func(us []netip.AddrPort) {
		for _, u := range us {
			s := step{up: u}
			if n := len(all); n > 0 {
				s.after = known[all[n-1].up].hedge()
			}
			all = append(all, s)
		}
	}
	if len(up) > 0 && len(due) > 0 {
		add(up[:1])
		all = append(all, step{up: due[0]})
		up, due = up[1:], due[1:]
	}
	add(up)
	add(due)
	add(down)
	return all[:min(len(all), maxUpstreams)]
}

// allDown reports whether no upstream has answered of late. f.mu is held.
func (f *Forwarder) allDown() bool {
	for _, u := range f.upstreams() {
		if f.health[u].backoff == 0 {
			return false
		}
	}
	return true
}

// upstreams returns whom to ask, in order of preference. f.mu is held.
func (f *Forwarder) upstreams() []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(f.ups), f.cfg.Own)
}

// plan returns whom to ask now.
func (f *Forwarder) plan() []step {
	f.mu.Lock()
	defer f.mu.Unlock()
	return steps(time.Now(), f.upstreams(), f.health)
}

// race asks upstreams, the next one when those before it failed or were silent
// for a while, and returns the first good answer; if there is none, the last
// one of no use. That there is no record is believed of one only when those
// before it had a second to say otherwise: they may know names of a network of
// theirs, which is why they come first.
func (f *Forwarder) race(q *query) (*answer, error) {
	order := f.plan()
	if len(order) == 0 {
		return nil, errNoUpstream
	}
	ctx, cancel := context.WithTimeout(f.ctx, flightTimeout)
	type result struct {
		step   int
		answer *answer
		err    error
	}
	results := make(chan result, len(order))
	var open [maxUpstreams]bool // were asked and have not answered
	asked := 0
	defer func() { f.dismiss(slices.Contains(open[:], true), cancel) }()
	next := time.NewTimer(0)
	defer next.Stop()
	believe := time.NewTimer(silence)
	defer believe.Stop()
	believing := false
	last := result{err: errNoUpstream}
	none := result{step: -1} // says that there is no record, if it has an answer
	for {
		select {
		case <-next.C:
			i := asked
			open[i] = true
			asked++
			f.running.Go(func() {
				a, err := f.askOne(ctx, order[i].up, q)
				results <- result{i, a, err}
			})
			if asked < len(order) {
				next.Reset(order[asked].after)
			}
		case r := <-results:
			open[r.step] = false
			switch {
			case r.err == nil && good(r.answer.rcode) && !r.answer.none:
				return r.answer, nil
			case r.err == nil && good(r.answer.rcode):
				if none.answer == nil || r.step < none.step {
					none = r
				}
			case r.err == nil || last.answer == nil:
				last = r
			}
			if none.answer == nil && asked < len(order) {
				next.Reset(0)
			}
		case <-believe.C:
			believing = true
		case <-ctx.Done():
			if last.answer == nil {
				last.err = fmt.Errorf("no answer from %v: %w", names(order), ctx.Err())
			}
			return last.answer, last.err
		}
		switch {
		case none.answer != nil && (believing || !slices.Contains(open[:none.step], true)):
			return none.answer, nil
		case asked == len(order) && !slices.Contains(open[:], true):
			return last.answer, last.err
		}
	}
}

func names(order []step) []netip.AddrPort {
	var ups []netip.AddrPort
	for _, s := range order {
		ups = append(ups, s.up)
	}
	return ups
}

// dismiss cancels a race that is decided, but lets those that lost come in: an
// upstream would be taken for dead else, once it is slower than another.
func (f *Forwarder) dismiss(waiting bool, cancel func()) {
	if !waiting {
		cancel()
		return
	}
	if f.lingering.Add(1) > maxLinger {
		f.lingering.Add(-1)
		cancel()
		return
	}
	time.AfterFunc(silence, func() {
		cancel()
		f.lingering.Add(-1)
	})
}

// askOne asks up and learns from it.
func (f *Forwarder) askOne(ctx context.Context, up netip.AddrPort, q *query) (*answer, error) {
	begin := time.Now()
	silent := time.AfterFunc(silence, func() { f.learn(up, health.failed, time.Now()) })
	m, err := f.ask(ctx, up, q)
	now := time.Now()
	told := !silent.Stop()
	switch {
	case err != nil && !told && ctx.Err() == nil:
		f.learn(up, health.failed, now)
	case err != nil:
	case m.Rcode == dns.RcodeRefused || m.Rcode == dns.RcodeNotImplemented || m.Rcode == dns.RcodeFormatError:
		f.learn(up, health.failed, now) // of no more use than one that is silent
	default:
		f.learn(up, func(h health, now time.Time) health { return h.answered(now.Sub(begin)) }, now)
	}
	if err != nil {
		return nil, err
	}
	return newAnswer(q.key, m, up, now)
}

// learn changes what is known of up.
func (f *Forwarder) learn(up netip.AddrPort, change func(health, time.Time) health, now time.Time) {
	f.mu.Lock()
	before := f.health[up]
	after := change(before, now)
	if slices.Contains(f.ups, up) {
		f.health[up] = after
	}
	f.mu.Unlock()
	switch {
	case before.backoff == 0 && after.backoff > 0:
		f.cfg.Log.Warn("upstream does not answer, others are asked first", "upstream", up)
	case before.backoff > 0 && after.backoff == 0:
		f.cfg.Log.Info("upstream answers again", "upstream", up, "rtt", after.rtt.Round(time.Microsecond))
	}
}
