// Package corrotest is a double of a Corrosion agent: its HTTP API over a real
// SQLite, on a port of the loopback. It is for tests of the faults that a real
// agent does not show on demand; that the double is right is shown by replaying
// exchanges recorded with real agents.
//
// Agents can be linked. Then they replicate as Corrosion does, cell by cell and
// without clocks, except that it happens before a write is answered.
package corrotest

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Corrosion's own figures.
const (
	DefaultCoalesce = 600 * time.Millisecond // how long changes are gathered
	DefaultHistory  = 501                    // changes a subscription can be resumed from
	DefaultRing     = 10240                  // events waiting for one subscriber
	fullBatch       = 1000                   // keys that end the gathering
	flushDelay      = 10 * time.Millisecond  // for more events to go out together
	lagMemory       = 120 * time.Second      // how long a remote change makes a lag known
)

// A Flavour is a lineage of agents; they differ in errors.
type Flavour int

// Upstream is superfly/corrosion at v1.0.0 and after. Klukai is the fork of
// September 2025: no /v1/health, but /v1/migrations, and other errors for
// queries and subscriptions.
const (
	Upstream Flavour = iota
	Klukai
)

// Config says what an agent is like. The zero value is an agent of upstream
// that wants no token and has no tables.
type Config struct {
	Schema       string        // SQL; one that Corrosion refuses leaves the agent without its tables, as there
	Token        string        // "" wants none
	EndpointName string        // "" accepts requests for any
	Flavour      Flavour       // zero is Upstream
	Coalesce     time.Duration // zero tells subscribers before a write is answered; Corrosion has DefaultCoalesce
	History      int           // changes kept for resuming; zero is DefaultHistory
	Ring         int           // events kept for a slow subscriber; zero is DefaultRing
	NoNetwork    bool          // it is reached by Dial alone; its URL is one that no network has
}

// An Agent is a running double.
type Agent struct {
	tb   testing.TB
	addr string // stays when the agent is stopped and started

	mu       sync.Mutex // guards everything below, and whatever these point to
	cfg      Config
	store    *store
	server   *http.Server   // nil while stopped
	memory   *memory        // likewise; nil with a network
	serving  sync.WaitGroup // the goroutine of server
	down     chan struct{}  // closed when server stops
	subs     map[string]*subscription
	byText   map[string]*subscription
	updates  map[string]*tableUpdates
	timer    *time.Timer // runs while candidates are gathered
	links    map[*Agent]*link
	held     *Held // nil: changes of other agents are merged when they arrive
	lastSync time.Time
	faults   faults
}

// New starts an agent; it ends with the test.
func New(tb testing.TB, cfg Config) *Agent {
	tb.Helper()
	if cfg.History == 0 {
		cfg.History = DefaultHistory
	}
	if cfg.Ring == 0 {
		cfg.Ring = DefaultRing
	}
	a := &Agent{tb: tb, cfg: cfg, addr: "127.0.0.1:0", links: map[*Agent]*link{}}
	if cfg.NoNetwork {
		a.addr = "192.0.2.1:8080" // RFC 5737
	}
	a.forget()
	a.open()
	tb.Cleanup(func() {
		a.Kill()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.store.close()
	})
	a.Start()
	return a
}

// open makes the database anew, under another site ID.
func (a *Agent) open() {
	var site siteID
	rand.Read(site[:])
	s, err := openStore(site)
	if err != nil {
		a.tb.Fatalf("corrotest: open the store: %v", err)
	}
	a.store = s
	if err := s.applySchema(a.cfg.Schema); err != nil {
		a.tb.Logf("corrotest: the agent has no tables, its schema was refused: %v", err) // the agent logs it, too
	}
}

// URL is where the API is, without a slash at the end.
func (a *Agent) URL() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return "http://" + a.addr
}

// ActorID is the agent's ID as in the answers to transactions.
func (a *Agent) ActorID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return hex.EncodeToString(a.store.site[:])
}

// Start starts a stopped agent at its old address, tries again what its schema had
// no room for, and syncs it with the agents it is linked to.
func (a *Agent) Start() {
	a.tb.Helper()
	a.mu.Lock()
	if a.server != nil {
		a.mu.Unlock()
		return
	}
	var l net.Listener
	if a.cfg.NoNetwork {
		a.memory = newMemory()
		l = a.memory
	} else {
		var err error
		if l, err = net.Listen("tcp", a.addr); err != nil {
			a.mu.Unlock()
			a.tb.Fatalf("corrotest: listen on %s: %v", a.addr, err)
			return
		}
		a.addr = l.Addr().String()
	}
	a.down = make(chan struct{})
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: http.HandlerFunc(a.serve), Protocols: &protocols}
	a.server = server
	a.serving.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.tb.Errorf("corrotest: serve: %v", err)
		}
	})
	links, pending := a.upLinks(), a.store.pending
	a.store.pending = nil
	a.mu.Unlock()
	for _, v := range pending {
		a.receive(v)
	}
	for _, other := range links {
		syncBoth(a, other)
	}
}

// Stop stops the agent as SIGTERM does: streams end cleanly, subscriptions can
// be resumed after Start.
func (a *Agent) Stop() {
	a.mu.Lock()
	server, down := a.server, a.down
	a.server, a.memory = nil, nil
	if server != nil {
		a.followUp()
		a.eachListener(func(l *listener) { l.end = true })
		close(down)
	}
	a.mu.Unlock()
	if server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		server.Close()
	}
	a.serving.Wait()
}

// Kill stops the agent as SIGKILL does: connections break, subscriptions are
// gone.
func (a *Agent) Kill() {
	a.mu.Lock()
	server, down := a.server, a.down
	a.server, a.memory = nil, nil
	a.eachListener(func(l *listener) { l.abort = true })
	a.forget()
	if server != nil {
		close(down)
	}
	a.mu.Unlock()
	if server != nil {
		server.Close()
		a.serving.Wait()
	}
}

// Wipe gives a stopped agent an empty database and another ID, as when its
// machine was set up anew.
func (a *Agent) Wipe() {
	a.tb.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil {
		a.tb.Fatal("corrotest: wipe an agent that runs")
	}
	a.store.close()
	a.forget()
	a.open()
}

// Reload applies a schema as "corrosion reload" does: tables and columns are
// added, or there is an error and nothing changed. Open streams go on. What came
// before and found no room goes on waiting, until the agent is started again.
func (a *Agent) Reload(schema string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.store.applySchema(schema); err != nil {
		return fmt.Errorf("reload schema: %w", err)
	}
	return nil
}

// forget drops all subscriptions. The mutex is held, or nobody else is there.
func (a *Agent) forget() {
	a.subs, a.byText, a.updates = map[string]*subscription{}, map[string]*subscription{}, map[string]*tableUpdates{}
}

// eachListener calls f for every open stream and wakes it. The mutex is held.
func (a *Agent) eachListener(f func(*listener)) {
	for _, s := range a.subs {
		for l := range s.listeners {
			f(l)
			l.signal()
		}
	}
	for _, u := range a.updates {
		for l := range u.listeners {
			f(l)
			l.signal()
		}
	}
}

// announce tells subscribers of changes, now or when they were gathered long
// enough. The mutex is held.
func (a *Agent) announce(changes []change) {
	waiting := 0
	for _, c := range changes {
		for _, s := range a.subs {
			s.consider(c)
		}
		if u := a.updates[c.table]; u != nil {
			u.todo.add(c.table, c.key, c.cl)
		}
	}
	for _, s := range a.subs {
		waiting = max(waiting, s.todo.len())
	}
	for _, u := range a.updates {
		waiting = max(waiting, u.todo.len())
	}
	switch {
	case waiting == 0:
	case a.cfg.Coalesce == 0 || waiting >= fullBatch:
		a.followUp()
	case a.timer == nil:
		a.timer = time.AfterFunc(a.cfg.Coalesce, a.Flush)
	}
}

// Flush tells subscribers what was gathered so far.
func (a *Agent) Flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.followUp()
}

func (a *Agent) followUp() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	for _, s := range a.subs {
		events, err := s.followUp(a.store)
		if err != nil { // the matcher dies: a clean end, and the subscription is gone
			a.tb.Logf("corrotest: subscription %s failed: %v", s.id, err)
			a.remove(s)
			continue
		}
		s.history = append(s.history, events...)
		for _, e := range events {
			for l := range s.listeners {
				l.send(e.line, a.cfg.Ring)
			}
		}
		s.purge(a.cfg.History)
	}
	for _, u := range a.updates {
		lines, err := u.followUp()
		if err != nil {
			a.tb.Logf("corrotest: updates of %s failed: %v", u.table, err)
		}
		for _, line := range lines {
			for l := range u.listeners {
				l.send(line, a.cfg.Ring)
			}
		}
	}
}

// remove ends the streams of s and forgets it.
func (a *Agent) remove(s *subscription) {
	delete(a.subs, s.id)
	delete(a.byText, s.sql)
	for l := range s.listeners {
		l.end = true
		l.signal()
	}
}

// allowed says whether r may pass, by its token and the endpoint it asks for.
func (a *Agent) allowed(r *http.Request) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := "Bearer " + a.cfg.Token
	if a.cfg.Token != "" && subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) == 0 {
		return http.StatusUnauthorized
	}
	if name := r.Header.Get("x-corrosion-requested-endpoint-name"); name != "" && a.cfg.EndpointName != "" && name != a.cfg.EndpointName {
		return http.StatusMisdirectedRequest
	}
	return 0
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return uuid(b)
}

func uuid(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
