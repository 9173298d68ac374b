package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrotest"
	"github.com/acidtib/jiji-node/registry/embedded"
)

const token = "t0ken"

// A patient is a store that follows an agent with faults.
type patient struct {
	*testing.T
	a *corrotest.Agent
	s *Store

	mu  sync.Mutex
	log bytes.Buffer
}

func (p *patient) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *patient) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func clientOf(t *testing.T, a *corrotest.Agent) *corrosion.Client {
	t.Helper()
	c, err := corrosion.New(corrosion.Config{URL: a.URL(), Token: token, ReplyTimeout: time.Second, EventTimeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newPatient has a store run on a, until the test ends.
func newPatient(t *testing.T, a *corrotest.Agent) *patient {
	t.Helper()
	return patientOf(t, a, clientOf(t, a))
}

func patientOf(t *testing.T, a *corrotest.Agent, c *corrosion.Client) *patient {
	t.Helper()
	p := &patient{T: t, a: a}
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(t.TempDir(), "registry.db"), ServerID: "self"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(p, nil))
	p.s, err = Open(t.Context(), Config{Client: c, Local: local, ServerID: "self", BootID: "boot", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, p.s.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the store:\n%s", p.logged())
		}
	})
	return p
}

func (p *patient) until(what string, ok func() bool) {
	p.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			p.Fatalf("not within 30 s: %s; state %+v, snapshot %v", what, p.s.State(), p.ids())
		}
	}
}

func (p *patient) ids() []string {
	var ids []string
	for c := range p.s.Snapshot().All() {
		ids = append(ids, fmt.Sprint(c.ID, " ", c.Health))
	}
	slices.Sort(ids)
	return ids
}

// shows waits until the store is up without complaint, and shows just these.
func (p *patient) shows(want ...string) {
	p.Helper()
	p.until(fmt.Sprintf("up, and shows %v", want), func() bool {
		st := p.s.State()
		return st.Up && st.Problem == "" && st.Pending == 0 && slices.Equal(p.ids(), want)
	})
}

// says waits until the log, or what the state has as problem, has the text.
func (p *patient) says(text string) {
	p.Helper()
	p.until("says "+text, func() bool { return strings.Contains(p.logged()+p.s.Problem(), text) })
}

func write(t *testing.T, a *corrotest.Agent, id, health string) {
	t.Helper()
	_, err := clientOf(t, a).Exec(t.Context(), corrosion.SQL(`INSERT INTO containers (id, service, server_id, ip, health_status) VALUES (?, 'api', 'other', '10.210.1.2', ?)
		ON CONFLICT (id) DO UPDATE SET health_status = excluded.health_status`, id, health))
	if err != nil {
		t.Fatal(err)
	}
}

// TestRegistryShow6Faults shows what each fault of the agent looks like to the
// user, and that the view is right after it.
func TestRegistryShow6Faults(t *testing.T) {
	const six = 6 // subscriptions that a store has
	again := func(order func(*corrotest.Agent)) func(*patient) {
		return func(p *patient) {
			p.a.Kill()
			order(p.a)
			p.a.Start()
		}
	}
	streams := func(do func(*corrotest.Agent)) func(*patient) { return func(p *patient) { do(p.a) } }
	for _, c := range []struct {
		name string
		do   func(*patient)
		says string // in the log or the problem; empty: nothing is seen of it
		heal func(*patient)
	}{
		{"DropMidLine", streams((*corrotest.Agent).CutMidLine), "registry lost", nil},
		{"EndMidLine", streams((*corrotest.Agent).EndMidLine), "registry lost", nil},
		{"EndStreams", streams((*corrotest.Agent).EndStreams), "agent ended the stream", nil},
		{"ErrorEvent", streams(func(a *corrotest.Agent) { a.FailStreams("disk I/O error") }), "disk I/O error", nil},
		{"GarbageLine", streams(func(a *corrotest.Agent) { a.SendGarbage("\x00{") }), "registry lost", nil},
		{"DuplicateChange", func(p *patient) {
			c := clientOf(p.T, p.a)
			for _, sql := range []string{
				"INSERT INTO servers (id) VALUES ('x')", "INSERT INTO jiji_servers (id) VALUES ('x')", "INSERT INTO services (name) VALUES ('x')",
				"INSERT INTO cluster_metadata (key) VALUES ('x')", "INSERT INTO jiji_containers (id) VALUES ('x')",
			} {
				if _, err := c.Exec(p.Context(), corrosion.SQL(sql)); err != nil {
					p.Fatal(err)
				}
			}
			write(p.T, p.a, "d", "starting")
			write(p.T, p.a, "d", "healthy")
			p.a.DuplicateEvent()
		}, "", nil},
		{"DuplicateEndOfQuery", streams((*corrotest.Agent).DuplicateEvent), "got an end of query, want a change", nil},
		{"SkipID", func(p *patient) { p.a.SkipEvent(); write(p.T, p.a, "d", "starting"); write(p.T, p.a, "d", "healthy") }, "changes are missing", nil},
		{"PurgeHistory", func(p *patient) {
			p.a.Stall()
			write(p.T, p.a, "c", "starting")
			write(p.T, p.a, "c", "degraded")
			p.a.PurgeHistory(0)
			p.a.EndStreams()
			p.a.Resume()
		}, "registry lost", nil},
		{"ForgetSub", streams((*corrotest.Agent).ForgetSubscriptions), "registry lost", nil},
		{"KeepSub", func(p *patient) { p.a.Stop() }, "cannot be followed", func(p *patient) { p.a.Start() }},
		{"Crash", func(p *patient) { p.a.Kill() }, "connection refused", func(p *patient) { p.a.Start() }},
		{"HangAfterHeaders", again(func(a *corrotest.Agent) { a.HangAfterHeaders(corrotest.Subscriptions, six) }), "registry lost", nil},
		{"EOFBeforeEOQ", again(func(a *corrotest.Agent) { a.EndBeforeEOQ(corrotest.Subscriptions, six, 1) }), "registry lost", nil},
		{"SlowFirstSubscriber", again(func(a *corrotest.Agent) { a.LoseRowsOfFirst(0) }), "registry lost", nil},
		{"Shed503", again(func(a *corrotest.Agent) { a.Shed(corrotest.Subscriptions, 3*six) }), "max concurrency limit reached", nil},
		{"Garbage", again(func(a *corrotest.Agent) { a.Answer(corrotest.Subscriptions, 3*six, 200, "<html>") }), "<html>", nil},
		{"NeverAnswers", again(func(a *corrotest.Agent) { a.NeverAnswer(corrotest.Subscriptions, six) }), "registry lost", nil},
		{"WrongToken", func(p *patient) { p.a.SetToken("another"); p.a.EndStreams() }, "wrong or missing token", func(p *patient) { p.a.SetToken(token) }},
		{"HealthWithoutLag", streams((*corrotest.Agent).SetNoLag), "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
			write(t, a, "c", "healthy")
			write(t, a, "d", "healthy")
			p := newPatient(t, a)
			p.shows("c healthy", "d healthy")
			stop := make(chan struct{})
			var watch sync.WaitGroup
			watch.Go(func() { // losing the agent makes the view old, never empty
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					if n := p.s.Snapshot().Len(); n < 2 {
						t.Errorf("the snapshot has %d containers, want 2 or more", n)
						return
					}
				}
			})
			c.do(p)
			if c.says != "" {
				p.says(c.says)
			}
			if c.heal != nil {
				c.heal(p)
			}
			write(t, a, "c", "unhealthy")
			write(t, a, "e", "healthy")
			p.shows("c unhealthy", "d healthy", "e healthy")
			close(stop)
			watch.Wait()
			if c.says == "" && strings.Contains(p.logged(), "level=WARN") {
				t.Errorf("it complains: %s", p.logged())
			}
			if strings.Contains(p.logged(), token) {
				t.Error("the token is in the log")
			}
		})
	}
}

// A stream that only seems alive is found out by comparing.
func TestRegistryShow6Stall(t *testing.T) {
	t.Parallel()
	a := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
	write(t, a, "c", "healthy")
	p := newPatient(t, a)
	p.shows("c healthy")
	a.Stall()
	write(t, a, "c", "unhealthy")
	if deaf := p.s.compare(t.Context()); deaf != "containers" {
		t.Errorf("%q is found deaf, want containers", deaf)
	}
	a.Resume()
	p.shows("c unhealthy")
	if deaf := p.s.compare(t.Context()); deaf != "" {
		t.Errorf("%q is found deaf, want none", deaf)
	}
}

func mineOf(id string) registry.Container {
	return registry.Container{ID: id, Service: "web", IP: netip.MustParseAddr("10.210.0.9"), Health: registry.Healthy}
}

// A write that the agent takes its time for, or whose answer is lost, is in the
// catalog at once, and once in the registry.
func TestRegistryShow6Writes(t *testing.T) {
	count := func(t *testing.T, a *corrotest.Agent) (n int64) {
		err := clientOf(t, a).Query(t.Context(), corrosion.SQL("SELECT count(*) FROM containers WHERE server_id = 'self'"), func(cells []any) error {
			n = cells[0].(int64)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		name  string
		order func(*corrotest.Agent) (heal func())
	}{
		{"DelayedCommit", (*corrotest.Agent).HoldCommits},
		{"LostResponse", func(a *corrotest.Agent) func() { a.LoseResponse(1); return func() {} }},
		{"Shed503", func(a *corrotest.Agent) func() { a.Shed(corrotest.Transactions, 2); return func() {} }},
		{"Garbage", func(a *corrotest.Agent) func() { a.Answer(corrotest.Transactions, 2, 200, "<html>"); return func() {} }},
		{"NeverAnswers", func(a *corrotest.Agent) func() { a.NeverAnswer(corrotest.Transactions, 2); return func() {} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
			slow, err := corrosion.New(corrosion.Config{URL: a.URL(), Token: token}) // as patient as a node's
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(slow.Close)
			p := patientOf(t, a, slow)
			p.until("caught up", func() bool { return p.s.State().CaughtUp && p.s.State().Up })
			heal := c.order(a)
			start := time.Now()
			if err := p.s.Register(t.Context(), mineOf("mine")); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > writePatience+time.Second/2 {
				t.Errorf("registering took %v, want %v or less", took, writePatience)
			}
			if got := p.ids(); !slices.Equal(got, []string{"mine healthy"}) {
				t.Errorf("snapshot has %v after registering", got)
			}
			p.says("own rows not written")
			heal()
			p.shows("mine healthy")
			if n := count(t, a); n != 1 {
				t.Errorf("%d rows in the registry, want 1", n)
			}
		})
	}
}

// Without its tables an agent is of no use; it is once it has them.
func TestRegistryShow6SchemaMissing(t *testing.T) {
	t.Parallel()
	a := corrotest.New(t, corrotest.Config{Token: token})
	p := newPatient(t, a)
	p.says("no such table")
	if st := p.s.State(); st.Up {
		t.Errorf("state %+v without tables", st)
	}
	if err := a.Reload(registry.Schema); err != nil {
		t.Fatal(err)
	}
	write(t, a, "c", "healthy")
	p.shows("c healthy")
}

// A row is shown when all of it is here, in whatever order that comes.
func TestRegistryShow6PartialRows(t *testing.T) {
	t.Parallel()
	a := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
	b := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
	corrotest.Link(a, b)
	p := newPatient(t, a)
	p.shows()
	held := a.HoldChanges()
	write(t, b, "c", "starting")
	write(t, b, "c", "healthy")
	write(t, b, "d", "healthy")
	p.until("three versions wait", func() bool { return held.Len() == 3 })
	held.DeliverCells(0, "service")
	p.until("the row is known", func() bool {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		return len(p.s.containers.rows) == 1
	})
	if got := p.ids(); len(got) != 0 {
		t.Errorf("a partial row is shown: %v", got)
	}
	held.Deliver(2)
	held.Deliver(1)
	held.Release()
	p.shows("c healthy", "d healthy")
}
