package peerlink

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	here  = netip.MustParseAddrPort("[fdcc::1]:8786")
	peerA = netip.MustParseAddr("fdcc::a")
	peerB = netip.MustParseAddr("fdcc::b")
)

// A wire is a UDP socket without a network.
type wire struct {
	in     chan arrival
	closed chan struct{}
	refuse error // of all writes

	mu  sync.Mutex // guards out
	out []departure
}

type arrival struct {
	from netip.AddrPort
	data []byte
}

type departure struct {
	at     time.Duration // since the wire was made
	to     netip.AddrPort
	notice Notice
}

func newWire() *wire { return &wire{in: make(chan arrival), closed: make(chan struct{})} }

func (w *wire) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case a := <-w.in:
		return copy(b, a.data), a.from, nil
	case <-w.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

// synctest's clock starts there.
var midnight = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (w *wire) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if w.refuse != nil {
		return 0, w.refuse
	}
	n, err := parseNotice(b)
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, departure{time.Since(midnight), to, n})
	return len(b), nil
}

func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func (w *wire) Close() error { close(w.closed); return nil }

func linkOf(peers ...netip.Addr) *Link {
	return newLink(Config{Addr: here, Peers: func() []netip.Addr { return peers }, Log: slog.New(slog.DiscardHandler)}, sockets{})
}

// sent runs tell beside the sender, for a second more, and returns what was sent.
func sent(t *testing.T, l *Link, w *wire, tell func()) []departure {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.send(ctx, w) }()
	synctest.Wait()
	tell()
	time.Sleep(time.Second)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(l.outbox) > 0 {
		t.Errorf("left in the outbox: %v", l.outbox)
	}
	return w.out
}

func TestSendCoalesces(t *testing.T) {
	const ms = time.Millisecond
	at := func(d time.Duration, n Notice) departure {
		return departure{d, netip.AddrPortFrom(peerA, here.Port()), n}
	}
	for _, c := range []struct {
		name string
		tell func(l *Link)
		want []departure
	}{
		{"one, and once more", func(l *Link) { l.Tell(Notice{writerA, 5}) },
			[]departure{at(0, Notice{writerA, 5}), at(100*ms, Notice{writerA, 5})}},
		{"200 within 30 ms", func(l *Link) {
			for v := range int64(200) {
				l.Tell(Notice{writerA, v + 1})
				synctest.Wait()
				time.Sleep(150 * time.Microsecond)
			}
		}, []departure{at(0, Notice{writerA, 1}), at(10*ms, Notice{writerA, 67}), at(20*ms, Notice{writerA, 134}), at(30*ms, Notice{writerA, 200}), at(130*ms, Notice{writerA, 200})}},
		{"older and equal ones", func(l *Link) {
			l.Tell(Notice{writerA, 5})
			synctest.Wait()
			time.Sleep(20 * ms)
			l.Tell(Notice{writerA, 4})
			l.Tell(Notice{writerA, 5})
		}, []departure{at(0, Notice{writerA, 5}), at(100*ms, Notice{writerA, 5})}},
		{"news before the repetition", func(l *Link) {
			l.Tell(Notice{writerA, 5})
			synctest.Wait()
			time.Sleep(60 * ms)
			l.Tell(Notice{writerA, 6})
		}, []departure{at(0, Notice{writerA, 5}), at(60*ms, Notice{writerA, 6}), at(160*ms, Notice{writerA, 6})}},
		{"news right after the repetition", func(l *Link) {
			l.Tell(Notice{writerA, 5})
			synctest.Wait()
			time.Sleep(101 * ms)
			l.Tell(Notice{writerA, 6})
		}, []departure{at(0, Notice{writerA, 5}), at(100*ms, Notice{writerA, 5}), at(110*ms, Notice{writerA, 6}), at(210*ms, Notice{writerA, 6})}},
		{"none without writer or version", func(l *Link) { l.Tell(Notice{Version: 5}); l.Tell(Notice{Writer: writerA}) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, w := linkOf(peerA, here.Addr()), newWire() // not itself
				if got := sent(t, l, w, func() { c.tell(l) }); !slices.Equal(got, c.want) {
					t.Errorf("sent\n%v, want\n%v", got, c.want)
				}
			})
		})
	}
}

func TestSendToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := linkOf(peerA, peerB), newWire()
		got := sent(t, l, w, func() { l.Tell(Notice{writerA, 1}); l.Tell(Notice{writerB, 2}) })
		count := map[departure]int{}
		for _, d := range got {
			count[d]++
		}
		for _, p := range []netip.Addr{peerA, peerB} {
			for _, n := range []Notice{{writerA, 1}, {writerB, 2}} {
				for _, at := range []time.Duration{0, again} {
					if d := (departure{at, netip.AddrPortFrom(p, here.Port()), n}); count[d] != 1 {
						t.Errorf("%v: %d times", d, count[d])
					}
				}
			}
		}
		if s := l.Stats(); len(got) != 8 || s.Sent != 8 || s.Unsent != 0 {
			t.Errorf("%d datagrams, %+v", len(got), s)
		}
	})
}

// Without a route nothing is sent, nothing is logged and nothing piles up.
func TestSendRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := linkOf(peerA, peerB), newWire()
		w.refuse = errors.New("network is unreachable")
		sent(t, l, w, func() { l.Tell(Notice{writerA, 1}) })
		if s := l.Stats(); s.Sent != 0 || s.Unsent != 4 {
			t.Errorf("%+v", s)
		}
	})
}

// Nobody sends, and Tell neither blocks nor grows without bound.
func TestTellWithoutSender(t *testing.T) {
	l := linkOf(peerA)
	for i := range 3 * maxTelling {
		l.Tell(Notice{[16]byte{byte(i), byte(i >> 8), 1}, 1})
	}
	if len(l.outbox) != maxTelling || l.Stats().Dropped != 2*maxTelling {
		t.Errorf("%d kept, %+v", len(l.outbox), l.Stats())
	}
}

// What was told while the sockets were away goes out when they are back.
func TestSendAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := linkOf(peerA), newWire()
		l.Tell(Notice{writerA, 3})
		<-l.wake // by the sender that just ended
		if got := sent(t, l, w, func() {}); len(got) != 2 || got[0].notice.Version != 3 {
			t.Errorf("sent %v", got)
		}
	})
}

// receiving runs send beside the receiver, which hears from peerA and peerB.
func receiving(t *testing.T, l *Link, run func(from func(src netip.Addr, data []byte))) (heard map[netip.Addr]int) {
	heard = map[netip.Addr]int{}
	l.cfg.Heard = func(from netip.Addr, n Notice) { heard[from]++ }
	w := newWire()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.receive(ctx, w) }()
	run(func(src netip.Addr, data []byte) { w.in <- arrival{netip.AddrPortFrom(src, 40000), data} })
	synctest.Wait()
	cancel()
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return heard
}

func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := Notice{writerA, 9}.append(nil)
		l := linkOf(peerA, peerB)
		heard := receiving(t, l, func(from func(netip.Addr, []byte)) {
			from(peerA, good)
			from(netip.MustParseAddr("fdcc::c"), good)
			from(netip.MustParseAddr("2001:db8::a"), good)
			from(peerB, nil)
			from(peerB, []byte("GET / HTTP/1.1\r\n\r\n"))
			from(peerB, append(slices.Clone(good), make([]byte, 3000)...))
			from(peerB, []byte("jiji\x02whatever"))
			from(peerB, good)
		})
		want := Stats{Heard: 2, Strangers: 2, Malformed: 3, Unknown: 1}
		if got := l.Stats(); got != want || heard[peerA] != 1 || heard[peerB] != 1 {
			t.Errorf("%+v, want %+v; heard %v", got, want, heard)
		}
	})
}

// A member that floods takes nothing from the others, good notices or garbage.
func TestReceiveFlood(t *testing.T) {
	for _, data := range [][]byte{Notice{writerA, 9}.append(nil), []byte("garbage")} {
		synctest.Test(t, func(t *testing.T) {
			l := linkOf(peerA, peerB)
			heard := receiving(t, l, func(from func(netip.Addr, []byte)) {
				for range 10_000 { // within one instant
					from(peerA, data)
				}
				time.Sleep(time.Second)
				for range 10_000 {
					from(peerA, data)
				}
				from(peerB, Notice{writerB, 1}.append(nil))
			})
			s := l.Stats()
			if s.Limited != 20_000-noticeBurst-noticeRate || s.Heard+s.Malformed != noticeBurst+noticeRate+1 || heard[peerB] != 1 {
				t.Errorf("%+v, heard %v", s, heard)
			}
		})
	}
}

// All members together are bounded, too.
func TestReceiveFloodOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []netip.Addr
		for i := range 100 {
			all = append(all, netip.AddrFrom16([16]byte{0xfd, 0xcc, 15: byte(i + 1)}))
		}
		l := linkOf(all...)
		receiving(t, l, func(from func(netip.Addr, []byte)) {
			for _, a := range all {
				for range noticeBurst {
					from(a, Notice{writerA, 9}.append(nil))
				}
			}
		})
		if s := l.Stats(); s.Heard != noticesBurst || s.Limited != 100*noticeBurst-noticesBurst {
			t.Errorf("%+v", s)
		}
	})
}

// Who leaves is not believed for long, and who joins is soon; none of those
// that stay gets a new allowance by it.
func TestMembersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := []netip.Addr{peerA}
		ms := newMembers(func() []netip.Addr { return list })
		a := ms.find(peerA)
		list = []netip.Addr{peerA, peerB}
		time.Sleep(membersAge)
		if ms.find(peerB) == nil || ms.find(peerA) != a {
			t.Error("a newcomer is not there, or another one is anew")
		}
		list = nil
		time.Sleep(membersAge)
		if ms.find(peerA) != nil || ms.find(peerB) != nil {
			t.Error("who left is still there")
		}
	})
}

func TestConnectionsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []netip.Addr
		for i := range 100 {
			all = append(all, netip.AddrFrom16([16]byte{0xfd, 0xcc, 15: byte(i + 1)}))
		}
		ms := newMembers(func() []netip.Addr { return all })
		var leaves []func()
		count := map[refusal]int{}
		for range 2 {
			for _, a := range all {
				for range maxPerPeer {
					why, leave := ms.enter(a)
					if count[why]++; leave != nil {
						leaves = append(leaves, leave)
					}
				}
			}
		}
		if count[admitted] != maxConns || count[tooManyAt] != 2*100*maxPerPeer-maxConns {
			t.Errorf("%v", count)
		}
		for _, leave := range leaves {
			leave()
		}
		clear(count)
		time.Sleep(10 * time.Second)
		for range 100 {
			why, leave := ms.enter(all[0])
			if count[why]++; leave != nil {
				leave()
			}
		}
		if why, _ := ms.enter(netip.MustParseAddr("2001:db8::1")); why != stranger || count[admitted] != requestBurst || count[tooOften] != 100-requestBurst || ms.conns != 0 {
			t.Errorf("%v, %v, %d connections", why, count, ms.conns)
		}
	})
}
