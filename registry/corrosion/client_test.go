package corrosion

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestNewRefuses(t *testing.T) {
	for _, u := range []string{
		"", "127.0.0.1:8080", "https://127.0.0.1:8080", "unix:///x", "http://127.0.0.1", "http://:8080", "http://127.0.0.1:0", "http://127.0.0.1:65536",
		"http://127.0.0.1:8080/v1", "http://127.0.0.1:8080?", "http://127.0.0.1:8080?a=b", "http://127.0.0.1:8080#", "http://127.0.0.1:8080#x",
		"http://me:s3cret@127.0.0.1:8080", "http://me:s3cret@127.0.0.1:80x", "http://[zz]:8080", "http://[::1:8080", " http://127.0.0.1:8080", "http://127.0.0.1:8080\n",
	} {
		_, err := New(Config{URL: u})
		if err == nil {
			t.Errorf("%q: no error", u)
		} else if s := err.Error(); !strings.Contains(s, "want http://HOST:PORT") || strings.Contains(s, "s3cret") || strings.Contains(s, "\n") {
			t.Errorf("%q: error %q", u, s)
		}
	}
	for _, cfg := range []Config{{Token: "s3 cret"}, {Token: "s3cret\r\nX: y"}, {Token: "s3crét"}, {Token: strings.Repeat("s3cret", 1000)}, {DialTimeout: -1}, {ReplyTimeout: -1}, {EventTimeout: -1}, {MaxResult: -1}} {
		cfg.URL = "http://127.0.0.1:8080"
		if _, err := New(cfg); err == nil || strings.Contains(err.Error(), "s3") {
			t.Errorf("%v: error %v", cfg, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:8080", "http://127.0.0.1:8080/", "http://[::1]:8080", "http://localhost:8080"} {
		c, err := New(Config{URL: u})
		if err != nil || c.base != strings.TrimSuffix(u, "/") {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	const token = "s3cret-t0ken"
	var logged bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	echo := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			t.Errorf("Authorization %q", r.Header.Get("Authorization"))
		}
		w.WriteHeader(500)
		fmt.Fprint(w, "you sent ", r.Header)
	}
	line := say(`you sent ` + token + "\n")
	reply := status(200, `{"`+token)
	cfg := Config{Token: token, Log: log}
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, cfg, echo, line, reply, reply, echo)
		var said []string
		_, err := c.Exec(t.Context(), SQL("x"))
		said = append(said, err.Error())
		said = append(said, c.Query(t.Context(), SQL("x"), nil).Error())
		_, err = c.Exec(t.Context(), SQL("x"))
		said = append(said, err.Error())
		_, err = c.Health(t.Context())
		said = append(said, err.Error())
		said = append(said, follow(t, c, time.Minute).lines...)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			said = append(said, fmt.Sprintf(verb, cfg), fmt.Sprintf(verb, &cfg), fmt.Sprintf(verb, c))
			said = append(said, fmt.Sprintf(verb, struct{ Config Config }{cfg}))
		}
		b, _ := json.Marshal(cfg)
		log.Info("config", "value", cfg, "pointer", &cfg, "client", c)
		said = append(said, string(b), logged.String())
		for _, s := range said {
			if strings.Contains(s, token) || strings.Contains(s, fmt.Sprintf("%x", token)) {
				t.Errorf("%s", s)
			}
		}
		if !strings.Contains(said[0], "[token]") {
			t.Errorf("said %q", said[0])
		}
	})
}

// A real server, which no proxy stands before, counts its requests.
func serve(t *testing.T, h http.HandlerFunc) (*Client, *atomic.Int32) {
	t.Helper()
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		h(w, r)
	}))
	t.Cleanup(server.Close)
	c, err := New(Config{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, &n
}

func TestExecIsSentOnce(t *testing.T) {
	ok := `{"results":[{"rows_affected":1,"time":0.1}],"time":0.1,"version":1,"actor_id":"9da88143ae1a41a3b9ba645713e9547d"}`
	fail := false
	c, n := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if fail {
			panic(http.ErrAbortHandler)
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, ok)
	})
	if _, err := c.Exec(t.Context(), SQL("x")); err != nil { // leaves an idle connection
		t.Fatal(err)
	}
	fail = true
	_, err := c.Exec(t.Context(), SQL("x"))
	if e, ok := errors.AsType[*Error](err); err == nil || ok {
		t.Errorf("error %v (%v), want one that is no answer", err, e)
	}
	if n := n.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

func TestNoRedirect(t *testing.T) {
	c, n := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	err := c.Query(t.Context(), SQL("x"), nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 307 {
		t.Errorf("error %v, want status 307", err)
	}
	if n.Load() != 1 {
		t.Errorf("%d requests, want 1", n.Load())
	}
}

func TestNoProxy(t *testing.T) {
	c, err := New(Config{URL: "http://127.0.0.1:8080"})
	if err != nil {
		t.Fatal(err)
	}
	if c.transport.Proxy != nil {
		t.Error("takes a proxy")
	}
}

func TestNoAgent(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	c, err := New(Config{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(t.Context(), SQL("x"))
	if err == nil || !strings.Contains(err.Error(), "POST "+server.URL+"/v1/transactions: dial tcp") || strings.Count(err.Error(), "POST") != 1 {
		t.Errorf("error %v", err)
	}
}

func TestQueryUsesItsConnectionAgain(t *testing.T) {
	var addrs []string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		addrs = append(addrs, r.RemoteAddr)
		then(say(columns), say(rowA), say(`{"eoq":{"time":1e-8}}`+"\n"))(w, r)
	})
	for range 3 {
		if err := c.Query(t.Context(), SQL("x"), func([]any) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if addrs[0] != addrs[1] || addrs[1] != addrs[2] {
		t.Errorf("connections from %q, want one", addrs)
	}
}

func TestQuery(t *testing.T) {
	end := `{"eoq":{"time":1e-8}}` + "\n"
	bad := errors.New("bad row")
	for _, tt := range []struct {
		name string
		step step
		rows int
		want string // part of the error; empty: none
	}{
		{"rows", say(columns, rowA, rowA, end), 2, ""},
		{"no rows", say(columns, end), 0, ""},
		{"end without the end of the body", then(say(columns, rowA, end), hold), 1, ""},
		{"end and then drops for ever", then(say(columns, end), func(w writer, r request) {
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(flusher).Flush()
				wait(100*time.Millisecond)(w, r)
			}
		}), 0, ""},
		{"no end", say(columns, rowA), 1, "response ended before the end of query"},
		{"empty body", say(), 0, "response ended before the end of query"},
		{"broken", then(say(columns, rowA), cut), 1, "connection ended inside the response"},
		{"error after rows", say(columns, rowA, `{"error":"integer overflow"}`+"\n"), 1, "agent failed: integer overflow"},
		{"error without a line end", say(columns, `{"error":"interrupted"}`), 0, "agent failed: interrupted"},
		{"change", say(columns, change1), 0, "got a change, want a row or the end of query"},
		{"silence", then(say(columns), hold), 0, "no event within 30s"},
		{"no response", hold, 0, "no response within 1m0s"},
		{"refused", status(400, `{"error":"statement is not readonly"}`), 0, "400 Bad Request: statement is not readonly"},
		{"endless error", func(w writer, r request) {
			w.WriteHeader(500)
			for r.Context().Err() == nil {
				w.Write(bytes.Repeat([]byte("x "), 1000))
			}
		}, 0, "500 Internal Server Error: x x x"},
		{"error that does not end", then(func(w writer, r request) {
			w.WriteHeader(500)
			w.Write([]byte("half"))
			w.(flusher).Flush()
		}, hold), 0, "500 Internal Server Error: half"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := play(t, Config{}, tt.step)
				rows := 0
				err := c.Query(t.Context(), SQL("x"), func(cells []any) error {
					rows++
					if !reflect.DeepEqual(cells, []any{"a", "1"}) {
						t.Errorf("cells %q", cells)
					}
					return nil
				})
				if rows != tt.rows {
					t.Errorf("%d rows, want %d", rows, tt.rows)
				}
				if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || len(err.Error()) > 700) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				if asked := s.all(); len(asked) != 1 || asked[0].body != `{"query":"x","params":[]}` {
					t.Errorf("requests %+v", asked)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, say(columns, rowA, rowA, end))
		n := 0
		err := c.Query(t.Context(), SQL("x"), func([]any) error {
			if n++; n == 2 {
				return bad
			}
			return nil
		})
		if !errors.Is(err, bad) || !strings.Contains(err.Error(), "row 2: bad row") {
			t.Errorf("error %v", err)
		}
	})
}

func TestContextEndsCalls(t *testing.T) {
	for name, do := range map[string]func(*Client, context.Context) error{
		"exec":   func(c *Client, ctx context.Context) error { _, err := c.Exec(ctx, SQL("x")); return err },
		"query":  func(c *Client, ctx context.Context) error { return c.Query(ctx, SQL("x"), nil) },
		"health": func(c *Client, ctx context.Context) error { _, err := c.Health(ctx); return err },
	} {
		for _, s := range []step{hold, then(say(), hold)} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, _ := play(t, Config{}, s)
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					start := time.Now()
					if err := do(c, ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error %v", err)
					}
					if took := time.Since(start); took != time.Second {
						t.Errorf("took %v", took)
					}
				})
			})
		}
	}
}

func TestErrorKinds(t *testing.T) {
	for _, tt := range []struct {
		step step
		kind error
		text string
	}{
		{status(401, ""), ErrUnauthorized, "401 Unauthorized: wrong or missing token"},
		{status(503, "max concurrency limit reached"), ErrBusy, "503 Service Unavailable: max concurrency limit reached"},
		{status(400, `{"error":"no such table: nope"}`), ErrNoTable, "400 Bad Request: no such table: nope"},
		{status(500, `"Error: no such table: nope"`), ErrNoTable, "500 Internal Server Error: no such table: nope"},
		{status(500, `{"results":[{"error":"rusqlite: no such table: nope (actor_id: None, version: None)"}],"time":0.0,"version":null,"actor_id":"x"}`), ErrNoTable, "rusqlite: no such table: nope"},
		{status(200, `{"results":[{"error":"no such table: nope"}],"version":null}`), ErrNoTable, "agent failed: statement failed: no such table"},
		{status(500, "a\r\n\x1b[31mb\x00\xff"), nil, "500 Internal Server Error: a [31mb"},
		{status(599, ""), nil, "agent answered 599"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := play(t, Config{}, tt.step)
			_, err := c.Exec(t.Context(), SQL("x"))
			if _, ok := errors.AsType[*Error](err); !ok || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q", err, tt.text)
			}
			for _, kind := range []error{ErrUnauthorized, ErrBusy, ErrNoTable} {
				if errors.Is(err, kind) != (kind == tt.kind) {
					t.Errorf("%v: is %v: %v", err, kind, errors.Is(err, kind))
				}
			}
		})
	}
}

func TestExecLimitsTheReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := play(t, Config{}, func(w writer, r request) {
			for r.Context().Err() == nil {
				w.Write(bytes.Repeat([]byte(" "), 4096))
			}
		})
		_, err := c.Exec(t.Context(), SQL("x"))
		if err == nil || !strings.Contains(err.Error(), "reply of more than 65792 bytes") {
			t.Errorf("error %v", err)
		}
		if _, err := c.Exec(t.Context()); err == nil {
			t.Error("no error without statements")
		}
	})
}

func TestParseReply(t *testing.T) {
	const actor = `"actor_id":"9da88143ae1a41a3b9ba645713e9547d"`
	id := [16]byte{0x9d, 0xa8, 0x81, 0x43, 0xae, 0x1a, 0x41, 0xa3, 0xb9, 0xba, 0x64, 0x57, 0x13, 0xe9, 0x54, 0x7d}
	for _, tt := range []struct {
		in   string
		n    int
		want Outcome
	}{
		{`{"results":[{"rows_affected":1,"time":0.1},{"rows_affected":0,"time":0.1}],"time":0.1,"version":9007199254740993,` + actor + `}`, 2,
			Outcome{true, 9007199254740993, id, []int64{1, 0}}},
		{`{"results":[{"rows_affected":1}],"version":null,"actor_id":"9da88143-ae1a-41a3-b9ba-645713e9547d"}`, 1, Outcome{false, 0, id, []int64{1}}},
		{`{"results":[{"rows_affected":1}]}`, 1, Outcome{RowsAffected: []int64{1}}},
	} {
		if out, failure, err := parseReply([]byte(tt.in), tt.n); err != nil || failure != "" || !reflect.DeepEqual(out, tt.want) {
			t.Errorf("%s: %+v, %q, %v", tt.in, out, failure, err)
		}
	}
	for _, in := range []string{
		``, `null`, `[]`, `{`, `{}`, `{"results":[]}`, `{"results":[{}]}`, `{"results":[{"rows_affected":-1}]}`, `{"results":[{"rows_affected":1.5}]}`,
		`{"results":[{"rows_affected":1},{"rows_affected":1}]}`, `{"results":[{"rows_affected":1}],"version":0}`, `{"results":[{"rows_affected":1}],"version":"1"}`,
		`{"results":[{"rows_affected":1}],"version":9223372036854775808}`, `{"results":[{"rows_affected":1}],"actor_id":"9da8"}`, `{"results":[{"rows_affected":1}],"actor_id":"zz"}`,
	} {
		if out, failure, err := parseReply([]byte(in), 1); err == nil {
			t.Errorf("%s: no error but %+v, %q", in, out, failure)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"results":[{"rows_affected":1,"time":0.1}],"time":0.1,"version":1,"actor_id":"9da88143ae1a41a3b9ba645713e9547d"}`), 1)
	f.Add([]byte(`{"results":[{"error":"rusqlite: no (actor_id: None, version: None)"}],"time":0.0,"version":null,"actor_id":""}`), 2)
	f.Add([]byte(`{"response":{"gaps":0,"members":2,"p99_lag":0.05,"queue_size":0}}`), 0)
	f.Add([]byte(`"Error: no"`), 0)
	f.Fuzz(func(t *testing.T, reply []byte, n int) {
		out, failure, err := parseReply(reply, n)
		if err == nil && failure == "" && (len(out.RowsAffected) != n || out.Changed != (out.Version > 0)) {
			t.Errorf("%d statements: %+v", n, out)
		}
		if h, err := parseHealth(reply); err == nil && (h.Gaps < 0 || h.Members < 0 || h.Lag < 0 || h.QueueSize < 0 || h.Idle) {
			t.Errorf("%+v", h)
		}
		text := oneLine(message(reply))
		if len(text) > maxMessage+3 || strings.ContainsAny(text, "\n\r\x1b\x00") {
			t.Errorf("message %q", text)
		}
	})
}

func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		step step
		want Health
		err  string
	}{
		{status(200, `{"response":{"gaps":3,"members":2,"p99_lag":0.05,"queue_size":7}}`), Health{Members: 2, Gaps: 3, Lag: 50 * time.Millisecond, QueueSize: 7}, ""},
		{status(200, `{"response":{"gaps":0,"members":0,"p99_lag":-0.5,"queue_size":0}}`), Health{}, ""},
		{status(503, `{"error":"no p99 lag information available"}`), Health{Idle: true}, ""},
		{status(503, "max concurrency limit reached"), Health{}, ErrBusy.Error()},
		{status(404, ""), Health{}, ErrNoHealth.Error()},
		{status(401, ""), Health{}, ErrUnauthorized.Error()},
		{status(200, `{"response":{"gaps":0,"members":0,"p99_lag":1e300,"queue_size":0}}`), Health{}, "p99_lag"},
		{status(200, `{"response":{"gaps":-1,"members":0,"p99_lag":1,"queue_size":0}}`), Health{}, "gaps"},
		{status(200, `{"response":{"gaps":0,"p99_lag":1,"queue_size":0}}`), Health{}, "members"},
		{status(200, `{}`), Health{}, "want a response"},
		{status(200, `<html>`), Health{}, `reply "<html>"`},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := play(t, Config{}, tt.step)
			h, err := c.Health(t.Context())
			if h != tt.want || (err == nil) != (tt.err == "") {
				t.Errorf("%+v, %v, want %+v, %q", h, err, tt.want, tt.err)
			}
			switch tt.err {
			case ErrBusy.Error():
				if !errors.Is(err, ErrBusy) {
					t.Errorf("error %v", err)
				}
			case "":
			default:
				if !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
			}
		})
	}
}

// Nothing is said to who is not trusted, before or after the connection is made.
func TestTrust(t *testing.T) {
	var heard atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) }))
	defer server.Close()
	no := errors.New("a stranger")
	for _, c := range []struct {
		name  string
		trust []error // in the order in which it is asked
		dials int
		heard int64
	}{
		{"Before", []error{no}, 0, 0},
		{"After", []error{nil, no}, 1, 0},
		{"Trusted", []error{nil, nil}, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			heard.Store(0)
			dials := 0
			client, err := New(Config{
				URL: server.URL, Token: "t0ken",
				Trust: func() error {
					err := c.trust[0]
					c.trust = c.trust[1:]
					return err
				},
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					dials++
					return new(net.Dialer).DialContext(ctx, network, address)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_, err = client.Exec(t.Context(), SQL("SELECT 1"))
			if errors.Is(err, no) != (c.heard == 0) || dials != c.dials || heard.Load() != c.heard || len(c.trust) > 0 {
				t.Errorf("%v after %d connections, %d requests heard, %d questions left", err, dials, heard.Load(), len(c.trust))
			}
		})
	}
}
