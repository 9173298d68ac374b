package monitor

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// The device is read once a second: times that so many readings have to meet
// are a little less than whole seconds.
const (
	owed    = 10900 * time.Millisecond // after data was sent: a keepalive answers it within 10 s and a round trip
	silence = 30 * time.Second         // without data: persistent keepalives are 25 s apart
	answer  = 1900 * time.Millisecond  // for each candidate in the first round, doubled in every further one
	slowest = 30 * time.Second         // that it is doubled to
	prompt  = 900 * time.Millisecond   // by when an answer is there, if one comes
	spacing = 25 * time.Millisecond    // between two initiations: responders drop one within 20 ms of another
	retry   = 4 * time.Second          // initiations this far apart are two: WireGuard repeats one after 5 s
)

// A path is what is remembered of a peer between two readings. Times are on
// the monitor's clock; zero means never.
type path struct {
	state      State
	known      bool     // last is a reading
	last       Observed // its endpoint is ours if we moved the peer since
	candidates []netip.AddrPort
	good       netip.AddrPort // endpoint at the latest evidence of life

	heard time.Duration // latest evidence of life
	sent  time.Duration // first data sent in a later reading than heard
	calls int           // initiations of the peer since the latest handshake
	call  time.Duration // latest of them

	// The search, from the first question until a handshake.
	doubt  string         // why the first one was put
	asked  time.Duration  // latest question
	due    time.Duration  // of the next one
	tried  int            // candidates asked, again ones counted again
	at     netip.AddrPort // latest of them
	back   bool           // the next question goes to where the peer was heard from
	backed bool           // one of this round did
}

type deed uint8

const (
	stay deed = iota
	ask
	move // to path.last.Endpoint
)

// An action is what to do, and why the path is in the state it is in.
type action struct {
	do     deed
	reason string
}

// step returns what becomes of p by the reading seen at now, and what to do.
// first says that our key is smaller than the peer's. It does no I/O.
func step(now time.Duration, p path, seen Observed, candidates []netip.AddrPort, first bool) (path, action) {
	var why string
	if !p.known || seen.RxBytes < p.last.RxBytes || seen.TxBytes < p.last.TxBytes {
		p, why = begin(now, seen), "new on the device"
	} else {
		p, why = p.observe(now, seen, first)
	}
	if now-p.asked < spacing {
		return p, action{reason: why} // the next reading sees the same candidates
	}
	if to, why := p.offer(candidates); to.IsValid() {
		if p.state == Up {
			p.state = Suspect
		}
		p.tried, p.back, p.backed = 0, false, false
		return p.question(now, to), action{move, why}
	}

	here := p.last.Endpoint
	if p.state == Up {
		switch {
		case p.calls >= 2:
			p.state = Suspect
			return p.question(now, here), action{move, "it asks again, so our answers are lost"}
		case p.tried > 0 && now-p.asked >= prompt: // by now it should have answered
			p.state = Suspect
			return p, action{reason: p.doubt}
		case p.tried > 0:
		case p.sent != 0 && now-p.sent >= owed:
			p.doubt = "sent data, and nothing heard for 11s"
			return p.question(now, here), action{do: ask}
		case p.sent == 0 && now-p.heard >= silence: // what we send puts off the peer's own keepalive, by up to 10 s
			p.doubt = "nothing heard for 30s"
			return p.question(now, here), action{do: ask}
		}
		return p, action{reason: why}
	}
	switch {
	case now < p.due:
		return p, action{reason: why}
	case p.back:
		p.back, p.asked, p.due = false, now, now+answer
		return p, action{move, "heard from there"}
	}

	ring := p.ring()
	if len(ring) == 0 {
		return p, action{reason: why} // behind NAT: it has to come
	}
	if p.tried > 0 {
		why = fmt.Sprintf("no answer from %v", p.at)
	}
	if p.state == Suspect || p.tried >= len(ring) {
		p.state = Down
	}
	if p.tried%len(ring) == 0 {
		p.backed = false
	}
	to := ring[(slices.Index(ring, p.at)+1)%len(ring)]
	if p.tried == 0 {
		why = "first candidate"
		if here.IsValid() {
			to = here
		}
	}
	do := move
	if to == here && (p.tried == 0 || len(ring) == 1) {
		do = ask
	}
	return p.question(now, to), action{do, why}
}

// begin returns the path of a peer that is new on the device, or whose past is
// not known.
func begin(now time.Duration, seen Observed) path {
	p := path{known: true, last: seen, due: now}
	if !seen.LastHandshake.IsZero() {
		p = p.alive(now)
	}
	return p
}

// observe returns p with what seen tells: evidence of life, or that the peer
// is heard while it is not known to hear us; and why it changed, if it did.
func (p path) observe(now time.Duration, seen Observed, first bool) (path, string) {
	received, sent := seen.RxBytes-p.last.RxBytes, seen.TxBytes-p.last.TxBytes
	handshake := !seen.LastHandshake.IsZero() && !seen.LastHandshake.Equal(p.last.LastHandshake)
	p.last = seen
	switch {
	case handshake:
		p.calls = 0
		fresh := p.state != Up
		if p = p.alive(now); fresh {
			return p, "handshake"
		}
	case received == 0:
		if p.state == Up && p.sent == 0 && !handshakesOnly(sent) {
			p.sent = now
		}
	case !initiationsOnly(received):
		if p.state == Up {
			p = p.alive(now)
			break
		}
		if p.state == Suspect && p.calls < 2 {
			return p.alive(now), "heard again"
		}
		p = p.returnTo(now)
	default:
		if p.calls == 0 || now-p.call >= retry {
			p.calls++
		}
		p.call = now
		// Its handshake completes within a round trip, unless our initiation
		// crossed it and both were dropped (by a peer that is no jiji-node, or
		// far away): then one end has to ask again.
		switch asking := p.state != Up || p.tried > 0; {
		case asking && first:
			p = p.returnTo(now + prompt)
		case asking:
			p = p.returnTo(now + answer)
		}
	}
	return p, "roamed"
}

// alive returns p up at now, on the endpoint in use.
func (p path) alive(now time.Duration) path {
	p.state, p.good, p.heard, p.sent = Up, p.last.Endpoint, now, 0
	p.tried, p.back, p.backed = 0, false, false
	return p
}

// returnTo returns p with its next question, at due, for the endpoint that the
// peer was just heard from; once in a round, so that a peer that we hear but
// cannot reach there does not keep us from the other candidates.
func (p path) returnTo(due time.Duration) path {
	if !p.backed {
		p.back, p.backed, p.due = true, true, due
	}
	return p
}

// offer takes the candidates, and returns the one to move to at once because
// of them, if there is one.
func (p *path) offer(candidates []netip.AddrPort) (netip.AddrPort, string) {
	old := p.candidates
	p.candidates = candidates
	gone := func(a netip.AddrPort) bool {
		return slices.Contains(old, a) && !slices.Contains(candidates, a)
	}
	if gone(p.good) {
		p.good = netip.AddrPort{}
	}
	if gone(p.last.Endpoint) && len(candidates) > 0 {
		return candidates[0], "no longer a candidate"
	}
	if p.tried > 0 && (p.state == Down || p.state == Unknown) {
		for _, c := range candidates {
			if !slices.Contains(old, c) {
				return c, "new candidate"
			}
		}
	}
	return netip.AddrPort{}, ""
}

// question returns p with to asked at now.
func (p path) question(now time.Duration, to netip.AddrPort) path {
	n := max(1, len(p.ring()))
	wait := min(answer<<min(p.tried/n, 8), slowest-time.Second/10)
	p.tried++
	p.at, p.asked, p.due = to, now, now+wait
	p.last.Endpoint = to
	return p
}

// unsent has the next question put at the next reading: the latest, at now, did not
// leave, as where there is no route, so that nobody will answer it.
func (p *path) unsent(now time.Duration) { p.due = now }

// ring returns what a search goes through: the candidates, and the endpoint
// that answered last, which may be one that the peer roamed to.
func (p path) ring() []netip.AddrPort {
	switch here := p.last.Endpoint; {
	case p.good.IsValid() && !slices.Contains(p.candidates, p.good):
		return append(slices.Clone(p.candidates), p.good)
	case len(p.candidates) == 0 && here.IsValid():
		return []netip.AddrPort{here}
	}
	return p.candidates
}

// Sizes of WireGuard's messages (whitepaper, section 5.4), as the device
// counts them.
const (
	initiationSize = 148
	responseSize   = 92
	keepaliveSize  = 32
)

// initiationsOnly reports whether n received bytes are initiations: no other
// message, nor a sum of them, has this size.
func initiationsOnly(n uint64) bool { return n == initiationSize || n == 2*initiationSize }

// handshakesOnly reports whether n bytes, sent between two readings, may be
// handshakes and a keepalive, which draw no answer: there are at most two of a
// kind in a second. Some sizes of data are taken for them; data that matters
// is seen again.
func handshakesOnly(n uint64) bool {
	for i := range uint64(3) {
		for r := range uint64(3) {
			if rest := n - i*initiationSize - r*responseSize; rest == 0 || rest == keepaliveSize {
				return true // no match where the difference wraps round
			}
		}
	}
	return false
}
