package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var (
	self  = wgkey.Public{10}
	big   = wgkey.Public{20} // we initiate first
	small = wgkey.Public{5}  // it does
	quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

	a, b, c = ap("192.0.2.1:51820"), ap("192.0.2.2:51820"), ap("[2001:db8::3]:51820")
	x       = ap("198.51.100.7:1024") // on no list
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type (
	paths = map[netip.AddrPort]direction
	set   = map[wgkey.Public][]netip.AddrPort
)

func peerOf(key wgkey.Public, ways paths) *fakePeer {
	return &fakePeer{Observed: Observed{Key: key}, paths: ways, rtt: 20 * time.Millisecond}
}

func TestConnectsToFirstCandidate(t *testing.T) {
	for _, key := range []wgkey.Public{big, small} {
		p := peerOf(key, paths{a: both})
		story(t, func(t *testing.T, s *world) {
			s.m.SetCandidates(set{key: {a, b}})
			s.pass(100 * time.Millisecond)
			s.change(func() {
				if p.LastHandshake.IsZero() || !slices.Equal(p.moves, []netip.AddrPort{a}) {
					t.Errorf("key %d: after 0.1 s handshake %v, moves %v", key[0], p.LastHandshake, p.moves)
				}
			})
			s.pass(time.Second)
			s.wantState(key, Up)
		}, p)
	}
}

// Initiations that crossed were both dropped: WireGuard alone would wait 5 s.
func TestCrossedInitiations(t *testing.T) {
	for _, key := range []wgkey.Public{big, small} {
		p := peerOf(key, paths{a: both, b: both})
		p.crossing = 1
		story(t, func(t *testing.T, s *world) {
			s.m.SetCandidates(set{key: {a, b}})
			s.pass(5500 * time.Millisecond)
			s.wantState(key, Up)
			if slices.Contains(p.moves, b) {
				t.Errorf("moves %v, although the peer is on %v", p.moves, a)
			}
		}, p)
	}
}

// Two idle ends that ask each other at the same moment do not leave the path.
func TestCrossedQuestions(t *testing.T) {
	for _, key := range []wgkey.Public{big, small} {
		p := peerOf(key, paths{a: both, b: both})
		story(t, func(t *testing.T, s *world) {
			s.m.SetCandidates(set{key: {a, b}})
			s.pass(10 * time.Second)
			s.change(func() { p.crossing = 1 })
			s.pass(28 * time.Second)
			s.wantState(key, Up)
			if p.asks != 1 || p.crossing != 0 || slices.Contains(p.moves, b) {
				t.Errorf("%d questions, moves %v", p.asks, p.moves)
			}
		}, p)
	}
}

func TestMovesFromDeadPath(t *testing.T) {
	for _, tc := range []struct {
		name    string
		traffic bool
		keepsUp bool
		within  time.Duration
	}{
		{"traffic", true, false, 15*time.Second + 40*time.Millisecond},
		{"traffic and keepalives", true, true, 15*time.Second + 40*time.Millisecond},
		{"idle", false, true, 34 * time.Second},
	} {
		for phase := range 5 {
			t.Run(fmt.Sprint(tc.name, phase), func(t *testing.T) {
				p := peerOf(big, paths{a: both, b: both})
				p.traffic, p.keepsUp = tc.traffic, tc.keepsUp
				story(t, func(t *testing.T, s *world) {
					s.m.SetCandidates(set{big: {a, b}})
					s.pass(time.Minute + time.Duration(phase)*230*time.Millisecond)
					died := time.Now()
					s.change(func() { p.paths[a] = dead })
					for p.Endpoint != b || time.Since(p.LastHandshake) > time.Second {
						s.pass(10 * time.Millisecond)
						if time.Since(died) > time.Minute {
							t.Fatal("still not moved after a minute")
						}
					}
					if took := time.Since(died); took > tc.within {
						t.Errorf("took %v, want %v", took, tc.within)
					}
					s.pass(time.Hour)
					s.wantState(big, Up)
					if want := []netip.AddrPort{a, b}; !slices.Equal(p.moves, want) {
						t.Errorf("moves %v, want %v", p.moves, want)
					}
					var back Event
					for _, e := range s.events {
						if e.To == Up && e.From == Down {
							back = e
						}
					}
					if back.Old != a || back.New != b || back.Outage < 10*time.Second || back.Outage > tc.within+2*time.Second {
						t.Errorf("event of the recovery: %+v", back)
					}
					if info := s.m.Peers()[big]; info.Endpoint != b || info.Changes[len(info.Changes)-1] != back {
						t.Errorf("info %+v", info)
					}
				}, p)
			})
		}
	}
}

func TestKeepsLivePath(t *testing.T) {
	for _, tc := range []struct {
		name            string
		traffic, keeps  bool
		trickle, answer time.Duration // data of ours every trickle, answered by a passive keepalive
		maxAsks         int
	}{
		{name: "traffic", traffic: true},
		{name: "keepalives", keeps: true},
		{name: "silent stock peer", maxAsks: 4 * 120},
		{name: "data one way", trickle: 13 * time.Second, answer: 10*time.Second + 300*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := peerOf(big, paths{a: both, b: both})
			p.traffic, p.keepsUp = tc.traffic, tc.keeps
			story(t, func(t *testing.T, s *world) {
				s.m.SetCandidates(set{big: {b, a}})
				s.pass(2 * time.Second)
				for end := time.Now().Add(4 * time.Hour); time.Now().Before(end); {
					if tc.trickle == 0 {
						s.pass(time.Minute)
						continue
					}
					s.change(func() { p.TxBytes += 96 })
					time.AfterFunc(tc.answer, func() { s.change(func() { p.hear(keepaliveSize) }) })
					s.pass(tc.trickle)
				}
				if len(p.moves) != 1 || p.asks > tc.maxAsks || p.Endpoint != b {
					t.Errorf("%d moves, %d questions, on %v", len(p.moves), p.asks, p.Endpoint)
				}
				if n := len(s.events); n != 2 { // the first move, the first handshake
					t.Errorf("%d events: %+v", n, s.events)
				}
			}, p)
		})
	}
}

// Our packets are lost, the peer's arrive: its keepalives, its data, and the
// handshakes that it starts because it hears nothing.
func TestOneWayPath(t *testing.T) {
	for _, tc := range []struct {
		name   string
		setup  func(p *fakePeer)
		within time.Duration
	}{
		{"keepalives", func(p *fakePeer) { p.traffic, p.keepsUp = true, true }, 40 * time.Second},
		{"handshakes", func(p *fakePeer) { p.traffic, p.calls = true, true }, 15 * time.Second},
		{"idle handshakes", func(p *fakePeer) { p.calls = true }, 15 * time.Second},
		{"handshakes and keepalives", func(p *fakePeer) { p.keepsUp, p.calls = true, true }, 15 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := peerOf(big, paths{a: both, c: both})
			story(t, func(t *testing.T, s *world) {
				s.m.SetCandidates(set{big: {a, b, c}})
				s.pass(time.Minute)
				s.change(func() { p.paths[a] = onlyIn; tc.setup(p) })
				s.pass(tc.within)
				s.wantState(big, Up)
				if want := []netip.AddrPort{a, b, c}; p.Endpoint != c || !slices.Equal(compact(p.moves), want) {
					t.Errorf("on %v, moves %v, want %v", p.Endpoint, p.moves, want)
				}
			}, p)
		})
	}
}

// compact drops the moves to the endpoint in use, which only ask there, and
// what follows from them.
func compact(moves []netip.AddrPort) []netip.AddrPort {
	var list []netip.AddrPort
	for _, m := range moves {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

func TestFlappingPath(t *testing.T) {
	p := peerOf(big, paths{a: both, b: both})
	p.traffic = true
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a, b}})
		s.pass(time.Minute)
		for range 100 { // too short to tell from loss
			s.change(func() { p.paths[a] = dead })
			s.pass(8 * time.Second)
			s.change(func() { p.paths[a] = both })
			s.pass(8 * time.Second)
		}
		if len(p.moves) != 1 {
			t.Errorf("moves %v", p.moves)
		}
		for range 100 { // too long to sit out, but it is left once
			s.change(func() { p.paths[a] = dead })
			s.pass(20 * time.Second)
			s.change(func() { p.paths[a] = both })
			s.pass(20 * time.Second)
		}
		if want := []netip.AddrPort{a, b}; !slices.Equal(p.moves, want) {
			t.Errorf("moves %v, want %v", p.moves, want)
		}
	}, p)
}

func TestAllDead(t *testing.T) {
	for _, connected := range []bool{true, false} {
		t.Run(fmt.Sprint("connected before ", connected), func(t *testing.T) {
			p := peerOf(big, paths{})
			p.traffic = true
			story(t, func(t *testing.T, s *world) {
				s.change(func() { p.paths[a] = direction{connected, connected} })
				s.m.SetCandidates(set{big: {a, b, c}})
				s.pass(time.Minute)
				s.change(func() { p.paths[a] = dead; p.moves = nil })
				s.pass(time.Hour)
				s.wantState(big, Down)
				// The first rounds take 2, 4, 8 and 16 s a candidate, then it is two a minute.
				if n := len(p.moves); n < 100 || n > 135 {
					t.Errorf("%d moves in an hour", n)
				}
				for i, to := range p.moves[1:] {
					if to == p.moves[i] {
						t.Errorf("move %d is to %v again", i+1, to)
					}
				}
				if info := s.m.Peers()[big]; len(info.Changes) > 8 {
					t.Errorf("%d changes kept: %+v", len(info.Changes), info.Changes)
				}
				s.change(func() { p.paths[c] = both })
				s.pass(3*30*time.Second + time.Second)
				s.wantState(big, Up)
			}, p)
		})
	}
}

func TestSingleCandidateIsAskedNotMoved(t *testing.T) {
	p := peerOf(big, paths{a: both})
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a}})
		s.pass(time.Minute)
		s.change(func() { p.paths[a] = dead; p.asks = 0 })
		s.pass(time.Hour)
		s.wantState(big, Down)
		if len(p.moves) != 1 || p.asks < 100 || p.asks > 130 {
			t.Errorf("moves %v, %d questions", p.moves, p.asks)
		}
		s.change(func() { p.paths[a] = both })
		s.pass(31 * time.Second)
		s.wantState(big, Up)
	}, p)
}

func TestPeerBehindNAT(t *testing.T) {
	p := peerOf(big, paths{x: both})
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {}})
		s.pass(time.Hour)
		s.wantState(big, Unknown)
		if p.asks+len(p.moves) != 0 {
			t.Errorf("asked %d times, moves %v", p.asks, p.moves)
		}
		s.change(func() { p.source, p.calls, p.keepsUp = x, true, true })
		s.pass(7 * time.Second)
		s.wantState(big, Up)
		s.pass(time.Hour)
		s.wantState(big, Up)
		if len(p.moves) != 0 || p.Endpoint != x {
			t.Errorf("moves %v, on %v", p.moves, p.Endpoint)
		}
	}, p)
}

// A roamed endpoint wins while it is alive, is left when it is not, and is
// tried again.
func TestRoamedEndpoint(t *testing.T) {
	p := peerOf(big, paths{a: both, x: both})
	p.traffic = true
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a, b}})
		s.pass(time.Minute)
		s.change(func() { p.source = x })
		s.pass(time.Minute)
		s.m.SetCandidates(set{big: {b, c}})
		s.pass(time.Hour)
		s.wantState(big, Up)
		if len(p.moves) != 1 || p.Endpoint != x {
			t.Fatalf("moves %v, on %v", p.moves, p.Endpoint)
		}
		s.change(func() { p.paths[x], p.paths[a] = dead, dead })
		s.pass(22 * time.Second)
		s.wantState(big, Down)
		s.change(func() { p.paths[x] = both })
		s.pass(16 * time.Second)
		s.wantState(big, Up)
		if want := []netip.AddrPort{a, b, c, x}; !slices.Equal(compact(p.moves), want) || p.Endpoint != x {
			t.Errorf("moves %v, want %v; on %v", p.moves, want, p.Endpoint)
		}
	}, p)
}

// A peer that is given up, and heard from an address that we do not know, is
// asked there; once in a round if it does not hear us there.
func TestHeardWhileDown(t *testing.T) {
	for _, way := range []direction{both, onlyIn} {
		t.Run(fmt.Sprint(way), func(t *testing.T) {
			p := peerOf(big, paths{a: both})
			p.traffic = true
			story(t, func(t *testing.T, s *world) {
				s.m.SetCandidates(set{big: {a, b}})
				s.pass(time.Minute)
				s.change(func() { p.paths[a] = dead })
				s.pass(10 * time.Minute)
				s.wantState(big, Down)
				p.moves = nil
				s.change(func() { p.paths[x] = way; p.source, p.streams, p.traffic = x, true, false })
				s.pass(3 * time.Second)
				if !slices.Contains(p.moves, x) {
					t.Errorf("moves %v", p.moves)
				}
				if way == both {
					if s.wantState(big, Up); p.Endpoint != x {
						t.Errorf("on %v", p.Endpoint)
					}
					return
				}
				s.pass(2 * time.Minute)
				s.wantState(big, Down)
				if !slices.Contains(p.moves, a) || !slices.Contains(p.moves, b) {
					t.Errorf("moves %v leave candidates out", p.moves)
				}
			}, p)
		})
	}
}

func TestCandidatesChange(t *testing.T) {
	p := peerOf(big, paths{a: both, b: both, c: both})
	p.traffic = true
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a, b}})
		s.pass(time.Minute)
		s.m.SetCandidates(set{big: {b, a, a}}) // another order, and a duplicate: no reason to move
		s.pass(time.Minute)
		if len(p.moves) != 1 {
			t.Fatalf("moves %v", p.moves)
		}
		s.m.SetCandidates(set{big: {c, b}})
		s.pass(100 * time.Millisecond)
		if want := []netip.AddrPort{a, c}; !slices.Equal(p.moves, want) || time.Since(p.LastHandshake) > time.Second {
			t.Fatalf("moves %v, want %v; handshake %v ago", p.moves, want, time.Since(p.LastHandshake))
		}
		s.pass(2 * time.Second)
		s.wantState(big, Up)

		s.m.SetCandidates(set{big: {}}) // nothing better: stay
		s.pass(time.Minute)
		s.m.SetCandidates(set{big: {b}}) // it is on none of the last list: as good as roamed
		s.pass(time.Minute)
		s.wantState(big, Up)
		if len(p.moves) != 2 {
			t.Errorf("moves %v", p.moves)
		}

		s.change(func() { p.paths[b], p.paths[c] = dead, dead })
		s.pass(time.Hour) // long pauses between questions by now
		s.wantState(big, Down)
		s.m.SetCandidates(set{big: {b, a}})
		s.pass(100 * time.Millisecond)
		if p.Endpoint != a || time.Since(p.LastHandshake) > time.Second {
			t.Errorf("a new candidate was not asked at once: on %v", p.Endpoint)
		}
	}, p)
}

// Sets that follow one another faster than initiations may.
func TestCandidatesChangeFast(t *testing.T) {
	p := peerOf(big, paths{a: both, b: both})
	story(t, func(t *testing.T, s *world) {
		for range 20 {
			s.m.SetCandidates(set{big: {a}})
			s.pass(time.Millisecond)
			s.m.SetCandidates(set{big: {b}})
			s.pass(time.Millisecond)
		}
		s.pass(5 * time.Second)
		s.wantState(big, Up)
		if p.Endpoint != b {
			t.Errorf("on %v", p.Endpoint)
		}
	}, p)
}

func TestForgetsRemovedPeer(t *testing.T) {
	p, q := peerOf(big, paths{a: both}), peerOf(small, paths{b: both})
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a}, small: {b}})
		s.pass(time.Minute)
		s.m.SetCandidates(set{small: {b}})
		s.pass(time.Second)
		s.change(func() { asked := p.asks; p.paths[a] = dead; delete(s.peers, big); p.asks = asked })
		s.pass(time.Hour)
		if _, ok := s.m.Peers()[big]; ok || len(s.m.peers) != 1 || p.asks > 2 {
			t.Errorf("peers %+v, %d questions", s.m.Peers(), p.asks)
		}
		s.wantState(small, Up)
	}, p, q)
}

// A peer that is taken off the device and put back starts anew.
func TestDeviceForgetsPeer(t *testing.T) {
	p := peerOf(big, paths{a: both})
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a}})
		s.pass(time.Minute)
		s.change(func() { delete(s.peers, big) })
		s.pass(2 * time.Second)
		s.wantState(big, Unknown)
		fresh := peerOf(big, paths{a: both})
		s.change(func() { s.peers[big] = fresh })
		s.pass(3 * time.Second)
		s.wantState(big, Up)
		again := peerOf(big, paths{a: both}) // replaced between two readings
		s.change(func() { s.peers[big] = again })
		s.pass(3 * time.Second)
		s.wantState(big, Up)
		if !slices.Equal(again.moves, []netip.AddrPort{a}) {
			t.Errorf("moves %v", again.moves)
		}
	}, p)
}

// Time in which nothing was seen is not silence, and a step of the wall clock
// is not a handshake more than once.
func TestBlindTimeAndClockSteps(t *testing.T) {
	p := peerOf(big, paths{a: both, b: both})
	p.traffic = true
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a, b}})
		s.pass(time.Minute)
		s.change(func() { s.err = errors.New("device is busy"); p.traffic = false })
		s.pass(10 * time.Minute)
		s.change(func() { s.err = nil })
		s.pass(5 * time.Second)
		s.wantState(big, Up)
		s.change(func() { p.LastHandshake = p.LastHandshake.Add(-5 * time.Hour); p.traffic = true })
		s.pass(time.Minute)
		s.change(func() { p.LastHandshake = p.LastHandshake.Add(10 * time.Hour) })
		s.pass(time.Minute)
		s.wantState(big, Up)
		if len(p.moves) != 1 || p.asks != 0 {
			t.Errorf("moves %v, %d questions", p.moves, p.asks)
		}
	}, p)
}

// After a pause of this process a peer still gets its time to answer.
func TestPauseIsNotSilence(t *testing.T) {
	m := New(Config{Self: self, Log: quiet, Peers: func() ([]Observed, error) { return nil, nil }})
	m.SetCandidates(set{})
	m.check()
	m.read = m.read.Add(-time.Hour)
	before := m.clock
	if m.check(); m.clock-before > 2*interval {
		t.Errorf("a pause of an hour counts as %v", m.clock-before)
	}
}

// A device that is away is no news to tell; one that cannot be read is, once.
func TestNoDevice(t *testing.T) {
	var log bytes.Buffer
	err := ErrNoDevice
	m := New(Config{Self: self, Log: slog.New(slog.NewTextHandler(&log, nil)), Peers: func() ([]Observed, error) { return nil, err }})
	m.SetCandidates(set{})
	m.check()
	if log.Len() > 0 {
		t.Errorf("without a device: %s", &log)
	}
	err = errors.New("broken")
	m.check()
	m.check()
	if strings.Count(log.String(), "no path is watched") != 1 {
		t.Errorf("a device that cannot be read: %s", &log)
	}
}

// Where an initiation cannot be sent nobody waits for an answer to it.
func TestMoveFails(t *testing.T) {
	p := peerOf(big, paths{c: both})
	story(t, func(t *testing.T, s *world) {
		move := s.m.cfg.Move
		s.m.cfg.Move = func(key wgkey.Public, to netip.AddrPort) error {
			err := move(key, to)
			if to != c {
				err = errors.New("network is unreachable")
			}
			return err
		}
		s.m.SetCandidates(set{big: {a, b, c}})
		s.pass(3500 * time.Millisecond)
		s.wantState(big, Up)
	}, p)
}

// Without any route each candidate is asked once a second, until there is one.
func TestNoRoute(t *testing.T) {
	p := peerOf(big, paths{a: both, b: both})
	story(t, func(t *testing.T, s *world) {
		s.m.SetCandidates(set{big: {a, b}})
		s.pass(time.Minute)
		s.wantState(big, Up)
		move, ask := s.m.cfg.Move, s.m.cfg.Ask
		var log bytes.Buffer
		down := func(to string) error { return errors.New(to + ": network is unreachable") }
		s.change(func() {
			p.paths[a], p.paths[b] = dead, dead
			s.m.cfg.Move = func(_ wgkey.Public, to netip.AddrPort) error { return down(to.String()) }
			s.m.cfg.Ask = func(wgkey.Public) error { return down(p.Endpoint.String()) }
			s.m.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		s.pass(5 * time.Minute)
		s.wantState(big, Down)
		if n := strings.Count(log.String(), "cannot ask peer"); n != 2 {
			t.Errorf("%d lines tell why, want one for each candidate:\n%s", n, &log)
		}
		s.change(func() {
			p.paths[a], p.paths[b] = both, both
			s.m.cfg.Move, s.m.cfg.Ask = move, ask
		})
		s.pass(2100 * time.Millisecond)
		s.wantState(big, Up)
	}, p)
}

// The second of two initiations within 20 ms would be dropped.
func TestStepKeepsSpacing(t *testing.T) {
	now := time.Hour
	seen := Observed{Key: big, Endpoint: a, LastHandshake: time.Unix(9, 0)}
	p, _ := step(now, path{}, seen, []netip.AddrPort{a}, true)
	p, act := step(now, p, seen, []netip.AddrPort{b}, true)
	if act.do != move || p.last.Endpoint != b || p.state != Suspect {
		t.Fatalf("%+v, path %+v", act, p)
	}
	seen.Endpoint = b
	p, act = step(now+24*time.Millisecond, p, seen, []netip.AddrPort{c}, true)
	if act.do != stay {
		t.Errorf("after 24ms %+v", act)
	}
	if p, act = step(now+25*time.Millisecond, p, seen, []netip.AddrPort{c}, true); act.do != move || p.last.Endpoint != c {
		t.Errorf("after 25ms %+v, path %+v", act, p)
	}
}

// A candidate that comes up while an answer is awaited does not end the waiting.
func TestStepOffersNothingToAskedPeer(t *testing.T) {
	now := time.Hour
	seen := Observed{Key: big, Endpoint: a, LastHandshake: time.Unix(9, 0)}
	p, _ := step(now, path{}, seen, []netip.AddrPort{a}, true)
	p, act := step(now+silence, p, seen, []netip.AddrPort{a}, true)
	if act.do != ask || p.state != Up {
		t.Fatalf("%+v, path %+v", act, p)
	}
	if p, act = step(now+silence+100*time.Millisecond, p, seen, []netip.AddrPort{a, b}, true); act.do != stay || p.last.Endpoint != a {
		t.Errorf("%+v, path %+v", act, p)
	}
}

// What we send resets the peer's timer of 25 s for keepalives, and it takes 10 s to
// answer with one: until then it is not silent, but afterwards it is asked.
func TestStepWaitsForWhatIsOwed(t *testing.T) {
	const sentAfter = 24 * time.Second // just before its keepalive
	heard := time.Hour
	seen := Observed{Key: big, Endpoint: a, LastHandshake: time.Unix(9, 0)}
	p, _ := step(heard, path{}, seen, []netip.AddrPort{a}, true)
	seen.TxBytes += 80 // an echo
	for at := sentAfter; at < sentAfter+owed; at += time.Second {
		var act action
		if p, act = step(heard+at, p, seen, []netip.AddrPort{a}, true); act.do != stay || p.state != Up {
			t.Fatalf("after %v %+v, path %+v", at, act, p)
		}
	}
	answered := seen
	answered.RxBytes += keepaliveSize
	if p, act := step(heard+sentAfter+owed, p, answered, []netip.AddrPort{a}, true); act.do != stay || p.heard != heard+sentAfter+owed {
		t.Errorf("answered: %+v, path %+v", act, p)
	}
	if p, act := step(heard+sentAfter+owed, p, seen, []netip.AddrPort{a}, true); act.do != ask {
		t.Errorf("not answered: %+v, path %+v", act, p)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[uint64]bool{0: true, 32: true, 92: true, 124: true, 148: true, 180: true, 240: true, 272: true, 512: true,
		64: false, 96: false, 112: false, 128: false, 160: false, 1312: false, 1452: false, 1 << 40: false} {
		if got := handshakesOnly(n); got != want {
			t.Errorf("handshakesOnly(%d) = %v", n, got)
		}
	}
	for n, want := range map[uint64]bool{0: false, 148: true, 296: true, 444: false, 180: false, 92: false, 32: false} {
		if got := initiationsOnly(n); got != want {
			t.Errorf("initiationsOnly(%d) = %v", n, got)
		}
	}
}

func TestStateText(t *testing.T) {
	for s, want := range map[State]string{Unknown: "unknown", Up: "up", Suspect: "suspect", Down: "down", 9: "state 9"} {
		if text, err := s.MarshalText(); string(text) != want || err != nil {
			t.Errorf("%d is %q, %v; want %q", uint8(s), text, err, want)
		}
	}
}
