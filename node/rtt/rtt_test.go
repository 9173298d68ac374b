package rtt

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

var (
	near = netip.MustParseAddr("10.210.1.1")
	far  = netip.MustParseAddr("10.210.2.1")
	lan  = netip.MustParseAddrPort("192.0.2.1:51820")
	dsl  = netip.MustParseAddrPort("198.51.100.1:51820")
)

// A wire is the network as a Conn: what is sent is answered by answer, which may
// alter the answer, after the delay that it returns; 0: never.
type wire struct {
	mu     sync.Mutex // guards what follows
	answer func(to netip.Addr, reply []byte) time.Duration
	fail   error // of WriteTo
	sent   []sent

	in     chan arriving
	closed chan struct{}
	once   sync.Once
}

type sent struct {
	at time.Time
	to netip.Addr
}

type arriving struct {
	from netip.Addr
	data []byte
}

func newWire(answer func(netip.Addr, []byte) time.Duration) *wire {
	return &wire{answer: answer, in: make(chan arriving, 8), closed: make(chan struct{})}
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case a := <-w.in:
		return copy(b, a.data), &net.IPAddr{IP: a.from.AsSlice()}, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	}
}

func (w *wire) WriteTo(b []byte, to net.Addr) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	addr, _ := netip.AddrFromSlice(to.(*net.IPAddr).IP)
	w.sent = append(w.sent, sent{time.Now(), addr})
	if w.fail != nil {
		return 0, w.fail
	}
	m, err := icmp.ParseMessage(1, b)
	if err != nil || m.Type != ipv4.ICMPTypeEcho {
		return 0, errors.New("no echo")
	}
	m.Type = ipv4.ICMPTypeEchoReply
	reply, err := m.Marshal(nil)
	if err != nil {
		return 0, err
	}
	if delay := w.answer(addr, reply); delay > 0 {
		w.arrive(delay, addr, reply)
	}
	return len(b), nil
}

func (w *wire) arrive(delay time.Duration, from netip.Addr, data []byte) {
	time.AfterFunc(delay, func() {
		select {
		case w.in <- arriving{from, data}:
		case <-w.closed:
		}
	})
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// set changes how the wire answers.
func (w *wire) set(answer func(netip.Addr, []byte) time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// count returns how many echoes went to an address.
func (w *wire) count(to netip.Addr) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sent {
		if s.to == to {
			n++
		}
	}
	return n
}

func always(d time.Duration) func(netip.Addr, []byte) time.Duration {
	return func(netip.Addr, []byte) time.Duration { return d }
}

// run runs a Prober of targets, whose Times are set by it whenever that changes.
func run(t *testing.T, w *wire, targets func() []Target) (p *Prober, reports *int) {
	reports = new(int)
	p = New(w, Config{Targets: targets, Report: func() { *reports++ }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	go func() {
		if err := p.Run(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	return p, reports
}

func fixed(list ...Target) func() []Target { return func() []Target { return list } }

func wantTimes(t *testing.T, p *Prober, want map[netip.Addr]time.Duration) {
	t.Helper()
	synctest.Wait()
	if got := p.Times(); !maps.Equal(got, want) {
		t.Errorf("times are %v, want %v", got, want)
	}
}

func TestProberMeasuresEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(func(to netip.Addr, _ []byte) time.Duration {
			return map[netip.Addr]time.Duration{near: 300 * time.Microsecond, far: 40 * time.Millisecond}[to]
		})
		silent := netip.MustParseAddr("10.210.3.1")
		p, reports := run(t, w, fixed(Target{near, lan}, Target{far, dsl}, Target{silent, lan}))
		time.Sleep(4 * time.Second)
		wantTimes(t, p, map[netip.Addr]time.Duration{near: 300 * time.Microsecond, far: 40 * time.Millisecond})
		time.Sleep(10 * time.Minute)
		wantTimes(t, p, map[netip.Addr]time.Duration{near: 300 * time.Microsecond, far: 40 * time.Millisecond})
		if *reports < 1 || *reports > 2 {
			t.Errorf("%d reports of two times that never change", *reports)
		}
		for _, a := range []netip.Addr{near, far, silent} {
			if n := w.count(a); n < 24 || n > 45 {
				t.Errorf("%d echoes to %v in 10 minutes, want about 30", n, a)
			}
		}
	})
}

// TestProberSpreadsEchoes: 255 peers that appear at once make no burst, and soon are
// evenly spread.
func TestProberSpreadsEchoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(always(time.Millisecond))
		var list []Target
		for i := range 255 {
			list = append(list, Target{netip.AddrFrom4([4]byte{10, 210, byte(i + 1), 1}), lan})
		}
		p, _ := run(t, w, fixed(list...))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := len(p.Times()); n != len(list) {
			t.Errorf("%d peers have a time, want %d", n, len(list))
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		perSecond := map[int]int{}
		for _, s := range w.sent {
			perSecond[int(s.at.Sub(w.sent[0].at)/time.Second)]++
		}
		for second, n := range perSecond {
			if n > most || second > 120 && n > 40 { // then 12.75 in the mean, 3.6 is a standard deviation
				t.Errorf("%d echoes in second %d, want them spread", n, second)
			}
		}
		if n := len(w.sent); n > 255*(3+20) {
			t.Errorf("%d echoes in 5 minutes, want about %d", n, 255*(3+15))
		}
	})
}

// TestProberForgets: what is no target is neither asked nor told of.
func TestProberForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(always(5 * time.Millisecond))
		var mu sync.Mutex
		list := []Target{{near, lan}, {far, dsl}}
		p, _ := run(t, w, func() []Target {
			mu.Lock()
			defer mu.Unlock()
			return list
		})
		time.Sleep(5 * time.Second)
		wantTimes(t, p, map[netip.Addr]time.Duration{near: 5 * time.Millisecond, far: 5 * time.Millisecond})
		mu.Lock()
		list = list[:1]
		mu.Unlock()
		time.Sleep(2 * time.Second)
		wantTimes(t, p, map[netip.Addr]time.Duration{near: 5 * time.Millisecond})
		asked := w.count(far)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := w.count(far); n != asked {
			t.Errorf("%d echoes to a peer that is down", n-asked)
		}
	})
}

// TestProberFollowsThePath: a shorter one at once, a longer one when all samples say
// so, another one with its first sample, and none when nothing is answered any more.
func TestProberFollowsThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		is := func(d time.Duration) map[netip.Addr]time.Duration { return map[netip.Addr]time.Duration{near: d} }
		w := newWire(always(20 * time.Millisecond))
		var mu sync.Mutex
		path := lan
		p, _ := run(t, w, func() []Target {
			mu.Lock()
			defer mu.Unlock()
			return []Target{{near, path}}
		})
		time.Sleep(2 * time.Minute)
		wantTimes(t, p, is(20*time.Millisecond))
		w.set(always(2 * time.Millisecond))
		time.Sleep(27 * time.Second)
		wantTimes(t, p, is(2*time.Millisecond))
		w.set(always(50 * time.Millisecond))
		time.Sleep(45 * time.Second)
		wantTimes(t, p, is(2*time.Millisecond))
		time.Sleep(90 * time.Second)
		wantTimes(t, p, is(50*time.Millisecond))
		mu.Lock()
		path = dsl
		mu.Unlock()
		w.set(always(80 * time.Millisecond))
		time.Sleep(4 * time.Second)
		wantTimes(t, p, is(80*time.Millisecond))
		w.set(always(0))
		time.Sleep(4 * time.Minute)
		wantTimes(t, p, map[netip.Addr]time.Duration{})
	})
}

// TestProberRepeatsALostEcho once, soon.
func TestProberRepeatsALostEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(always(time.Millisecond))
		run(t, w, fixed(Target{near, lan}))
		time.Sleep(time.Minute)
		synctest.Wait()
		w.set(always(0))
		w.mu.Lock()
		before := len(w.sent)
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.sent) < before+4 {
			t.Fatalf("%d echoes in two minutes, want 4 or more", len(w.sent)-before)
		}
		var gaps []time.Duration
		for i := before; i < before+3; i++ {
			gaps = append(gaps, w.sent[i+1].at.Sub(w.sent[i].at))
		}
		if gaps[0] > timeout+2*brief || gaps[1] < 15*time.Second || gaps[2] < 15*time.Second {
			t.Errorf("after a lost echo the next ones come after %v, want one within 4s", gaps)
		}
	})
}

// TestProberTakesNothingElse: only the answer to the very echo that waits counts.
func TestProberTakesNothingElse(t *testing.T) {
	for name, alter := range map[string]func(w *wire, reply []byte) time.Duration{
		"late":           func(*wire, []byte) time.Duration { return timeout },
		"another type":   func(_ *wire, b []byte) time.Duration { b[0] = 8; return 1 },
		"another code":   func(_ *wire, b []byte) time.Duration { b[1] = 1; return 1 },
		"another id":     func(_ *wire, b []byte) time.Duration { b[4]++; return 1 },
		"another number": func(_ *wire, b []byte) time.Duration { b[7]++; return 1 },
		"another nonce":  func(_ *wire, b []byte) time.Duration { b[len(b)-1]++; return 1 },
		"cut":            func(w *wire, b []byte) time.Duration { w.arrive(1, near, b[:len(b)-1]); return 0 },
		"long":           func(w *wire, b []byte) time.Duration { w.arrive(1, near, append(b, 0)); return 0 },
		"nothing":        func(w *wire, b []byte) time.Duration { w.arrive(1, near, nil); return 0 },
		"another sender": func(w *wire, b []byte) time.Duration { w.arrive(1, far, b); return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w *wire
				w = newWire(func(to netip.Addr, reply []byte) time.Duration {
					if to == far {
						return 0
					}
					return alter(w, reply)
				})
				p, _ := run(t, w, fixed(Target{near, lan}, Target{far, lan}))
				time.Sleep(time.Minute)
				wantTimes(t, p, nil)
				if w.count(near) < 3 {
					t.Errorf("%d echoes, want 3 or more", w.count(near))
				}
			})
		})
	}
}

// TestProberGoesOn where echoes cannot be sent, as while there is no interface.
func TestProberGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(always(time.Millisecond))
		w.fail = errors.New("network is unreachable")
		p, _ := run(t, w, fixed(Target{near, lan}))
		time.Sleep(time.Minute)
		wantTimes(t, p, nil)
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(27 * time.Second)
		wantTimes(t, p, map[netip.Addr]time.Duration{near: time.Millisecond})
	})
}

func TestLeast(t *testing.T) {
	for want, samples := range map[time.Duration][kept]time.Duration{
		0: {},
		1: {3, 0, 1, 2, 0},
		7: {0, 0, 0, 0, 7},
	} {
		if got := (&peer{samples: samples}).least(); got != want {
			t.Errorf("%v: %v, want %v", samples, got, want)
		}
	}
}

// FuzzParse: what is taken for an answer is one to the letter.
func FuzzParse(f *testing.F) {
	m := icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: &icmp.Echo{ID: 1, Seq: 2, Data: make([]byte, 16)}}
	b, err := m.Marshal(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:7])
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parse(b)
		if !ok {
			return
		}
		again, err := e.message()
		if err != nil || len(again) != len(b) || b[0] != 0 || b[1] != 0 || string(again[4:]) != string(b[4:]) {
			t.Errorf("%x is taken for the answer to %x", b, again)
		}
	})
}

// TestProberOnASocket measures this machine, whose kernel answers.
func TestProberOnASocket(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	conn, err := Listen(loopback)
	if err != nil {
		t.Skipf("no raw socket: %v", err)
	}
	reported := make(chan struct{}, 1)
	var list []Target
	for i := range 5 {
		list = append(list, Target{netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), lan})
	}
	p := New(conn, Config{Targets: fixed(list...), Report: func() {
		select {
		case reported <- struct{}{}:
		default:
		}
	}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ended := make(chan error, 1)
	go func() { ended <- p.Run(t.Context()) }()
	limit := time.After(15 * time.Second)
	for len(p.Times()) < len(list) {
		select {
		case <-reported:
		case <-limit:
			t.Fatalf("within 15s only %v", p.Times())
		}
	}
	t.Logf("%v", p.Times())
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
