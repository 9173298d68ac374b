package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/acidtib/jiji-node/node/usage"
)

// SocketName is the name of the socket in the runtime directory.
const SocketName = "node.sock"

const (
	maxBody     = 64 << 20        // 65,536 servers have about 30 MB
	socketCheck = 2 * time.Second // how often to look whether the file is there
)

// A problem is the body of every answer that is not 200.
type problem struct {
	Error string `json:"error"`
	Usage bool   `json:"usage"` // see package usage
}

// Listen opens the socket in dir, which is made if absent. A socket that a
// killed node left behind is replaced; one that answers is an error. Members
// of the group jiji may use it, where there is such a group; if the socket may
// not be given to it, as under the systemd unit without SupplementaryGroups=jiji,
// it is root's alone and the log says so.
func Listen(dir string, log *slog.Logger) (net.Listener, error) {
	s := &socket{path: filepath.Join(dir, SocketName), log: log}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// A socket is a listener whose file is made again when somebody removes it: its
// directory is one that people and programs clean up.
type socket struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	l      *net.UnixListener
	file   fs.FileInfo // of path when l was made
	closed bool
}

// open makes the file and what listens there; s.mu is held, or s nobody else's.
func (s *socket) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	if c, err := net.DialTimeout("unix", s.path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("listen on %s: another jiji-node answers there: stop it, or choose another directory with --runtime-dir", s.path)
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := listenUnix(s.path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.path, err)
	}
	file, err := os.Lstat(s.path)
	if err != nil {
		l.Close()
		return fmt.Errorf("listen on %s: %w", s.path, err)
	}
	if err := admit(s.path); err != nil {
		s.log.Warn("control socket is root's alone", "err", err)
	}
	s.l, s.file = l.(*net.UnixListener), file
	s.l.SetUnlinkOnClose(false) // by name alone it might remove another's
	return nil
}

// inPlace reports whether the path still leads to this socket.
func (s *socket) inPlace() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.file, now)
}

func (s *socket) current() *net.UnixListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.l
}

func (s *socket) Accept() (net.Conn, error) {
	for {
		l := s.current()
		c, err := l.Accept()
		if err != nil && s.current() != l {
			continue
		}
		return c, err
	}
}

func (s *socket) Addr() net.Addr { return s.current().Addr() }

// Close removes the file, too, if it is still this socket's.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.l.Close()
	if s.inPlace() {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

// keep makes the file again when it is gone, until ctx is done.
func (s *socket) keep(ctx context.Context) {
	check := time.NewTicker(socketCheck)
	defer check.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
		}
		again, err := s.renew()
		if err != nil && !failing {
			s.log.Warn("cannot make the control socket again", "err", err)
		}
		failing = err != nil
		if again {
			s.log.Warn("the control socket was gone, made it again", "path", s.path)
		}
	}
}

func (s *socket) renew() (renewed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.inPlace() {
		return false, nil
	}
	old := s.l
	if err := s.open(); err != nil {
		return false, err
	}
	old.Close()
	return true, nil
}

// admit opens the socket to its group; before, only root can connect.
func admit(path string) error {
	if g, err := user.LookupGroup("jiji"); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("group jiji has the id %q, want a number", g.Gid)
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return fmt.Errorf("give %s to group jiji: %w", path, err)
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("open %s to its group: %w", path, err)
	}
	return nil
}

// Serve answers on l, which it closes, until ctx is done.
func Serve(ctx context.Context, l net.Listener, n Node, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           routes(n),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	defer stop()
	if s, ok := l.(*socket); ok {
		ctx, cancel := context.WithCancel(ctx)
		var keeping sync.WaitGroup
		keeping.Go(func() { s.keep(ctx) })
		defer keeping.Wait()
		defer cancel()
	}
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

func routes(n Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", get(func(*http.Request) (Status, error) { return n.Status(), nil }))
	mux.HandleFunc("GET /v1/config", get(func(*http.Request) ([]Setting, error) { return n.Settings(), nil }))
	mux.HandleFunc("GET /v1/resolve", get(func(r *http.Request) (Resolution, error) {
		return n.Resolve(r.Context(), r.URL.Query().Get("name"), r.URL.Query().Get("type"))
	}))
	mux.HandleFunc("POST /v1/ping", ping(n))
	mux.HandleFunc("POST /v1/queries", watch(n))
	mux.HandleFunc("POST /v1/registry/use", post(n.UseRegistry))
	mux.HandleFunc("POST /v1/down", post(func(ctx context.Context, _ struct{}) (Undone, error) { return n.Down(ctx) }))

	mux.HandleFunc("GET /v1/services", get(func(*http.Request) ([]Container, error) { return n.Containers(), nil }))
	mux.HandleFunc("POST /v1/services", post(n.Register))
	mux.HandleFunc("POST /v1/services/health", post(func(ctx context.Context, r HealthRequest) (struct{}, error) {
		return struct{}{}, n.SetHealth(ctx, r)
	}))
	mux.HandleFunc("POST /v1/services/deregister", post(n.Deregister))
	mux.HandleFunc("POST /v1/services/cleanup", post(n.Cleanup))

	mux.HandleFunc("GET /v1/servers", get(func(*http.Request) ([]Server, error) { return n.Servers(), nil }))
	mux.HandleFunc("POST /v1/servers/init", post(func(_ context.Context, r InitRequest) (Added, error) { return n.Init(r) }))
	mux.HandleFunc("POST /v1/servers/remove", post(func(ctx context.Context, r removeRequest) (Server, error) {
		return n.RemoveServer(ctx, r.ID, r.Force)
	}))
	mux.HandleFunc("POST /v1/servers/add", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			fail(w, usage.Errorf("read entries: %w", err))
			return
		}
		added, err := n.AddServers(r.Context(), body, r.URL.Query().Get("source"))
		reply(w, added, err)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, usage.Errorf("this node knows no %s %s: its version differs from the command's", r.Method, r.URL.Path))
	})
	return mux
}

type removeRequest struct {
	ID    string `json:"id"`
	Force bool   `json:"force"`
}

func get[T any](answer func(*http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(r)
		reply(w, v, err)
	}
}

func post[Q, A any](do func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, ok := decode[Q](w, r)
		if !ok {
			return
		}
		v, err := do(r.Context(), q)
		reply(w, v, err)
	}
}

// decode returns what a request asks; if that cannot be read it says so in reply.
func decode[Q any](w http.ResponseWriter, r *http.Request) (q Q, ok bool) {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		fail(w, usage.Errorf("decode request: %w", err))
		return q, false
	}
	return q, true
}

// ping streams one JSON object per line, as the echoes come in.
func ping(n Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, ok := decode[PingRequest](w, r)
		if !ok {
			return
		}
		out := json.NewEncoder(w)
		begun := false
		err := n.Ping(r.Context(), q, func(p PingReply) {
			begun = true
			_ = out.Encode(p) // a client that went away ends r.Context
			_ = http.NewResponseController(w).Flush()
		})
		if err != nil && !begun {
			fail(w, err)
		} else if err != nil {
			_ = out.Encode(PingReply{Done: true, Error: err.Error()})
		}
	}
}

// watch streams one JSON object per line, for as long as the client listens.
func watch(n Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, ok := decode[WatchRequest](w, r)
		if !ok {
			return
		}
		rc := http.NewResponseController(w)
		_ = rc.SetReadDeadline(time.Time{}) // else the server does not notice after it that the client went away
		out := json.NewEncoder(w)
		err := n.Watch(r.Context(), q, func() { _ = rc.Flush() }, func(s SeenQuery) error {
			return errors.Join(out.Encode(s), rc.Flush())
		})
		if usage.Is(err) {
			fail(w, err)
		}
	}
}

func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only when the client went away
}

func fail(w http.ResponseWriter, err error) {
	p := problem{Error: err.Error(), Usage: usage.Is(err)}
	code := http.StatusInternalServerError
	if p.Usage {
		code = http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(p)
}
