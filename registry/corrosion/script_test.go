package corrosion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const subID = "8cbe8a79-b471-401c-96d8-0fa7bfd2439d"

// A step answers one request.
type step func(w http.ResponseWriter, r *http.Request)

// say sends events and ends the body.
func say(lines ...string) step {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("corro-query-id", subID)
		io.WriteString(w, strings.Join(lines, ""))
		w.(http.Flusher).Flush()
	}
}

// then does all steps for one request.
func then(steps ...step) step {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, s := range steps {
			s(w, r)
		}
	}
}

// hold is silent until the client leaves.
func hold(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// cut breaks the connection.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func wait(d time.Duration) step {
	return func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
}

func status(code int, body string) step {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// A script is an agent that answers one step after the other, the last one for ever.
type script struct {
	steps []step
	mu    sync.Mutex // guards asked
	asked []asked
}

// An asked is one request.
type asked struct {
	request string // method and path
	body    string
	at      time.Time
}

func (s *script) all() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *script) requests() (list []string) {
	for _, a := range s.all() {
		list = append(list, a.request)
	}
	return list
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	do := s.steps[min(len(s.asked), len(s.steps)-1)]
	s.asked = append(s.asked, asked{r.Method + " " + strings.ReplaceAll(r.URL.String(), subID, "ID"), string(body), time.Now()})
	s.mu.Unlock()
	do(w, r)
}

// A pipe is a network in memory, whose time is a test's.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// play returns a client of an agent that follows steps. It works in a bubble.
func play(t *testing.T, cfg Config, steps ...step) (*Client, *script) {
	t.Helper()
	s := &script{steps: steps}
	p := &pipe{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: s}
	go server.Serve(p)
	cfg.URL = "http://127.0.0.1:8080"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.transport.DialContext = p.dial
	t.Cleanup(func() {
		c.Close()
		server.Close()
	})
	return c, s
}

// A record is a View that writes down what it is told.
type record struct {
	lines []string
	at    []time.Time
	lost  error // the latest
}

func (r *record) add(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
	r.at = append(r.at, time.Now())
}

func (r *record) Begin()                        { r.add("begin") }
func (r *record) Row(cells []any)               { r.add("row %v", cells) }
func (r *record) End()                          { r.add("end") }
func (r *record) Change(kind Kind, cells []any) { r.add("%v %v", kind, cells) }
func (r *record) Resumed()                      { r.add("resumed") }
func (r *record) Lost(err error) {
	r.lost = err
	r.add("lost %v", err)
}

type (
	writer  = http.ResponseWriter
	request = *http.Request
	flusher = http.Flusher
)
