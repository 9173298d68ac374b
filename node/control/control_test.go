package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/usage"
)

// A scripted node answers what the tests want to see on the wire.
type scripted struct{ Node }

func (scripted) Status() Status { return Status{Version: "v1", State: "ready"} }

func (scripted) Register(_ context.Context, c Container) (Container, error) {
	if c.Service == "" {
		return c, usage.Errorf("service \"\": want a name")
	}
	c.ID = "made"
	return c, nil
}

func (scripted) AddServers(_ context.Context, entries []byte, source string) ([]Added, error) {
	return []Added{{Entry: string(entries), Note: source}}, nil
}

func (scripted) UseRegistry(_ context.Context, m RegistryMode) (RegistryMode, error) {
	return m, m.Check()
}

func (scripted) Down(context.Context) (Undone, error) {
	return Undone{Undone: []string{"interface jiji0 removed"}, Kept: []string{"ip_forward"}, Failed: []string{}}, nil
}

func (scripted) RemoveServer(context.Context, string, bool) (Server, error) {
	return Server{}, errors.New("disk full")
}

func (scripted) Ping(_ context.Context, r PingRequest, reply func(PingReply)) error {
	if r.Count == 0 {
		return usage.Errorf("count 0: want more")
	}
	for i := range r.Count {
		reply(PingReply{Seq: i + 1})
	}
	if r.Size == 1 {
		return errors.New("network is unreachable")
	}
	reply(PingReply{Done: true, Recv: r.Count})
	return nil
}

func (scripted) Watch(ctx context.Context, r WatchRequest, begun func(), saw func(SeenQuery) error) error {
	if r.Every < 0 {
		return usage.Errorf("every %d: want more", r.Every)
	}
	begun()
	for i := uint64(0); ; i++ {
		if err := saw(SeenQuery{Name: r.Name, Missed: i}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// serve runs a scripted node and returns its client.
func serve(t *testing.T) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, scripted{}, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return NewClient(dir)
}

func TestRoundTrip(t *testing.T) {
	c, ctx := serve(t), t.Context()
	if s, err := c.Status(ctx); err != nil || s.Version != "v1" {
		t.Errorf("status %+v, %v", s, err)
	}
	if v, err := c.Register(ctx, Container{Service: "api"}); err != nil || v.ID != "made" {
		t.Errorf("register %+v, %v", v, err)
	}
	if _, err := c.Register(ctx, Container{}); !usage.Is(err) || err.Error() != `service "": want a name` {
		t.Errorf("error of the input: %v", err)
	}
	if _, err := c.RemoveServer(ctx, "x", false); usage.Is(err) || err == nil || err.Error() != "disk full" {
		t.Errorf("error of the machine: %v", err)
	}
	if m, err := c.UseRegistry(ctx, RegistryMode{Mode: Corrosion}); err != nil || m.Mode != Corrosion {
		t.Errorf("registry %+v, %v", m, err)
	}
	if u, err := c.Down(ctx); err != nil || len(u.Undone) != 1 || len(u.Kept) != 1 || u.Failed == nil {
		t.Errorf("down %+v, %v", u, err)
	}
	if added, err := c.AddServers(ctx, []byte("{} {}"), "file & co"); err != nil || added[0].Entry != "{} {}" || added[0].Note != "file & co" {
		t.Errorf("added %+v, %v", added, err)
	}
}

func TestWatchStreams(t *testing.T) {
	c := serve(t)
	if err := c.Watch(t.Context(), WatchRequest{Every: -1}, func() { t.Error("begun") }, nil); !usage.Is(err) {
		t.Errorf("error of the input: %v", err)
	}
	begun, enough := false, errors.New("enough")
	err := c.Watch(t.Context(), WatchRequest{Name: "api.jiji"}, func() { begun = true }, func(q SeenQuery) error {
		if !begun || q.Name != "api.jiji" {
			t.Errorf("begun is %v, query %+v", begun, q)
		}
		if q.Missed == 3 {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("ended with %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Watch(ctx, WatchRequest{}, cancel, func(SeenQuery) error { return nil }); err != nil {
		t.Errorf("ended by its context with %v", err)
	}
}

func TestPingStreams(t *testing.T) {
	c, ctx := serve(t), t.Context()
	var seen []int
	if err := c.Ping(ctx, PingRequest{Count: 3}, func(p PingReply) { seen = append(seen, p.Seq) }); err != nil || len(seen) != 4 {
		t.Errorf("replies %v, %v", seen, err)
	}
	if err := c.Ping(ctx, PingRequest{}, func(PingReply) {}); !usage.Is(err) {
		t.Errorf("bad count: %v", err)
	}
	if err := c.Ping(ctx, PingRequest{Count: 1, Size: 1}, func(PingReply) {}); err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("failure in the middle: %v", err)
	}
}

func TestUnknownRequestNamesIt(t *testing.T) {
	c := serve(t)
	if _, err := call[int](t.Context(), c, "GET", "/v1/future", nil); !usage.Is(err) || !strings.Contains(err.Error(), "/v1/future") {
		t.Errorf("error %v", err)
	}
	if _, err := call[int](t.Context(), c, "POST", "/v1/services", map[string]int{"serivce": 1}); !usage.Is(err) || !strings.Contains(err.Error(), "serivce") {
		t.Errorf("error %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	stale(t, dir)
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale socket: %v", err)
	}
}

// stale leaves the socket of a killed process.
func stale(t *testing.T, dir string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "jiji")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stale(t, dir)
	l, err := Listen(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	go func() { // answers the second node's question whether anybody is there
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, err := Listen(dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another jiji-node") {
		t.Errorf("second listener: %v", err)
	}
	l.Close()
}

func TestServeEndsWithAClientHanging(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, scripted{}, slog.New(slog.DiscardHandler)) }()
	conn, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("POST /v1/services HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("still serving 10 s after the end")
	}
}

// A socket whose directory was cleaned up comes back.
func TestRemovedSocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := serve(t)
	dir := filepath.Dir(c.path)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("without the socket: %v", err)
	}
	for end := time.Now().Add(5 * socketCheck); ; time.Sleep(socketCheck / 20) {
		_, err := c.Status(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(c.path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A node that ends leaves the socket of the one that took its place.
func TestCloseLeavesAnothersSocket(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	old, err := Listen(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}
