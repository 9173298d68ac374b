package corrosion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	columns = `{"columns":["id","ip"]}` + "\n"
	rowA    = `{"row":[1,["a","1"]]}` + "\n"
	eoq0    = `{"eoq":{"time":5e-8,"change_id":0}}` + "\n"
	eoq7    = `{"eoq":{"time":5e-8,"change_id":7}}` + "\n"
	change1 = `{"change":["insert",2,["b","2"],1]}` + "\n"
	change2 = `{"change":["update",2,["b","3"],2]}` + "\n"
	change3 = `{"change":["delete",2,["b","3"],3]}` + "\n"
	change7 = `{"change":["insert",2,["b","7"],7]}` + "\n"
	change8 = `{"change":["insert",2,["b","8"],8]}` + "\n"

	post = "POST /v1/subscriptions"
)

var (
	whole  = then(say(columns, rowA, eoq0), hold)
	first  = say(columns, rowA, eoq0, change1) // and the end of the body
	shown  = []string{"begin", "row [a 1]", "end"}
	shown1 = append(slices.Clone(shown), "insert [b 2]")
)

func get(from string) string { return "GET /v1/subscriptions/ID?from=" + from }

func join(parts ...any) (all []string) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all = append(all, p)
		case []string:
			all = append(all, p...)
		}
	}
	return all
}

func TestFollow(t *testing.T) {
	again := []string{post, get("1"), post}
	for _, tt := range []struct {
		name     string
		steps    []step
		want     []string // a line that begins with "lost" has to contain the rest
		requests []string
	}{
		{"result and changes",
			[]step{then(say(columns, rowA, eoq0), wait(time.Hour), say(change1, change2, change3), hold)},
			join(shown, "insert [b 2]", "update [b 3]", "delete [b 3]"), []string{post}},
		{"resumes after a clean end",
			[]step{first, then(say(change2), hold)},
			join(shown1, "lost agent ended the stream", "resumed", "update [b 3]"), []string{post, get("1")}},
		{"resumes in silence",
			[]step{first, then(say(), hold)},
			join(shown1, "lost agent ended the stream", "resumed"), []string{post, get("1")}},
		{"resumes after silence and then changes",
			[]step{first, then(say(), wait(time.Minute), say(change2), hold)},
			join(shown1, "lost agent ended", "resumed", "update [b 3]"), []string{post, get("1")}},
		{"resumes after a broken connection",
			[]step{then(first, say(change2[:20]), cut), then(say(change2), hold)},
			join(shown1, "lost connection ended inside the response", "resumed", "update [b 3]"), []string{post, get("1")}},
		{"resumes again after it did not come to that", // net/http repeats the GET that is cut
			[]step{first, cut, say(), status(401, ""), status(503, "max concurrency limit reached"), then(say(change2), hold)},
			join(shown1, "lost ended", "lost ended", "lost 401 Unauthorized: wrong or missing token", "lost 503 Service Unavailable: max concurrency", "resumed", "update [b 3]"),
			[]string{post, get("1"), get("1"), get("1"), get("1"), get("1")}},
		{"resumes after the newest change of the result",
			[]step{say(columns, eoq7), then(say(change8), hold)},
			join("begin", "end", "lost ended", "resumed", "insert [b 8]"), []string{post, get("7")}},
		{"begins anew without a change to resume from",
			[]step{say(columns, rowA, eoq0), whole},
			join(shown, "lost ended the stream", shown), []string{post, post}},
		{"begins anew without an id",
			[]step{func(w writer, r request) {
				w.Header().Set("corro-query-id", "../../v1/transactions?aaaaaaaaaaaaaaa")
				w.Write([]byte(columns + rowA + eoq0 + change1))
			}, whole},
			join(shown1, "lost ended the stream", shown), []string{post, post}},
		{"unknown subscription",
			[]step{first, status(404, `{"error":"could not find subscription with id 8cbe"}`), whole},
			join(shown1, "lost ended", "lost 404 Not Found: could not find subscription with id 8cbe", shown), again},
		{"resuming refused as 500",
			[]step{first, status(500, `"Error: missing broadcaster"`), whole},
			join(shown1, "lost ended", "lost 500 Internal Server Error: missing broadcaster", shown), again},
		{"resuming refused as 400",
			[]step{first, status(400, "Failed to deserialize"), whole},
			join(shown1, "lost ended", "lost 400 Bad Request: Failed to", shown), again},
		{"older changes deleted",
			[]step{first, say(`{"error":"subscription already deleted older changes, min change id: 9"}` + "\n"), whole},
			join(shown1, "lost ended", "lost agent failed: subscription already deleted older changes, min change id: 9", shown), again},
		{"changes missing after resuming",
			[]step{first, then(say(change3), hold), whole},
			join(shown1, "lost ended", "lost changes are missing: 2 to 2", shown), again},
		{"agent is behind",
			[]step{say(columns, eoq7), then(say(change1), hold), whole},
			join("begin", "end", "lost ended", "lost agent is behind what was seen of this subscription: change 1 after 7", shown),
			[]string{post, get("7"), post}},
		{"resuming brings the whole result",
			[]step{first, then(say(columns, rowA, eoq7, change8), hold)},
			join(shown1, "lost ended", shown, "insert [b 8]"), []string{post, get("1")}},
		{"resuming brings the whole result late",
			[]step{first, then(say(), wait(time.Minute), say(columns, rowA, eoq7), hold)},
			join(shown1, "lost ended", "resumed", shown), []string{post, get("1")}},
		{"resuming brings half a result",
			[]step{first, say(columns, rowA), whole},
			join(shown1, "lost ended", "begin", "row [a 1]", "lost before the end of query", shown), again},
		{"gap", []step{then(say(columns, rowA, eoq0, change1, change3), hold), whole},
			join(shown1, "lost changes are missing: 2 to 2", shown), []string{post, post}},
		{"duplicates", []step{then(say(columns, rowA, eoq0, change1, change1, change2, change1, change2, change3), hold)},
			join(shown1, "update [b 3]", "delete [b 3]"), []string{post}},
		{"duplicate of the result", []step{then(say(columns, eoq7, change7, change8), hold)},
			join("begin", "end", "insert [b 8]"), []string{post}},
		{"slow first result", []step{say(columns, rowA), whole},
			join("begin", "row [a 1]", "lost response ended before the end of query", shown), []string{post, post}},
		{"nothing at all", []step{say(), whole},
			join("lost response ended before the end of query", shown), []string{post, post}},
		{"broken result", []step{then(say(columns, rowA, rowA[:9]), cut), whole},
			join("begin", "row [a 1]", "lost connection ended inside", shown), []string{post, post}},
		{"result ends inside a line", []step{say(columns, rowA, rowA[:9]), whole},
			join("begin", "row [a 1]", "lost want ',' and the cells", shown), []string{post, post}},
		{"matcher failed", []step{then(whole0, say(`{"error":"oh"}`+"\n")), whole},
			join(shown, "lost agent failed: oh", shown), []string{post, post}},
		{"garbage", []step{then(first, say("<html>\n"), hold), whole},
			join(shown1, `lost line "<html>\n": byte 1: want an event`, shown), []string{post, post}},
		{"hang after the headers", []step{then(say(), hold), whole},
			join("lost no event within 30s: agent is silent", shown), []string{post, post}},
		{"hang before the headers", []step{hold, whole},
			join("lost no response within 1m0s: agent is silent", shown), []string{post, post}},
		{"hang before the headers when resuming", []step{first, hold, whole},
			join(shown1, "lost ended", "lost no response within 1m0s", shown), again},
		{"hang inside the result", []step{then(say(columns, rowA), hold), whole},
			join("begin", "row [a 1]", "lost no event within 30s", shown), []string{post, post}},
		{"hang inside a result that resuming brought", []step{first, then(say(columns, rowA), hold), whole},
			join(shown1, "lost ended", "begin", "row [a 1]", "lost no event within 30s", shown), again},
		{"slow result", []step{then(say(columns), wait(29*time.Second), say(rowA), wait(29*time.Second), say(eoq0), hold)},
			shown, []string{post}},
		{"refused", []step{status(400, `{"error":"no such table: nope"}`), status(500, `"Error: no such table: nope"`), status(401, ""), status(503, "max"), whole},
			join("lost 400 Bad Request: no such table: nope", "lost 500 Internal Server Error: no such table: nope", "lost 401", "lost 503", shown),
			[]string{post, post, post, post, post}},
		{"handler panics", []step{cut, whole}, join("lost EOF", shown), []string{post, post}},
		{"unknown event", []step{then(say(columns, `{"later":[1]}`+"\n", rowA, eoq0), hold)}, shown, []string{post}},
		{"row with other cells", []step{say(columns, `{"row":[1,["a"]]}`+"\n"), whole},
			join("begin", "lost a row of 1 cells, want 2 as there are columns", shown), []string{post, post}},
		{"change with other cells", []step{say(columns, eoq0, `{"change":["insert",1,["a"],1]}`+"\n"), whole},
			join("begin", "end", "lost a change of 1 cells, want 2", shown), []string{post, post}},
		{"row first", []step{say(rowA), whole}, join("lost got a row, want columns", shown), []string{post, post}},
		{"change in the result", []step{say(columns, change1), whole},
			join("begin", "lost got a change, want a row or the end of query", shown), []string{post, post}},
		{"row after the result", []step{say(columns, eoq0, rowA), whole},
			join("begin", "end", "lost got a row, want a change", shown), []string{post, post}},
		{"row when resuming", []step{first, say(rowA), whole},
			join(shown1, "lost ended", "lost got a row, want a change or columns", shown), again},
		{"end without change id", []step{say(columns, `{"eoq":{"time":1}}`+"\n"), whole},
			join("begin", "lost end of query without change id", shown), []string{post, post}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := play(t, Config{}, tt.steps...)
				r := follow(t, c, 3*time.Hour)
				if !matches(r.lines, tt.want) {
					t.Errorf("view was told\n %s\nwant\n %s", strings.Join(r.lines, "\n "), strings.Join(tt.want, "\n "))
				}
				if got := s.requests(); !slices.Equal(got, tt.requests) {
					t.Errorf("requests %q, want %q", got, tt.requests)
				}
			})
		})
	}
}

var whole0 = say(columns, rowA, eoq0)

// follow runs Follow for d.
func follow(t *testing.T, c *Client, d time.Duration) *record {
	t.Helper()
	r := &record{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Follow(ctx, SQL("SELECT id, ip FROM t WHERE x = ?", "y"), r) }()
	time.Sleep(d)
	cancel()
	start := time.Now()
	if err := <-done; err != nil {
		t.Errorf("Follow: %v", err)
	}
	if took := time.Since(start); took != 0 {
		t.Errorf("Follow returned %v after its context", took)
	}
	return r
}

func matches(got, want []string) bool {
	return slices.EqualFunc(got, want, func(got, want string) bool {
		if part, ok := strings.CutPrefix(want, "lost "); ok {
			return strings.HasPrefix(got, "lost ") && strings.Contains(got, part)
		}
		return got == want
	})
}

func TestFollowSaysWhenItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, first, then(say(), hold))
		r := follow(t, c, time.Minute)
		n := len(r.at)
		if r.lines[n-1] != "resumed" {
			t.Fatalf("last was %q", r.lines[n-1])
		}
		if d := r.at[n-1].Sub(r.at[n-2]); d < minWait+settle || d > 2*minWait+settle {
			t.Errorf("resumed %v after it was lost, want the wait and %v", d, settle)
		}
	})
}

func TestFollowBacksOff(t *testing.T) {
	deleted := say(`{"error":"subscription already deleted older changes, min change id: 9"}` + "\n")
	var alternating, failing []step
	for range 1000 {
		alternating = append(alternating, first, deleted)
		failing = append(failing, first, say(change2, `{"error":"oh"}`+"\n"))
	}
	for name, steps := range map[string][]step{
		"refused":             {status(500, "")},
		"broken":              {cut},
		"ended":               {say()},
		"result, then ended":  {say(columns, rowA, eoq0)},
		"older deleted":       {say(columns, eoq7), deleted},
		"result, then gap":    {say(columns, rowA, eoq0, change1, change3)},
		"result, then change": alternating,
		"change, then error":  failing,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := play(t, Config{}, steps...)
				follow(t, c, 10*time.Minute)
				// 2.5 to 5 s each, once it has grown to that.
				if n := len(s.all()); n < 120 || n > 250 {
					t.Errorf("%d requests in 10 minutes, want 120 to 250", n)
				}
			})
		})
	}
}

func TestFollowReturnsQuicklyAfterProgress(t *testing.T) {
	alive := then(say(columns, rowA, eoq0), wait(maxWait), say(change1))
	for name, steps := range map[string][]step{
		"result that lasted":  {status(500, ""), status(500, ""), status(500, ""), status(500, ""), status(500, ""), status(500, ""), alive, whole},
		"resumed with change": {first, status(401, ""), status(401, ""), status(401, ""), status(401, ""), status(401, ""), say(change2), whole},
		"resumed that lasted": {first, status(401, ""), status(401, ""), status(401, ""), status(401, ""), status(401, ""), then(say(), wait(2*maxWait)), whole},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := play(t, Config{}, steps...)
				r := follow(t, c, 10*time.Minute)
				var lost time.Time
				for i, line := range r.lines {
					if strings.HasPrefix(line, "lost") {
						lost = r.at[i]
					}
				}
				asked := s.all()
				if n := len(asked); n != 8 {
					t.Fatalf("%d requests, want 8", n)
				}
				if d := asked[7].at.Sub(lost); d > 2*minWait {
					t.Errorf("waited %v after progress, want at most %v", d, 2*minWait)
				}
				if d := asked[6].at.Sub(asked[5].at); d < time.Second {
					t.Errorf("waited %v before, want longer", d)
				}
			})
		})
	}
}

func TestFollowLeavesAStuckSubscription(t *testing.T) {
	stuck := then(say(), hold)
	missing := status(500, `{"error":"missing broadcaster"}`)
	synctest.Test(t, func(t *testing.T) {
		c, s := play(t, Config{}, stuck, missing, stuck, whole)
		r := follow(t, c, 10*time.Minute)
		if last := r.lines[len(r.lines)-1]; last != "end" {
			t.Errorf("last was %q", last)
		}
		asked := s.all()
		if len(asked) != 4 {
			t.Fatalf("%d requests, want 4", len(asked))
		}
		for i, want := range []string{"x = ?", "x = ?", "x = ?", "x = ? "} {
			if want = `{"query":"SELECT id, ip FROM t WHERE ` + want + `","params":["y"]}`; asked[i].body != want {
				t.Errorf("request %d is %s, want %s", i, asked[i].body, want)
			}
		}
	})
}

func TestFollowRefusesWhatCannotBeSent(t *testing.T) {
	c, s := play(t, Config{}, whole)
	if err := c.Follow(t.Context(), SQL("SELECT ?", struct{}{}), &record{}); err == nil {
		t.Error("no error")
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("requests %q", got)
	}
}

// Wherever Follow is when its context ends, it returns at once.
func TestFollowEndsAnywhere(t *testing.T) {
	for name, steps := range map[string][]step{
		"headers":  {hold},
		"result":   {then(say(columns, rowA), hold)},
		"live":     {whole},
		"waiting":  {status(500, "")},
		"settling": {first, then(say(), hold)},
		"resumed":  {first, then(say(), wait(time.Second), hold)},
		"error":    {then(func(w writer, _ request) { w.WriteHeader(500); w.(flusher).Flush() }, hold)},
	} {
		for _, d := range []time.Duration{0, time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, 2 * time.Second} {
			t.Run(name+" "+d.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, _ := play(t, Config{}, steps...)
					follow(t, c, d)
				})
			})
		}
	}
}

func TestFollowLimitsAResult(t *testing.T) {
	endless := func(w writer, r request) {
		w.Write([]byte(columns))
		for r.Context().Err() == nil {
			w.Write([]byte(rowA))
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{MaxResult: 100_000}, endless, whole)
		r := follow(t, c, time.Minute)
		i := slices.IndexFunc(r.lines, func(s string) bool { return strings.Contains(s, "result of more than 100000 bytes") })
		if i < 0 || i > (100_000+readBuffer)/len(rowA)+10 { // what was read with the columns is not counted
			t.Errorf("lost after %d lines", i)
		}
		if n := len(r.lines); !slices.Equal(r.lines[n-3:], shown) {
			t.Errorf("then %q", r.lines[n-3:])
		}
	})
}

func TestFollowLimitsALine(t *testing.T) {
	endless := func(w writer, r request) {
		for r.Context().Err() == nil {
			w.Write([]byte(strings.Repeat("x", 1<<16)))
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, endless, whole)
		r := follow(t, c, time.Minute)
		if !matches(r.lines, join("lost line of more than 4194304 bytes", shown)) {
			t.Errorf("%q", r.lines)
		}
	})
}

func TestBackoff(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	for n, want := range []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000, 5000} {
		want *= time.Millisecond
		for _, of := range []struct {
			err  error
			want time.Duration
		}{{errCut, want}, {refused, min(want, 500*time.Millisecond)}} {
			if d := backoff(n, of.err, 0); d != of.want/2 {
				t.Errorf("after %d failures, the last one %v, at least %v, want %v", n, of.err, d, of.want/2)
			}
			if d := backoff(n, of.err, 1); d != of.want {
				t.Errorf("after %d failures, the last one %v, at most %v, want %v", n, of.err, d, of.want)
			}
		}
	}
	if d := backoff(1_000_000, errCut, 1); d != maxWait {
		t.Errorf("after a million failures %v", d)
	}
}

// An agent that is back after an outage is read at once, though it has forgotten
// the subscription.
func TestFollowAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, then(say(columns, rowA, eoq7), cut), status(404, ""), then(say(columns, rowA, eoq7), hold))
		dial, begun, back := c.transport.DialContext, time.Now(), time.Hour
		away := false
		c.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away && time.Since(begun) < back {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			conn, err := dial(ctx, network, addr)
			away = true
			return conn, err
		}
		r := follow(t, c, 2*time.Hour)
		n := len(r.lines)
		if r.lines[n-1] != "end" || !strings.Contains(r.lines[n-4], "404") {
			t.Fatalf("it ends with %q", r.lines[n-4:])
		}
		if late := r.at[n-1].Sub(begun) - back; late > time.Second {
			t.Errorf("shown %v after the agent was back", late)
		}
	})
}

func TestFollowTellsErrorsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, status(401, ""))
		if r := follow(t, c, time.Minute); !errors.Is(r.lost, ErrUnauthorized) {
			t.Errorf("lost for %v, want ErrUnauthorized", r.lost)
		}
	})
}
