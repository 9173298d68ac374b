package corrosion_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

const liveSchema = `CREATE TABLE things (
  id TEXT PRIMARY KEY NOT NULL,
  i INTEGER NOT NULL DEFAULT 0,
  r REAL,
  t TEXT NOT NULL DEFAULT '',
  b BLOB
);`

// A mirror is a View that keeps rows by their first cell.
type mirror struct {
	mu      sync.Mutex // guards all below
	next    map[any][]any
	rows    map[any][]any
	begins  int
	resumed int
	lost    error // nil if what rows says is up to date
	news    chan struct{}
}

func newMirror() *mirror { return &mirror{news: make(chan struct{}, 1)} }

func (m *mirror) do(f func()) {
	m.mu.Lock()
	f()
	m.mu.Unlock()
	select {
	case m.news <- struct{}{}:
	default:
	}
}

func (m *mirror) Begin()          { m.do(func() { m.next = map[any][]any{}; m.begins++ }) }
func (m *mirror) Row(cells []any) { m.do(func() { m.next[cells[0]] = append([]any(nil), cells...) }) }
func (m *mirror) End()            { m.do(func() { m.rows, m.next, m.lost = m.next, nil, nil }) }
func (m *mirror) Lost(err error)  { m.do(func() { m.lost = err }) }
func (m *mirror) Resumed()        { m.do(func() { m.resumed++; m.lost = nil }) }
func (m *mirror) Change(kind corrosion.Kind, cells []any) {
	m.do(func() {
		if kind == corrosion.Delete {
			delete(m.rows, cells[0])
			return
		}
		m.rows[cells[0]] = append([]any(nil), cells...)
	})
}

// until waits until ok is true, which is called with m locked.
func (m *mirror) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		m.mu.Lock()
		done, state := ok(), fmt.Sprintf("%d rows, begun %d times, resumed %d times, lost: %v", len(m.rows), m.begins, m.resumed, m.lost)
		m.mu.Unlock()
		if done {
			return
		}
		select {
		case <-m.news:
		case <-deadline:
			t.Fatalf("%s did not happen in 30 s; there are %s", what, state)
		}
	}
}

func (m *mirror) has(id string) func() bool {
	return func() bool { return m.lost == nil && m.rows[id] != nil }
}

func client(t *testing.T, url, token string) *corrosion.Client {
	t.Helper()
	c, err := corrosion.New(corrosion.Config{URL: url, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func insert(t *testing.T, c *corrosion.Client, ids ...string) corrosion.Outcome {
	t.Helper()
	var list []corrosion.Statement
	for _, id := range ids {
		list = append(list, corrosion.SQL("INSERT INTO things (id) VALUES (?)", id))
	}
	out, err := c.Exec(t.Context(), list...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func follow(t *testing.T, c *corrosion.Client, m *mirror, s corrosion.Statement) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Follow(ctx, s, m) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Follow: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Follow did not end with its context")
		}
	})
}

func TestLiveValuesAndTransactions(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Schema: liveSchema, Token: "t0ken"})
	c := client(t, a.URL, a.Token)
	ctx := t.Context()

	text := "ü😀\n\"\\<>&'\u2028"
	values := [][]any{
		{"all", int64(math.MaxInt64), 1.0, text, []byte{0, 1, 255}},
		{"least", int64(math.MinInt64), -0.5, "", []byte{}},
		{"exact", int64(1<<53 + 1), 1e300, strings.Repeat("x", 100_000), nil},
		{"null", int64(0), nil, "x", nil},
	}
	var list []corrosion.Statement
	for _, v := range values {
		list = append(list, corrosion.SQL("INSERT INTO things (id, i, r, t, b) VALUES (?, ?, ?, ?, ?)", v...))
	}
	out, err := c.Exec(ctx, list...)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Changed || out.Version < 1 || out.Actor == [16]byte{} || !reflect.DeepEqual(out.RowsAffected, []int64{1, 1, 1, 1}) {
		t.Errorf("outcome %+v", out)
	}
	m := newMirror()
	follow(t, c, m, corrosion.SQL("SELECT id, i, r, t, b FROM things WHERE id <> ?", "none"))
	m.until(t, "the result", m.has("all"))
	for _, want := range values {
		var got []any
		err := c.Query(ctx, corrosion.SQL("SELECT id, i, r, t, b FROM things WHERE id = ?", want[0]), func(cells []any) error {
			got = append(got, cells...)
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("query of %v: %.200q, %v", want[0], got, err)
		}
		if got := m.rows[want[0]]; !reflect.DeepEqual(got, want) {
			t.Errorf("subscription has %.200q of %v", got, want[0])
		}
	}

	out, err = c.Exec(ctx, corrosion.SQL("UPDATE things SET t = ? WHERE id = ?", "x", "null"))
	if err != nil || out.Changed || out.Version != 0 || out.RowsAffected[0] != 1 {
		t.Errorf("the same value again: %+v, %v", out, err)
	}
	_, err = c.Exec(ctx, corrosion.SQL("INSERT INTO things (id) VALUES ('undone')"), corrosion.SQL("INSERT INTO things (id) VALUES ('all')"))
	if e, ok := errors.AsType[*corrosion.Error](err); !ok || e.Status != 500 || !strings.Contains(e.Message, "UNIQUE constraint failed") {
		t.Errorf("error %v", err)
	}
	n := 0
	if err := c.Query(ctx, corrosion.SQL("SELECT 1 FROM things WHERE id = 'undone'"), func([]any) error { n++; return nil }); err != nil || n != 0 {
		t.Errorf("%d rows of what was rolled back, %v", n, err)
	}
}

func TestLiveErrors(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Schema: liveSchema, Token: "t0ken"})
	ctx := t.Context()
	for _, token := range []string{"", "other"} {
		c := client(t, a.URL, token)
		_, err := c.Exec(ctx, corrosion.SQL("DELETE FROM things"))
		_, health := c.Health(ctx)
		m := newMirror()
		follow(t, c, m, corrosion.SQL("SELECT id FROM things"))
		m.until(t, "a refusal", func() bool { return m.lost != nil })
		for _, err := range []error{err, health, c.Query(ctx, corrosion.SQL("SELECT 1"), nil), m.lost} {
			if !errors.Is(err, corrosion.ErrUnauthorized) {
				t.Errorf("token %q: error %v, want ErrUnauthorized", token, err)
			}
		}
	}
	c := client(t, a.URL, a.Token)
	_, err := c.Exec(ctx, corrosion.SQL("DELETE FROM nope"))
	m := newMirror()
	follow(t, c, m, corrosion.SQL("SELECT id FROM nope"))
	m.until(t, "a refusal", func() bool { return m.lost != nil })
	for _, err := range []error{err, c.Query(ctx, corrosion.SQL("SELECT id FROM nope"), nil), m.lost} {
		if !errors.Is(err, corrosion.ErrNoTable) {
			t.Errorf("error %v, want ErrNoTable", err)
		}
	}
	switch h, err := c.Health(ctx); {
	case errors.Is(err, corrosion.ErrNoHealth): // klukai
	case err != nil || !h.Idle:
		t.Errorf("health %+v, %v, want idle", h, err)
	}
}

func TestLiveFollow(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{Schema: liveSchema, Token: "t0ken"})
	c := client(t, a.URL, a.Token)
	m := newMirror()
	insert(t, c, "first")
	follow(t, c, m, corrosion.SQL("SELECT id, t FROM things"))
	m.until(t, "the result", m.has("first"))
	insert(t, c, "second", "third")
	m.until(t, "a change", func() bool { return m.rows["second"] != nil && m.rows["third"] != nil })
	if _, err := c.Exec(t.Context(), corrosion.SQL("UPDATE things SET t = 'x' WHERE id = 'first'"), corrosion.SQL("DELETE FROM things WHERE id = 'third'")); err != nil {
		t.Fatal(err)
	}
	m.until(t, "update and delete", func() bool { return m.rows["first"][1] == "x" && m.rows["third"] == nil })

	// A clean end: the stream goes on.
	a.Stop(t, syscall.SIGTERM)
	m.until(t, "the loss", func() bool { return m.lost != nil })
	a.Restart(t)
	m.until(t, "going on", func() bool { return m.lost == nil })
	insert(t, c, "after the restart")
	m.until(t, "a change after the restart", m.has("after the restart"))
	if m.begins != 1 || m.resumed != 1 {
		t.Errorf("begun %d times, resumed %d times, want once and once", m.begins, m.resumed)
	}

	// A crash: the agent forgets the subscription.
	a.Stop(t, syscall.SIGKILL)
	m.until(t, "the loss", func() bool { return m.lost != nil })
	a.Restart(t)
	insert(t, c, "after the crash")
	m.until(t, "a row after the crash", m.has("after the crash"))
	if m.begins != 2 || m.resumed != 1 {
		t.Errorf("begun %d times, resumed %d times, want twice and once", m.begins, m.resumed)
	}
	want := map[any][]any{"first": {"first", "x"}, "second": {"second", ""}, "after the restart": {"after the restart", ""}, "after the crash": {"after the crash", ""}}
	if !reflect.DeepEqual(m.rows, want) {
		t.Errorf("rows %v, want %v", m.rows, want)
	}
}

// A result larger than what the agent holds for a slow reader arrives whole.
func TestLiveLargeResult(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 30,000 rows")
	}
	a := agenttest.Start(t, agenttest.Options{Schema: liveSchema})
	c := client(t, a.URL, "")
	const rows = 30_000
	for at := 0; at < rows; at += 1000 {
		s := corrosion.SQL("INSERT INTO things (id, t) SELECT printf('%064d', value), 'service-' || (value % 100) FROM generate_series(?, ?)", at, at+999)
		if _, err := c.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	m := newMirror()
	start := time.Now()
	follow(t, c, m, corrosion.SQL("SELECT id, i, r, t, b FROM things"))
	m.until(t, "the result", func() bool { return len(m.rows) == rows })
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("%d rows after %v, begun %d times", rows, time.Since(start).Round(time.Millisecond), m.begins)
}
