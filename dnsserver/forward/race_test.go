package forward

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const example = "example.com. 300 IN A 198.51.100.1"

func TestRace(t *testing.T) {
	const ms = time.Millisecond
	silent := server{}
	dead := server{err: syscall.ECONNREFUSED}
	fine := func(after time.Duration) server { return says(after, dns.RcodeSuccess, example) }
	for _, c := range []struct {
		name    string
		ups     []netip.AddrPort
		servers map[netip.AddrPort]server
		want    string // who answered what, when
		asked   string
	}{
		{"the first is quick", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: fine(20 * ms)},
			"NOERROR 192.0.2.1 20ms", "192.0.2.1@0s"},
		{"NXDOMAIN is an answer", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: says(0, dns.RcodeNameError)},
			"NXDOMAIN 192.0.2.1 0s", "192.0.2.1@0s"},
		{"the first is silent", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: silent, up2: fine(30 * ms)},
			"NOERROR 192.0.2.2 280ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the first is slow and wins", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: fine(300 * ms), up2: fine(time.Second)},
			"NOERROR 192.0.2.1 300ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the first is dead", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: dead, up2: fine(10 * ms)},
			"NOERROR 192.0.2.2 10ms", "192.0.2.1@0s 192.0.2.2@0s"},
		{"the first refuses", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: says(40*ms, dns.RcodeRefused), up2: fine(10 * ms)},
			"NOERROR 192.0.2.2 50ms", "192.0.2.1@0s 192.0.2.2@40ms"},
		{"the third of three", []netip.AddrPort{up1, up2, up3},
			map[netip.AddrPort]server{up1: silent, up2: says(0, dns.RcodeServerFailure), up3: fine(0)},
			"NOERROR 192.0.2.3 250ms", "192.0.2.1@0s 192.0.2.2@250ms 192.0.2.3@250ms"},
		{"the second says that there is none, the first is slow and has it", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]server{up1: fine(600 * ms), up2: says(0, dns.RcodeNameError, soaRecord)},
			"NOERROR 192.0.2.1 600ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the second says that there is none, the first is silent", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]server{up2: says(0, dns.RcodeSuccess, soaRecord)},
			"NOERROR 192.0.2.2 1s", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the second says that there is none, the first fails", []netip.AddrPort{up1, up2},
			map[netip.AddrPort]server{up1: says(400*ms, dns.RcodeServerFailure), up2: says(0, dns.RcodeNameError, soaRecord)},
			"NXDOMAIN 192.0.2.2 400ms", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"the third has it", []netip.AddrPort{up1, up2, up3},
			map[netip.AddrPort]server{up2: says(0, dns.RcodeNameError, soaRecord), up3: fine(100 * ms)},
			"NOERROR 192.0.2.3 600ms", "192.0.2.1@0s 192.0.2.2@250ms 192.0.2.3@500ms"},
		{"all refuse", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: says(0, dns.RcodeServerFailure), up2: says(0, dns.RcodeRefused)},
			"REFUSED 192.0.2.2 0s", "192.0.2.1@0s 192.0.2.2@0s"},
		{"an answer is told rather than a failure", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: says(0, dns.RcodeServerFailure), up2: dead},
			"SERVFAIL 192.0.2.1 0s", "192.0.2.1@0s 192.0.2.2@0s"},
		{"all dead", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: dead, up2: dead},
			"SERVFAIL 0s ask 192.0.2.2:53: dial udp: connection refused", "192.0.2.1@0s 192.0.2.2@0s"},
		{"all silent", []netip.AddrPort{up1, up2}, nil,
			"SERVFAIL 2s no upstream answered within 2s", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"none", nil, nil, "SERVFAIL 0s no upstream", ""},
		{"one silent, one refuses", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up2: says(0, dns.RcodeRefused)},
			"SERVFAIL 2s no upstream answered within 2s", "192.0.2.1@0s 192.0.2.2@250ms"},
		{"three are enough", []netip.AddrPort{up1, up2, up3, up4}, map[netip.AddrPort]server{up1: dead, up2: dead, up3: dead, up4: fine(0)},
			"SERVFAIL 0s ask 192.0.2.3:53: dial udp: connection refused", "192.0.2.1@0s 192.0.2.2@0s 192.0.2.3@0s"},
		{"too long for UDP", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: cutting(fine(10 * ms))},
			"NOERROR 192.0.2.1 10ms", "192.0.2.1@0s 192.0.2.1/tcp@10ms"},
		{"too long for UDP, and no TCP", []netip.AddrPort{up1, up2}, map[netip.AddrPort]server{up1: {udp: cutting(fine(0)).udp}, up2: fine(10 * ms)},
			"NOERROR 192.0.2.2 10ms", "192.0.2.1@0s 192.0.2.1/tcp@0s 192.0.2.2@0s"},
		{"no EDNS", []netip.AddrPort{up1}, map[netip.AddrPort]server{up1: plain(fine(10 * ms))},
			"NOERROR 192.0.2.1 20ms", "192.0.2.1@0s 192.0.2.1@10ms"},
		{"in lower case, and TCP says the same", []netip.AddrPort{up1}, map[netip.AddrPort]server{up1: folding(fine(10 * ms))},
			"NOERROR 192.0.2.1 10ms", "192.0.2.1@0s 192.0.2.1/tcp@10ms"},
		{"in lower case, and no TCP", []netip.AddrPort{up1}, map[netip.AddrPort]server{up1: {udp: folding(fine(10 * ms)).udp}},
			"NOERROR 192.0.2.1 10ms", "192.0.2.1@0s 192.0.2.1/tcp@10ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{servers: c.servers}
				f := newForwarder(t, n, c.ups...)
				start := time.Now()
				r := f.Forward(t.Context(), question(t, "example.com. IN A"), client)
				took := time.Since(start)
				got := dns.RcodeToString[r.Msg.Rcode]
				if r.Upstream.IsValid() {
					got += " " + r.Upstream.Addr().String()
				}
				got += " " + took.String()
				if r.Err != nil {
					got += " " + r.Err.Error()
				}
				if got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
				if a := n.taken(); a != c.asked {
					t.Errorf("asked %s, want %s", a, c.asked)
				}
			})
		})
	}
}

// cutting is s with UDP answers that say that they are cut.
func cutting(s server) server {
	udp := s.udp
	s.udp = func(q *dns.Msg) (time.Duration, *dns.Msg) {
		after, m := udp(q)
		m.Truncated, m.Answer = true, nil
		return after, m
	}
	return s
}

// plain is s as it was in 1987.
func plain(s server) server {
	udp := s.udp
	s.udp = func(q *dns.Msg) (time.Duration, *dns.Msg) {
		if q.IsEdns0() != nil {
			return 10 * time.Millisecond, &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: dns.RcodeFormatError}}
		}
		return udp(q)
	}
	return s
}

// folding is s with answers in lower case.
func folding(s server) server {
	udp := s.udp
	s.udp = func(q *dns.Msg) (time.Duration, *dns.Msg) {
		after, m := udp(q)
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
		return after, m
	}
	return s
}

// TestLostDatagram: the only upstream does not get the first packet, which is
// the same as one that is asked twice.
func TestLostDatagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, tries := &network{}, 0
		fine := says(20*time.Millisecond, dns.RcodeSuccess, example)
		n.set(up1, server{udp: func(q *dns.Msg) (time.Duration, *dns.Msg) {
			if tries++; tries == 1 {
				return 0, nil
			}
			return fine.udp(q)
		}})
		f := newForwarder(t, n, up1)
		start := time.Now()
		r := f.Forward(t.Context(), question(t, "example.com. IN A"), client)
		if d := time.Since(start); r.Msg.Rcode != dns.RcodeSuccess || d != againAfter+20*time.Millisecond {
			t.Errorf("%v after %v", told(r), d)
		}
	})
}

// TestLateAnswerIsKept: what comes after the client's patience is there when
// it asks again.
func TestLateAnswerIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(2500*time.Millisecond, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); r.Msg.Rcode != dns.RcodeServerFailure {
			t.Errorf("first: %s", told(r))
		}
		start := time.Now()
		if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); r.Msg.Rcode != dns.RcodeSuccess || time.Since(start) > 600*time.Millisecond {
			t.Errorf("again: %s after %v", told(r), time.Since(start))
		}
	})
}

func TestHealth(t *testing.T) {
	const ms = time.Millisecond
	now := time.Now()
	var h health
	if h.hedge() != maxHedge {
		t.Errorf("not measured: hedge %v", h.hedge())
	}
	for _, c := range []struct {
		rtt        time.Duration
		smoothed   time.Duration
		waitAtMost time.Duration
	}{{20 * ms, 20 * ms, 60 * ms}, {20 * ms, 20 * ms, 50 * ms}, {100 * ms, 30 * ms, 250 * ms}, {0, 26250 * time.Microsecond, 250 * ms}} {
		h = h.answered(c.rtt)
		if d := h.rtt - c.smoothed; d < -time.Microsecond || d > time.Microsecond || h.hedge() > c.waitAtMost || h.hedge() < minHedge {
			t.Errorf("after %v: %+v, hedge %v", c.rtt, h, h.hedge())
		}
	}
	quick := health{}
	for range 50 {
		quick = quick.answered(ms)
	}
	if quick.hedge() != minHedge {
		t.Errorf("hedge of a quick one: %v", quick.hedge())
	}

	at := now
	var backoffs []string
	for i := range 10 {
		h = h.failed(at)
		if up := h.backoff == 0; up != (i < maxSilent-1) {
			t.Errorf("after %d failures: %+v", i+1, h)
		}
		if !up2date(h, at) {
			t.Errorf("due at %v, which is past", h.due)
		}
		if h.backoff > 0 {
			again := h.failed(at.Add(h.backoff - 1)) // many fail at a time: they count as one
			if again.backoff != h.backoff || again.due != h.due {
				t.Errorf("%+v after %+v", again, h)
			}
			backoffs = append(backoffs, h.backoff.String())
			at = at.Add(h.backoff)
		}
	}
	if got := strings.Join(backoffs, " "); got != "1s 2s 4s 8s 16s 30s 30s 30s" {
		t.Errorf("backoffs %s", got)
	}
	if h = h.answered(20 * ms); h.backoff != 0 || h.silent != 0 {
		t.Errorf("after an answer: %+v", h)
	}
}

func up2date(h health, now time.Time) bool { return h.backoff == 0 || h.due.After(now) }

func TestSteps(t *testing.T) {
	now := time.Now()
	quick := health{rtt: 10 * time.Millisecond, deviation: 10 * time.Millisecond}
	down := health{silent: 3, backoff: minBackoff, due: now.Add(time.Second)}
	due := health{silent: 3, backoff: minBackoff, due: now}
	for _, c := range []struct {
		name  string
		ups   []netip.AddrPort
		known map[netip.AddrPort]health
		want  string
	}{
		{"none", nil, nil, ""},
		{"unknown ones, in order", []netip.AddrPort{up1, up2}, nil, "192.0.2.1+0s 192.0.2.2+250ms"},
		{"the first is quick", []netip.AddrPort{up1, up2}, map[netip.AddrPort]health{up1: quick}, "192.0.2.1+0s 192.0.2.2+50ms"},
		{"the second is quick: order counts", []netip.AddrPort{up1, up2}, map[netip.AddrPort]health{up2: quick}, "192.0.2.1+0s 192.0.2.2+250ms"},
		{"the first is down", []netip.AddrPort{up1, up2}, map[netip.AddrPort]health{up1: down, up2: quick}, "192.0.2.2+0s 192.0.2.1+50ms"},
		{"the first is tried again beside the second", []netip.AddrPort{up1, up2, up3}, map[netip.AddrPort]health{up1: due, up2: quick}, "192.0.2.2+0s 192.0.2.1+0s 192.0.2.3+250ms"},
		{"all are down", []netip.AddrPort{up1, up2}, map[netip.AddrPort]health{up1: down, up2: down}, "192.0.2.1+0s 192.0.2.2+250ms"},
		{"all are down, one is due", []netip.AddrPort{up1, up2}, map[netip.AddrPort]health{up1: down, up2: due}, "192.0.2.2+0s 192.0.2.1+250ms"},
		{"the fourth is the only one", []netip.AddrPort{up1, up2, up3, up4}, map[netip.AddrPort]health{up1: down, up2: down, up3: down},
			"192.0.2.4+0s 192.0.2.1+250ms 192.0.2.2+250ms"},
	} {
		var got []string
		for _, s := range steps(now, c.ups, c.known) {
			got = append(got, fmt.Sprintf("%v+%v", s.up.Addr(), s.after))
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s: %s, want %s", c.name, g, c.want)
		}
	}
}

// TestDeadUpstreamIsLeftAndFound: after three silent questions the second is
// asked first, and the first again once it answers, at nobody's expense.
func TestDeadUpstreamIsLeftAndFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up2, says(10*time.Millisecond, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1, up2)
		i := 0
		ask := func() (took time.Duration) {
			t.Helper()
			i++
			start := time.Now()
			if r := f.Forward(t.Context(), question(t, fmt.Sprintf("n%d.example.com. IN A", i)), client); r.Msg.Rcode != dns.RcodeSuccess {
				t.Fatal(told(r))
			}
			return time.Since(start)
		}
		for range 3 {
			if d := ask(); d != 260*time.Millisecond {
				t.Errorf("before anything is known: %v", d)
			}
			time.Sleep(2 * time.Second)
		}
		if s := f.Stats().Upstreams; !s[0].Down || s[1].Down || s[1].RTT != 10*time.Millisecond ||
			s[0].Answers != 0 || s[0].Failures != 3 || s[1].Answers != 3 || s[1].Failures != 0 {
			t.Errorf("upstreams %+v", s)
		}
		for range 100 {
			if d := ask(); d != 10*time.Millisecond {
				t.Errorf("while the first is down: %v", d)
			}
			time.Sleep(time.Second)
		}
		n.set(up1, says(5*time.Millisecond, dns.RcodeSuccess, example))
		for range 31 { // the longest backoff
			if d := ask(); d > 10*time.Millisecond {
				t.Errorf("while the first is back: %v", d)
			}
			time.Sleep(time.Second)
		}
		if d := ask(); d != 5*time.Millisecond || f.Stats().Upstreams[0].Down {
			t.Errorf("the first is not in use again: %v, %+v", d, f.Stats().Upstreams)
		}
	})
}

// TestRefusingUpstreamIsLeft: it answers, and nobody is helped.
func TestRefusingUpstreamIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(10*time.Millisecond, dns.RcodeRefused))
		n.set(up2, says(10*time.Millisecond, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1, up2)
		for i := range maxSilent {
			f.Forward(t.Context(), question(t, fmt.Sprintf("n%d.example.com. IN A", i)), client)
		}
		n.taken()
		f.Forward(t.Context(), question(t, "example.com. IN A"), client)
		if a := n.taken(); a != "192.0.2.2@60ms" || !f.Stats().Upstreams[0].Down {
			t.Errorf("asked %s, %+v", a, f.Stats().Upstreams)
		}
	})
}

// TestSlowUpstreamIsNotDead: one that always loses the race, but answers, is up.
func TestSlowUpstreamIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(600*time.Millisecond, dns.RcodeSuccess, example))
		n.set(up2, says(10*time.Millisecond, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1, up2)
		for i := range 20 {
			f.Forward(t.Context(), question(t, fmt.Sprintf("n%d.example.com. IN A", i)), client)
		}
		time.Sleep(2 * time.Second)
		if s := f.Stats().Upstreams; s[0].Down || s[0].RTT != 600*time.Millisecond {
			t.Errorf("upstreams %+v", s)
		}
	})
}
