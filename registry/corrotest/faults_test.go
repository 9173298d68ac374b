package corrotest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const names = "SELECT name, project FROM services"

func TestRequestFaults(t *testing.T) {
	tests := []struct {
		name   string
		order  func(*Agent)
		status int
		body   string
	}{
		{"shed", func(a *Agent) { a.Shed(Queries, 1) }, 503, "max concurrency limit reached"},
		{"garbage", func(a *Agent) { a.Answer(Any, 1, 200, "<html>") }, 200, "<html>"},
		{"no rows", func(a *Agent) { a.EndBeforeEOQ(Queries, 1, 0) }, 200, `{"columns":["name","project"]}` + "\n"},
		{"some rows", func(a *Agent) { a.EndBeforeEOQ(Queries, 1, 1) }, 200, `{"columns":["name","project"]}` + "\n" + `{"row":[1,["n1",""]]}` + "\n"},
		{"all rows", func(a *Agent) { a.EndBeforeEOQ(Queries, 1, 9) }, 200, `{"columns":["name","project"]}` + "\n" + `{"row":[1,["n1",""]]}` + "\n" + `{"row":[2,["n2",""]]}` + "\n"},
		{"another token", func(a *Agent) { a.SetToken("other") }, 401, ""},
		{"another route", func(a *Agent) { a.Shed(Transactions, 1) }, 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgent(t)
			mustWrite(t, a, insert(1), insert(2))
			tt.order(a)
			l := open(t, a, "POST", "/v1/queries", `"`+names+`"`)
			if got := l.rest(); l.status != tt.status || tt.body != "" && got != tt.body {
				t.Errorf("got %d %q, want %d %q", l.status, got, tt.status, tt.body)
			}
			a.SetToken("t0ken")
			if got := query(t, a, names); !strings.HasSuffix(got, `{"eoq":{"time":T}}`+"\n") {
				t.Errorf("after the fault: %q", got)
			}
		})
	}
}

func TestNeverAnswer(t *testing.T) {
	a := newAgent(t)
	a.NeverAnswer(Any, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "POST", a.URL()+"/v1/queries", strings.NewReader(`"SELECT 1"`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer t0ken")
	if _, err := client().Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
}

func TestHangAfterHeaders(t *testing.T) {
	a := newAgent(t)
	a.HangAfterHeaders(Subscriptions, 1)
	l := subscribe(t, a, "", names)
	if l.status != 200 {
		t.Errorf("status %d, want 200", l.status)
	}
	l.silent()
}

func TestLoseResponse(t *testing.T) {
	a := newAgent(t)
	a.LoseResponse(1)
	if err := write(a, insert(1)); err == nil {
		t.Error("the write was answered")
	}
	if got := query(t, a, "SELECT count(*) FROM services"); !strings.Contains(got, "[1,[1]]") {
		t.Errorf("the write is not there: %s", got)
	}
}

func TestHoldCommits(t *testing.T) {
	a := newAgent(t)
	release := a.HoldCommits()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	wg.Go(func() { // a client that gives up: it is written all the same
		defer close(gone)
		r, err := http.NewRequestWithContext(ctx, "POST", a.URL()+"/v1/transactions", strings.NewReader(`["`+insert(1)+`"]`))
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Authorization", "Bearer t0ken")
		r.Header.Set("Content-Type", "application/json")
		if _, err := client().Do(r); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want canceled", err)
		}
	})
	wg.Go(func() {
		if err := write(a, insert(2)); err != nil {
			t.Error(err)
		}
	})
	within(t, func() bool { return a.Held() == 2 })
	if got := query(t, a, "SELECT count(*) FROM services"); !strings.Contains(got, "[1,[0]]") {
		t.Errorf("a held write is there: %s", got)
	}
	cancel()
	<-gone
	release()
	wg.Wait()
	within(t, func() bool { return strings.Contains(query(t, a, "SELECT count(*) FROM services"), "[1,[2]]") })
}

func within(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to be within 10 s")
		}
	}
}

func TestStreamFaults(t *testing.T) {
	change := func(n, id int) string { return fmt.Sprintf(`{"change":["insert",%d,["n%d",""],%d]}`, n, n, id) }
	tests := []struct {
		name string
		do   func(*Agent)
		want string // what follows the first change, up to the end of the body
		err  error  // nil is a clean end
	}{
		{"cut mid-line", (*Agent).CutMidLine, `{"change":["update",1,["x`, io.ErrUnexpectedEOF},
		{"end mid-line", (*Agent).EndMidLine, `{"change":["update",1,["x`, nil},
		{"clean end", (*Agent).EndStreams, "", nil},
		{"error event", func(a *Agent) { a.FailStreams("disk I/O error") }, `{"error":"disk I/O error"}` + "\n", nil},
		{"garbage", func(a *Agent) { a.SendGarbage("\x00{"); a.EndStreams() }, "\x00{\n", nil},
		{"duplicate", func(a *Agent) { a.DuplicateEvent(); a.EndStreams() }, change(1, 1) + "\n", nil},
		{"stop", (*Agent).Stop, "", nil},
		{"kill", (*Agent).Kill, "", io.ErrUnexpectedEOF},
		{"forget", (*Agent).ForgetSubscriptions, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgent(t)
			l := subscribe(t, a, "", names)
			mustWrite(t, a, insert(1))
			l.want(`{"columns":["name","project"]}`, `{"eoq":{"time":T,"change_id":0}}`, change(1, 1))
			tt.do(a)
			got, err := l.end()
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestSkipEvent(t *testing.T) {
	a := newAgent(t)
	l := subscribe(t, a, "?skip_rows=true", names)
	mustWrite(t, a, insert(1))
	l.want(`{"change":["insert",1,["n1",""],1]}`)
	a.SkipEvent()
	mustWrite(t, a, insert(2))
	mustWrite(t, a, insert(3))
	l.want(`{"change":["insert",3,["n3",""],3]}`)
	l.again(a, "?from=1").want(`{"change":["insert",2,["n2",""],2]}`)
}

func TestStall(t *testing.T) {
	a := newAgent(t)
	l := subscribe(t, a, "?skip_rows=true", names)
	a.Stall()
	mustWrite(t, a, insert(1))
	time.Sleep(50 * time.Millisecond) // for a line to come that must not
	a.mu.Lock()
	waiting := 0
	for _, s := range a.subs {
		for l := range s.listeners {
			waiting += len(l.queue)
		}
	}
	a.mu.Unlock()
	if waiting != 1 {
		t.Errorf("%d events wait, want 1", waiting)
	}
	a.Resume()
	l.want(`{"change":["insert",1,["n1",""],1]}`)
}

func TestPurgeHistory(t *testing.T) {
	a := New(t, Config{Schema: readSchemaFile(t), Token: "t0ken", History: 3})
	l := subscribe(t, a, "", names)
	for i := 1; i <= 5; i++ {
		mustWrite(t, a, insert(i))
	}
	if got, want := l.again(a, "?from=1").rest(), `{"error":"subscription already deleted older changes, min change id: 3"}`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	l.again(a, "?from=2").want(`{"change":["insert",3,["n3",""],3]}`)
	a.PurgeHistory(1)
	if got, want := l.again(a, "?from=3").rest(), `{"error":"subscription already deleted older changes, min change id: 5"}`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestForgottenAndKept(t *testing.T) {
	a := newAgent(t)
	l := subscribe(t, a, "", names)
	id := l.header.Get("corro-query-id")
	mustWrite(t, a, insert(1))
	a.Stop()
	a.Start()
	l.again(a, "?from=0").want(`{"columns":["name","project"]}`, `{"row":[1,["n1",""]]}`, `{"eoq":{"time":T,"change_id":1}}`)
	a.Kill()
	a.Start()
	lost := l.again(a, "?from=1")
	if got := lost.rest(); lost.status != 404 || got != `{"error":"could not find subscription with id `+id+`"}` {
		t.Errorf("got %d %s", lost.status, got)
	}
	l = subscribe(t, a, "", names)
	if l.header.Get("corro-query-id") == id {
		t.Error("the old ID again after a crash")
	}
	l.want(`{"columns":["name","project"]}`, `{"row":[1,["n1",""]]}`, `{"eoq":{"time":T,"change_id":0}}`)
}

func TestLoseRowsOfFirst(t *testing.T) {
	a := newAgent(t)
	mustWrite(t, a, insert(1), insert(2))
	a.LoseRowsOfFirst(1)
	first := subscribe(t, a, "", names)
	if got, want := first.rest(), `{"columns":["name","project"]}`+"\n"+`{"row":[1,["n1",""]]}`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	second := subscribe(t, a, "", names)
	second.want(`{"columns":["name","project"]}`, `{"row":[1,["n1",""]]}`, `{"row":[2,["n2",""]]}`, `{"eoq":{"time":T,"change_id":0}}`)
	if first.header.Get("corro-query-id") != second.header.Get("corro-query-id") {
		t.Error("the second attempt got another subscription")
	}
}

func TestSlowSubscriber(t *testing.T) {
	a := New(t, Config{Schema: readSchemaFile(t), Token: "t0ken", Ring: 2})
	l := subscribe(t, a, "?skip_rows=true", names)
	a.Stall() // stands for a reader that does not read
	mustWrite(t, a, insert(1), insert(2), insert(3), insert(4))
	a.Resume()
	if got, want := l.rest(), `{"change":["insert",1,["n1",""],1]}`+"\n"+`{"change":["insert",2,["n2",""],2]}`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCoalesce(t *testing.T) {
	a := New(t, Config{Schema: readSchemaFile(t), Token: "t0ken", Coalesce: 200 * time.Millisecond})
	l := subscribe(t, a, "?skip_rows=true", names)
	begin := time.Now()
	mustWrite(t, a, insert(1))
	mustWrite(t, a, "UPDATE services SET project = 'p'")
	mustWrite(t, a, insert(2))
	mustWrite(t, a, "DELETE FROM services WHERE name = 'n2'")
	l.want(`{"change":["insert",1,["n1","p"],1]}`)
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("told after %v, want 200ms or more", took)
	}
	mustWrite(t, a, insert(3))
	l.want(`{"change":["insert",2,["n3",""],2]}`)
}

func TestHealth(t *testing.T) {
	get := func(a *Agent, params string) string {
		l := open(t, a, "GET", "/v1/health"+params, "")
		return fmt.Sprint(l.status, " ", l.rest())
	}
	const noLag = `503 {"error":"no p99 lag information available"}`
	a, b := newAgent(t), newAgent(t)
	if got := get(a, ""); got != noLag {
		t.Errorf("alone: %s", got)
	}
	Link(a, b)
	mustWrite(t, b, insert(1))
	if got, want := get(a, ""), `200 {"response":{"gaps":0,"members":2,"p99_lag":0.01,"queue_size":0}}`; got != want {
		t.Errorf("after a change of another: %s, want %s", got, want)
	}
	a.SetHealth(Health{Gaps: 3, Members: 2, P99Lag: 1500 * time.Millisecond})
	const said = `{"response":{"gaps":3,"members":2,"p99_lag":1.5,"queue_size":0}}`
	for params, want := range map[string]string{"": "200 ", "?gaps=3": "200 ", "?gaps=2": "503 ", "?p99_lag=0.5&failure_status=599": "599 "} {
		if got := get(a, params); got != want+said {
			t.Errorf("%s: %s, want %s", params, got, want+said)
		}
	}
	a.SetNoLag()
	if got := get(a, ""); got != noLag {
		t.Errorf("no lag: %s", got)
	}
}

func TestSchemaMissing(t *testing.T) {
	for name, schema := range map[string]string{
		"none":         "",
		"unique index": readSchemaFile(t) + "CREATE UNIQUE INDEX one ON services (project);",
		"no default":   readSchemaFile(t) + "CREATE TABLE x (id TEXT PRIMARY KEY NOT NULL, v TEXT NOT NULL);",
		"no key":       readSchemaFile(t) + "CREATE TABLE x (id TEXT PRIMARY KEY);",
		"view":         readSchemaFile(t) + "CREATE VIEW x AS SELECT 1;",
		"syntax":       readSchemaFile(t) + "CREATE TABEL x;",
	} {
		t.Run(name, func(t *testing.T) {
			a := New(t, Config{Schema: schema, Token: "t0ken"})
			if got := query(t, a, names); got != `{"error":"no such table: services"}` {
				t.Errorf("got %s", got)
			}
			if l := subscribe(t, a, "", names); l.status != 400 {
				t.Errorf("subscription: status %d, want 400", l.status)
			}
			if err := write(a, insert(1)); err == nil || !strings.Contains(err.Error(), "no such table: services") {
				t.Errorf("write: %v", err)
			}
			if err := a.Reload(readSchemaFile(t)); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, a, insert(1))
		})
	}
}

func TestReloadRefuses(t *testing.T) {
	a := newAgent(t)
	for _, schema := range []string{
		"CREATE TABLE services (name TEXT PRIMARY KEY NOT NULL)",                                                    // a column removed
		"CREATE TABLE services (name TEXT PRIMARY KEY NOT NULL, project TEXT NOT NULL DEFAULT 'x')",                 // a default changed
		"CREATE TABLE services (name TEXT NOT NULL, project TEXT NOT NULL DEFAULT '', PRIMARY KEY (name, project))", // the key changed
	} {
		if err := a.Reload(schema); err == nil {
			t.Errorf("%s: accepted", schema)
		}
	}
	mustWrite(t, a, insert(1))
}

func TestEndpointName(t *testing.T) {
	a := New(t, Config{EndpointName: "right"})
	for name, want := range map[string]int{"": 200, "right": 200, "wrong": 421} {
		r, err := http.NewRequest("POST", a.URL()+"/v1/queries", strings.NewReader(`"SELECT 1"`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if name != "" {
			r.Header.Set("x-corrosion-requested-endpoint-name", name)
		}
		response, err := client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("endpoint %q: status %d, want %d", name, response.StatusCode, want)
		}
	}
}

func TestH2C(t *testing.T) {
	a := newAgent(t)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequest("POST", a.URL()+"/v1/queries", strings.NewReader(`"SELECT 1"`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer t0ken")
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil || response.ProtoMajor != 2 || settle(string(b)) != `{"columns":["1"]}`+"\n"+`{"row":[1,[1]]}`+"\n"+`{"eoq":{"time":T}}`+"\n" {
		t.Errorf("HTTP/%d, %q, %v", response.ProtoMajor, b, err)
	}
}

func TestStoppedRefuses(t *testing.T) {
	a := newAgent(t)
	a.Stop()
	c, err := net.Dial("tcp", strings.TrimPrefix(a.URL(), "http://"))
	if err == nil {
		c.Close()
		t.Error("a stopped agent accepts a connection")
	}
}
