// Package monitor watches every peer's path and moves a peer whose path is dead
// to the next of its candidates.
//
// Evidence of life is what the device could only count because the peer
// answered: a handshake that completed, or received bytes other than those of
// initiations. wireguard-go adds to rx_bytes a transport message once it is
// decrypted and past the replay window, a response once it fits the initiation
// that we sent last, and an initiation once its static key and timestamp hold.
// The last one proves too little: it says nothing about our way to the peer,
// and a recorded one is good again after our restart, which forgets timestamps.
//
// The question that every WireGuard answers is an initiation. It is asked when
// a peer owes an answer: data draws a keepalive after 10 s at the latest, and
// persistent keepalives of ours come every 25 s.
package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A State is what is known of the path to a peer.
type State uint8

const (
	Unknown State = iota // never heard of, and not every candidate asked yet
	Up                   // heard of, and it owes no answer, or was asked for one less than a second ago
	Suspect              // asked on the endpoint in use, without an answer so far
	Down                 // not answering: its candidates are tried, for ever
)

var stateNames = [...]string{"unknown", "up", "suspect", "down"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// An Observed peer is one as the device describes it.
type Observed struct {
	Key              wgkey.Public
	Endpoint         netip.AddrPort // in use; zero if none
	LastHandshake    time.Time      // zero if none; only compared for change, so a clock step does no harm
	RxBytes, TxBytes uint64
}

// An Event is a change of a peer's state or endpoint.
type Event struct {
	At       time.Time
	Key      wgkey.Public
	From, To State
	Old, New netip.AddrPort // when the peer comes back, Old is the endpoint that it was last heard on
	Reason   string
	Outage   time.Duration // silence so far, or until now if To is Up; zero if there was none
}

// A PeerInfo is the monitor's view of one peer at one instant, read-only.
type PeerInfo struct {
	State      State
	Since      time.Time // of State
	Endpoint   netip.AddrPort
	Candidates []netip.AddrPort
	Heard      time.Time // latest evidence of life, to the second; zero if none
	Changes    []Event   // the latest, oldest first; of the moves of one search only the last
}

const maxChanges = 16 // kept for each peer

// Config is what a Monitor needs; all funcs but Report are required and called
// from Run's goroutine alone.
type Config struct {
	// Self is this node's key: of two ends that are new to each other, the one
	// with the smaller key initiates first.
	Self wgkey.Public
	// Peers reads the device.
	Peers func() ([]Observed, error)
	// Move sets the endpoint and initiates a handshake there, even when another
	// initiation was sent a moment ago. The endpoint may be the one in use. It may do
	// nothing where the peer asked from there in the last second, and was answered.
	Move func(wgkey.Public, netip.AddrPort) error
	// Ask initiates a handshake on the endpoint in use. It may leave it at the
	// initiation that the device sent in the last 5 s.
	Ask func(wgkey.Public) error
	// Report receives every event, which is logged already, once Peers tells of
	// it. It must not block; nil for none.
	Report func(Event)
	// Name is what logs call a peer; nil: its key.
	Name func(wgkey.Public) string
	Log  *slog.Logger
}

const (
	interval    = time.Second // between two readings of the device
	maxFailures = 16          // failures to ask a peer that are told until it is up again
)

// A Monitor keeps each peer on an endpoint that answers.
type Monitor struct {
	cfg   Config
	want  atomic.Pointer[map[wgkey.Public][]netip.AddrPort]
	wake  chan struct{}
	infos atomic.Pointer[map[wgkey.Public]PeerInfo]

	// The rest belongs to Run.
	peers map[wgkey.Public]*peer
	clock time.Duration // time watched: it advances with the readings, and stands still between two that are far apart
	read  time.Time     // latest reading
	blind string        // why the device cannot be read; empty if it can
	told  []Event       // of this reading, not reported yet
}

// A peer is a path and what people are told about it.
type peer struct {
	path     path
	since    time.Time
	heard    time.Time
	changes  []Event  // never modified in place: PeerInfo shares it
	failures []string // of Ask and Move since the peer was last up
}

// ErrNoDevice is what Config.Peers may return where there is none at the moment, as
// somebody else tells: there are no paths to watch.
var ErrNoDevice = errors.New("there is no device")

// New returns a Monitor that watches nothing until SetCandidates.
func New(cfg Config) *Monitor {
	if cfg.Name == nil {
		cfg.Name = wgkey.Public.String
	}
	return &Monitor{
		cfg:   cfg,
		wake:  make(chan struct{}, 1),
		peers: map[wgkey.Public]*peer{},
		clock: time.Hour, // any time but zero, which means never
	}
}

// SetCandidates replaces the peers to watch and, for each, the endpoints that
// might reach it, in order of preference; there may be none. A peer that is
// not in the set is forgotten. It may be called from any goroutine.
func (m *Monitor) SetCandidates(set map[wgkey.Public][]netip.AddrPort) {
	want := make(map[wgkey.Public][]netip.AddrPort, len(set))
	for key, candidates := range set {
		var list []netip.AddrPort
		for _, c := range candidates {
			if c = unmap(c); c.IsValid() && !slices.Contains(list, c) {
				list = append(list, c)
			}
		}
		want[key] = list
	}
	m.want.Store(&want)
	select {
	case m.wake <- struct{}{}:
	default: // Run will look anyway
	}
}

// Peers returns the peers as of the latest reading, nil before the first one.
// It is read-only, and may be called from any goroutine.
func (m *Monitor) Peers() map[wgkey.Public]PeerInfo {
	if infos := m.infos.Load(); infos != nil {
		return *infos
	}
	return nil
}

// Run watches and moves peers until ctx is done, and returns nil then.
func (m *Monitor) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		m.check()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.wake:
		}
	}
}

// check reads the device, and acts on each peer.
func (m *Monitor) check() {
	want := m.want.Load()
	if want == nil {
		return
	}
	list, err := m.cfg.Peers()
	if errors.Is(err, ErrNoDevice) {
		return
	}
	if err != nil {
		if m.blind != err.Error() {
			m.cfg.Log.Error("cannot read the peers, no path is watched", "err", err)
			m.blind = err.Error()
		}
		return
	}
	if m.blind != "" {
		m.cfg.Log.Info("peers can be read again")
		m.blind = ""
	}
	now := time.Now() // after the reading, so nothing in it is later
	if !m.read.IsZero() {
		m.clock += min(now.Sub(m.read), 2*interval)
	}
	m.read = now

	seen := make(map[wgkey.Public]Observed, len(list))
	for _, o := range list {
		o.Endpoint = unmap(o.Endpoint)
		seen[o.Key] = o
	}
	maps.DeleteFunc(m.peers, func(key wgkey.Public, _ *peer) bool {
		_, wanted := (*want)[key]
		return !wanted
	})
	infos := make(map[wgkey.Public]PeerInfo, len(*want))
	for key, candidates := range *want {
		p := m.peers[key]
		if p == nil {
			p = &peer{since: now}
			m.peers[key] = p
		}
		m.watch(now, key, p, candidates, seen)
		infos[key] = PeerInfo{
			State: p.path.state, Since: p.since, Endpoint: p.path.last.Endpoint,
			Candidates: candidates, Heard: p.heard, Changes: p.changes,
		}
	}
	m.infos.Store(&infos)
	for _, e := range m.told {
		if m.cfg.Report != nil {
			m.cfg.Report(e)
		}
	}
	m.told = m.told[:0]
}

// watch lets p take one step, carries it out and tells about it.
func (m *Monitor) watch(now time.Time, key wgkey.Public, p *peer, candidates []netip.AddrPort, seen map[wgkey.Public]Observed) {
	old := p.path
	var act action
	if o, ok := seen[key]; ok {
		first := bytes.Compare(m.cfg.Self[:], key[:]) < 0
		p.path, act = step(m.clock, old, o, candidates, first)
	} else {
		p.path, act.reason = path{}, "not on the device"
	}
	to := p.path
	if to.state != old.state || to.last.Endpoint != old.last.Endpoint && (old.known || act.do == move) {
		e := Event{
			At: now, Key: key, From: old.state, To: to.state,
			Old: old.last.Endpoint, New: to.last.Endpoint, Reason: act.reason,
		}
		if !p.heard.IsZero() && (old.state > Up || to.state > Up) {
			e.Outage = now.Sub(p.heard)
		}
		if to.state == Up && old.good.IsValid() {
			e.Old = old.good
		}
		m.tell(p, e)
	}
	if to.heard == m.clock {
		p.heard = now
	}
	if to.state == Up && old.state != Up {
		p.failures = nil
	}

	var err error
	switch act.do {
	case ask:
		err = m.cfg.Ask(key)
	case move:
		err = m.cfg.Move(key, to.last.Endpoint)
	default:
		return
	}
	if err == nil {
		return
	}
	p.path.unsent(m.clock)
	if text := err.Error(); !slices.Contains(p.failures, text) && len(p.failures) < maxFailures { // the same again and again is no news
		m.cfg.Log.Warn("cannot ask peer", "peer", m.cfg.Name(key), "endpoint", to.last.Endpoint, "err", err)
		p.failures = append(p.failures, text)
	}
}

// tell logs and keeps an event of p.
func (m *Monitor) tell(p *peer, e Event) {
	level := slog.LevelInfo
	searching := e.From == e.To && e.To != Up
	if searching {
		level = slog.LevelDebug
	}
	m.cfg.Log.Log(context.Background(), level, "path changed", "peer", m.cfg.Name(e.Key), "from", e.From, "to", e.To,
		"old", e.Old, "new", e.New, "reason", e.Reason, "outage", e.Outage.Round(time.Millisecond))
	kept := p.changes
	if n := len(kept); searching && n > 0 && kept[n-1].From == e.From && kept[n-1].To == e.To {
		kept = kept[:n-1]
	} else if n == maxChanges {
		kept = kept[1:]
	}
	p.changes = append(slices.Clone(kept), e)
	if e.From != e.To {
		p.since = e.At
	}
	m.told = append(m.told, e)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
