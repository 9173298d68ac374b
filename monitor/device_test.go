package monitor

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
	"golang.zx2c4.com/wireguard/device"
)

// A fakeDevice does what wireguard-go does to the figures that the monitor
// reads: it counts messages that are authentic, completes handshakes, and
// roams to where they come from.
type fakeDevice struct {
	t     *testing.T
	mu    sync.Mutex // guards all fields of it and of its peers
	peers map[wgkey.Public]*fakePeer
	err   error // of Peers
}

type direction struct{ out, in bool } // what passes: our packets, the peer's

var (
	both   = direction{out: true, in: true}
	dead   = direction{}
	onlyIn = direction{in: true}
)

type fakePeer struct {
	Observed
	paths    map[netip.AddrPort]direction // by the endpoint; absent: dead
	source   netip.AddrPort               // where its own packets come from
	session  bool
	traffic  bool // we send it data, and it answers
	streams  bool // it sends data that nobody answers
	keepsUp  bool // it sends persistent keepalives
	calls    bool // it initiates every 5 s until it is answered
	rtt      time.Duration
	asks     int
	moves    []netip.AddrPort
	movedAt  []time.Time
	last     time.Time // latest initiation of ours
	crossing int       // how many of our next initiations cross one of its own
}

func newDevice(t *testing.T, peers ...*fakePeer) *fakeDevice {
	d := &fakeDevice{t: t, peers: map[wgkey.Public]*fakePeer{}}
	for _, p := range peers {
		d.peers[p.Key] = p
	}
	return d
}

// run lets d's peers live until the test ends.
func (d *fakeDevice) run() {
	for i := 0; ; i++ {
		select {
		case <-d.t.Context().Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
		d.mu.Lock()
		for _, p := range d.peers {
			p.live(i)
		}
		d.mu.Unlock()
	}
}

// live is what happens to p in the i-th fifth of a second.
func (p *fakePeer) live(i int) {
	here := p.paths[p.Endpoint]
	if p.traffic && p.session {
		p.TxBytes += 132
		if here.out && p.paths[p.source].in {
			p.hear(132)
		}
	}
	if p.streams && p.session && p.paths[p.source].in {
		p.hear(1032)
	}
	if p.session && i%125 == 60 { // 25 s
		p.TxBytes += keepaliveSize
	}
	if p.keepsUp && p.session && i%125 == 0 && p.paths[p.source].in {
		p.hear(keepaliveSize)
	}
	if p.calls && i%25 == 0 && p.paths[p.source].in {
		p.hear(initiationSize)
		p.TxBytes += responseSize
		if p.paths[p.source].out {
			p.hear(keepaliveSize)
			p.LastHandshake, p.session, p.calls = time.Now(), true, false
		}
	}
}

// hear counts n authentic bytes from where p's packets come from.
func (p *fakePeer) hear(n uint64) {
	p.RxBytes += n
	if p.source.IsValid() {
		p.Endpoint = p.source
	}
}

func (d *fakeDevice) Peers() ([]Observed, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Observed
	for _, p := range d.peers {
		list = append(list, p.Observed)
	}
	return list, d.err
}

func (d *fakeDevice) Ask(key wgkey.Public) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers[key].asks++
	return d.initiate(d.peers[key])
}

func (d *fakeDevice) Move(key wgkey.Public, to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[key]
	p.Endpoint = to
	p.moves, p.movedAt = append(p.moves, to), append(p.movedAt, time.Now())
	return d.initiate(p)
}

// initiate sends a handshake initiation to p, which answers if it arrives.
func (d *fakeDevice) initiate(p *fakePeer) error {
	if !p.last.IsZero() && time.Since(p.last) < 25*time.Millisecond {
		d.t.Errorf("%v after an initiation another one", time.Since(p.last))
	}
	p.last = time.Now()
	if !p.Endpoint.IsValid() {
		d.t.Error("asked a peer that has no endpoint")
		return errors.New("no known endpoint for peer")
	}
	p.TxBytes += initiationSize
	to := p.Endpoint
	if way := p.paths[to]; !way.out {
		return nil
	} else if p.crossing > 0 {
		p.crossing--
		if p.source = to; way.in {
			p.hear(initiationSize)
			p.TxBytes += responseSize
		}
		return nil
	}
	p.source = to // WireGuard answers where the question came from
	time.AfterFunc(p.rtt, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.paths[to].in {
			p.hear(responseSize)
			p.TxBytes += keepaliveSize
			p.LastHandshake, p.session, p.calls = time.Now(), true, false
		}
	})
	return nil
}

// change changes the world under the lock.
func (d *fakeDevice) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// A story runs a Monitor on a fake device in virtual time.
func story(t *testing.T, tell func(t *testing.T, s *world), peers ...*fakePeer) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &world{fakeDevice: newDevice(t, peers...)}
		s.m = New(Config{Self: self, Peers: s.Peers, Ask: s.Ask, Move: s.Move, Log: quiet, Report: func(e Event) {
			if e.From == e.To && e.Old == e.New {
				t.Errorf("event without a change: %+v", e)
			}
			if p := s.m.Peers()[e.Key]; p.State != e.To || p.Endpoint != e.New {
				t.Errorf("told of %+v while Peers has %v on %v", e, p.State, p.Endpoint)
			}
			s.events = append(s.events, e)
		}})
		go s.run()
		go func() {
			if err := s.m.Run(t.Context()); err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		tell(t, s)
	})
}

type world struct {
	*fakeDevice
	m      *Monitor
	events []Event // written by Run; read after synctest.Wait
}

// pass lets d go by, and everybody finish what they do then. The test may read
// everything until it calls pass again.
func (s *world) pass(d time.Duration) {
	s.change(func() {}) // what the test has read comes before what others write now
	time.Sleep(d)
	synctest.Wait()
}

func (s *world) wantState(key wgkey.Public, want State) {
	s.t.Helper()
	if got := s.m.Peers()[key].State; got != want {
		s.t.Errorf("state is %v, want %v; events %+v", got, want, s.events)
	}
}

// The sizes that evidence is judged by are those of the device in use.
func TestSizesAreWireGuards(t *testing.T) {
	if device.MessageInitiationSize != initiationSize || device.MessageResponseSize != responseSize || device.MessageKeepaliveSize != keepaliveSize {
		t.Errorf("wireguard-go's messages have %d, %d and %d bytes", device.MessageInitiationSize, device.MessageResponseSize, device.MessageKeepaliveSize)
	}
	if device.RekeyTimeout <= retry || device.KeepaliveTimeout+time.Second/2 >= owed || device.HandshakeInitationRate >= spacing {
		t.Error("wireguard-go's timers are not those that the monitor's are made for")
	}
}
