package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A wire is an engine as its socket shows it.
type wire struct {
	t    *testing.T
	path string
	kind Kind

	mu         sync.Mutex        // guards what follows
	containers map[string]string // answers to inspection, by id
	info       string
	networks   string
	stuck      map[string]bool // containers that are never described
	events     map[chan string]bool
	server     *http.Server
	created    []string // bodies of requests to make a network
	refuse     string   // answer to those, with status 500
	hanging    bool     // nothing is answered
	past       []string // events, which a late listener is told, as "since" asks for
}

func newWire(t *testing.T, kind Kind) *wire {
	e := &wire{t: t, kind: kind, path: filepath.Join(t.TempDir(), "e.sock"), containers: map[string]string{}, info: "{}", networks: "[]", stuck: map[string]bool{}, events: map[chan string]bool{}}
	e.listen()
	t.Cleanup(e.kill)
	return e
}

func (e *wire) listen() {
	l, err := net.Listen("unix", e.path)
	if err != nil {
		e.t.Fatal(err)
	}
	server := &http.Server{Handler: e}
	e.mu.Lock()
	e.server = server
	e.mu.Unlock()
	go server.Serve(l)
}

// kill ends the engine as SIGKILL does: the file stays.
func (e *wire) kill() {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	server.Close()
}

func (e *wire) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/v"); ok { // of the API
		if _, after, ok := strings.Cut(rest, "/"); ok && rest[0] >= '0' && rest[0] <= '9' {
			path = "/" + after
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hanging {
		e.mu.Unlock()
		<-r.Context().Done()
		e.mu.Lock()
		return
	}
	id := strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json")
	switch {
	case path == "/_ping":
		w.Header().Set("Api-Version", "1.41")
	case path == "/version":
		component := "Engine"
		if e.kind == Podman {
			component = "Podman Engine"
		}
		fmt.Fprintf(w, `{"Version":"20.10.24","ApiVersion":"1.41","Components":[{"Name":%q}]}`, component)
	case path == "/info":
		fmt.Fprint(w, e.info)
	case path == "/networks" || path == "/libpod/networks/json":
		fmt.Fprint(w, e.networks)
	case strings.HasSuffix(path, "/networks/create"):
		var body bytes.Buffer
		body.ReadFrom(r.Body)
		e.created = append(e.created, path+" "+body.String())
		if e.refuse != "" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `{"message":%q}`, e.refuse)
			return
		}
		fmt.Fprint(w, `{"Id":"n1"}`)
	case path == "/containers/json":
		var list []string
		for _, id := range slices.Sorted(maps.Keys(e.containers)) {
			if strings.Contains(e.containers[id], `"Running":true`) {
				list = append(list, fmt.Sprintf(`{"Id":%q}`, id))
			}
		}
		fmt.Fprintf(w, "[%s]", strings.Join(list, ","))
	case path == "/events":
		e.serveEvents(w, r)
	case e.stuck[id]:
		e.mu.Unlock()
		<-r.Context().Done()
		e.mu.Lock()
	case e.containers[id] == "":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"No such container"}`)
	default:
		fmt.Fprint(w, e.containers[id])
	}
}

func (e *wire) serveEvents(w http.ResponseWriter, r *http.Request) {
	news := make(chan string, 100)
	e.events[news] = true
	for _, p := range e.past {
		news <- p
	}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.events, news)
	}()
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case text := <-news:
			fmt.Fprintln(w, text)
			w.(http.Flusher).Flush()
		}
	}
}

// set has the engine describe a container, and tell of it if action is not "".
func (e *wire) set(c Container, action string) {
	networks := map[string]any{}
	for name, ip := range c.Addrs {
		networks[name] = map[string]any{"IPAddress": ip}
	}
	state := map[string]any{"Running": c.Running, "StartedAt": c.StartedAt.Format(time.RFC3339Nano)}
	if c.Health != "" {
		state["Health"] = map[string]any{"Status": c.Health, "FailingStreak": c.Failures}
	}
	text, err := json.Marshal(map[string]any{"Id": c.ID, "Name": "/" + c.Name, "State": state,
		"Config": map[string]any{"Labels": c.Labels}, "NetworkSettings": map[string]any{"Networks": networks}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	e.containers[c.ID] = string(text)
	e.mu.Unlock()
	if action != "" {
		e.tell(c.ID, action)
	}
}

func (e *wire) tell(id, action string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.say(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q},"timeNano":%d}`, action, id, time.Now().UnixNano()))
}

// say tells an event to all who listen, or will; e.mu is held.
func (e *wire) say(event string) {
	e.past = append(e.past, event)
	for news := range e.events {
		news <- event
	}
}

// watch runs a Watcher of the engines until the test ends.
func watch(t *testing.T, engine string, wires ...*wire) *Watcher {
	cfg := Config{Engine: engine, Rules: func() Rules { return rules }, Log: slog.New(slog.DiscardHandler),
		Network: netConfig(), Sockets: []Socket{}}
	for _, e := range wires {
		cfg.Sockets = append(cfg.Sockets, Socket{e.kind, e.path})
	}
	return run(t, cfg)
}

func run(t *testing.T, cfg Config) *Watcher {
	w := New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end with its context")
		}
	})
	return w
}

// await waits until the state is as ok says.
func await(t *testing.T, w *Watcher, what string, ok func(*State) bool) *State {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		if s := w.State(); ok(s) {
			return s
		}
		select {
		case <-w.Changed():
		case <-limit:
			t.Fatalf("%s: not within 15 s: %+v", what, *w.State())
		}
	}
}

// in is "service ip health" of each container that is in.
func in(s *State) string {
	var list []string
	for _, c := range s.View.In {
		list = append(list, fmt.Sprintf("%s %v %s", c.Service, c.IP, c.Health))
	}
	return strings.Join(list, ", ")
}

func is(want string) func(*State) bool {
	return func(s *State) bool { return s.Up && len(s.Pending) == 0 && in(s) == want }
}

func TestWatchFollows(t *testing.T) {
	e := newWire(t, Docker)
	a, b := on(1, "a", "10.210.0.2"), on(2, "b", "10.210.0.3")
	e.set(a, "")
	w := watch(t, "auto", e)
	s := await(t, w, "first", is("a 10.210.0.2 healthy"))
	if s.Kind != Docker || s.Version != "20.10.24" || s.Socket != e.path || s.Attached != 1 || !s.Listed || s.Problem != "" {
		t.Errorf("%+v", s)
	}
	e.set(b, "start")
	await(t, w, "start", is("a 10.210.0.2 healthy, b 10.210.0.3 healthy"))
	b.Health = "unhealthy"
	e.set(b, "health_status: unhealthy")
	await(t, w, "unhealthy", is("a 10.210.0.2 healthy, b 10.210.0.3 unhealthy"))
	b.Health, b.Name = "healthy", "c"
	e.set(b, "rename")
	await(t, w, "rename", is("a 10.210.0.2 healthy, c 10.210.0.3 healthy"))
	b.Addrs = nil
	e.set(b, "")
	e.mu.Lock()
	e.say(fmt.Sprintf(`{"Type":"network","Action":"disconnect","Actor":{"ID":"n","Attributes":{"container":%q,"name":"jiji-mesh"}},"timeNano":1}`, b.ID))
	e.mu.Unlock()
	await(t, w, "disconnect", is("a 10.210.0.2 healthy"))
	a.Running = false
	e.set(a, "die")
	await(t, w, "die", is(""))
}

// One that the engine does not describe in time keeps nobody waiting, and an end
// is believed at once.
func TestWatchStuckContainer(t *testing.T) {
	e := newWire(t, Docker)
	a, b := on(1, "a", "10.210.0.2"), on(2, "b", "10.210.0.3")
	e.set(a, "")
	e.set(b, "")
	w := watch(t, "docker", e)
	await(t, w, "first", is("a 10.210.0.2 healthy, b 10.210.0.3 healthy"))
	e.mu.Lock()
	e.stuck[a.ID] = true
	e.mu.Unlock()
	e.tell(a.ID, "kill") // asks about a, in vain
	b.Running = false
	e.set(b, "die")
	await(t, w, "the other ends", is("a 10.210.0.2 healthy"))
	e.tell(a.ID, "die")
	await(t, w, "it ends", is(""))
}

// An end that was told late, after the next start, is not believed.
func TestWatchOldEvent(t *testing.T) {
	e := newWire(t, Docker)
	a := on(1, "a", "10.210.0.2")
	a.StartedAt = time.Now().Add(time.Hour)
	e.set(a, "")
	w := watch(t, "docker", e)
	await(t, w, "first", is("a 10.210.0.2 healthy"))
	e.mu.Lock()
	e.stuck[a.ID] = true
	e.mu.Unlock()
	e.tell(a.ID, "die")
	b := on(2, "b", "10.210.0.3")
	e.set(b, "start")
	await(t, w, "what comes after", is("a 10.210.0.2 healthy, b 10.210.0.3 healthy"))
}

// Containers stay on the network that they are on while the engine does not say which
// it has.
func TestWatchNetworksUnknown(t *testing.T) {
	e := newWire(t, Docker)
	e.networks = `[{"Name":"jiji","Id":"0123456789abcdef","Driver":"bridge","IPAM":{"Config":[{"Subnet":"10.210.0.0/24","Gateway":"10.210.0.1"}]}}]`
	a := on(1, "a", "")
	a.Addrs["jiji"] = netip.MustParseAddr("10.210.0.2")
	e.set(a, "")
	w := run(t, Config{Engine: "auto", Sockets: []Socket{{Docker, e.path}}, Rules: func() Rules { return rules }, Network: netConfig(), Log: slog.New(slog.DiscardHandler)})
	first := await(t, w, "first", is("a 10.210.0.2 healthy"))
	now := func(networks string) {
		e.mu.Lock()
		e.networks = networks
		e.say(`{"Type":"network","Action":"destroy","Actor":{"ID":"n","Attributes":{"name":"jiji"}},"timeNano":1}`)
		e.mu.Unlock()
	}
	was := e.networks
	now("<html>")
	s := await(t, w, "it does not say", func(s *State) bool { return !slices.Equal(s.Notes, first.Notes) })
	if in(s) != "a 10.210.0.2 healthy" || s.Network != "jiji" || len(s.View.Refused) != 0 || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "docker: ") {
		t.Errorf("%+v", s)
	}
	now(was)
	await(t, w, "it says again", func(s *State) bool { return slices.Equal(s.Notes, first.Notes) && in(s) == "a 10.210.0.2 healthy" })
}

// What ran while the engine was away stays, until it says what became of it.
func TestWatchEngineAway(t *testing.T) {
	e := newWire(t, Docker)
	a, b := on(1, "a", "10.210.0.2"), on(2, "b", "10.210.0.3")
	e.set(a, "")
	e.set(b, "")
	w := watch(t, "docker", e)
	await(t, w, "first", is("a 10.210.0.2 healthy, b 10.210.0.3 healthy"))
	e.kill()
	s := await(t, w, "lost", func(s *State) bool { return !s.Up })
	if in(s) != "a 10.210.0.2 healthy, b 10.210.0.3 healthy" || s.Problem == "" || !s.Listed {
		t.Errorf("%+v", s)
	}
	os.Remove(e.path)
	b.Running = false
	e.set(b, "")
	e.listen()
	await(t, w, "back", is("a 10.210.0.2 healthy"))
}

// An engine that takes connections and does not answer holds up nothing but itself.
func TestWatchHangingEngine(t *testing.T) {
	t.Parallel()
	e := newWire(t, Docker)
	e.mu.Lock()
	e.hanging = true
	e.mu.Unlock()
	e.set(on(1, "a", "10.210.0.2"), "")
	w := watch(t, "auto", e)
	s := await(t, w, "hanging", func(s *State) bool { return s.Problem != "" })
	if want := "docker does not answer on " + e.path + " within 5s"; s.Problem != want || s.Up || s.Listed {
		t.Errorf("%+v, want %s", s, want)
	}
	e.mu.Lock()
	e.hanging = false
	e.mu.Unlock()
	await(t, w, "back", is("a 10.210.0.2 healthy"))
}

func TestWatchProbes(t *testing.T) {
	e := newWire(t, Docker)
	e.set(on(1, "a", "10.210.0.2", "jiji.health.port=80"), "")
	var mu sync.Mutex
	open := false
	w := run(t, Config{Engine: "docker", Sockets: []Socket{{Docker, e.path}}, Rules: func() Rules { return rules }, Log: slog.New(slog.DiscardHandler),
		Network: netConfig(), Dial: func(_ context.Context, a netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			if !open || a.String() != "10.210.0.2:80" {
				return errors.New("refused")
			}
			return nil
		}})
	await(t, w, "before", is("a 10.210.0.2 starting"))
	mu.Lock()
	open = true
	mu.Unlock()
	await(t, w, "open", is("a 10.210.0.2 healthy"))
	mu.Lock()
	open = false
	mu.Unlock()
	if s := await(t, w, "closed", is("a 10.210.0.2 unhealthy")); s.View.In[0].Failures != probeMost {
		t.Errorf("%d failures", s.View.In[0].Failures)
	}
}

// One clear line each, or none where none was asked for.
func TestWatchNoEngine(t *testing.T) {
	rootless := newWire(t, Podman)
	rootless.info = `{"Rootless":true}`
	userns := newWire(t, Docker)
	userns.info = `{"SecurityOptions":["name=seccomp,profile=default","name=rootless"]}`
	garbage := newWire(t, Docker)
	garbage.info = "<html>"
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	none := &wire{path: filepath.Join(dir, "none.sock"), kind: Docker}
	for _, tc := range []struct {
		engine string
		at     *wire
		want   string
	}{
		{"auto", none, ""},
		{"docker", none, "docker: there is no socket PATH: is it installed and running?"},
		{"podman", rootless, "podman on PATH runs without root, so that its containers cannot be on a network of this machine: run it as root"},
		{"auto", rootless, "podman on PATH runs without root, so that its containers cannot be on a network of this machine: run it as root"},
		{"docker", userns, "docker on PATH runs without root, so that its containers cannot be on a network of this machine: run it as root"},
		{"auto", garbage, "docker: GET /info: invalid character '<' looking for beginning of value"},
		{"docker", &wire{path: dead, kind: Docker}, "docker: nobody listens on PATH"},
	} {
		w := New(Config{Engine: tc.engine, Sockets: []Socket{{tc.at.kind, tc.at.path}}, Rules: func() Rules { return rules }, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, _, err := w.connect(ctx)
		cancel()
		if err == nil {
			t.Errorf("%s, want %q: no error", tc.engine, tc.want)
		} else if got := strings.ReplaceAll(w.problem(err), tc.at.path, "PATH"); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
	c := &Client{Kind: Docker, Socket: "/s"}
	if got := c.explain(fmt.Errorf("dial: %w", os.ErrPermission)).Error(); got != "docker: may not open its socket /s: permission denied; the node has to run as root, or in the socket's group" {
		t.Error(got)
	}
}

// One engine per server: the one that has the network, or had it before, or the first.
func TestWatchTwoEngines(t *testing.T) {
	docker, podman := newWire(t, Docker), newWire(t, Podman)
	const mesh = `[{"name":"jiji-mesh","subnets":[{"subnet":"10.210.0.0/24"}]}]`
	for _, tc := range []struct {
		name           string
		engine         string
		owner          Kind
		docker, podman string // networks
		want           Kind
		note           string // or error
	}{
		{"the first", "auto", "", "[]", "[]", Docker, "podman runs here, too, and its containers are not registered: docker has this server's subnet, and one engine has it; --engine podman chooses the other"},
		{"the one with the network", "auto", "", "[]", mesh, Podman, "docker runs here, too, and its containers are not registered: podman has this server's subnet, and one engine has it; --engine docker chooses the other"},
		{"the one that had it", "auto", Podman, "[]", "[]", Podman, "docker runs here, too, and its containers are not registered: podman has this server's subnet, and one engine has it; --engine docker chooses the other"},
		{"as chosen", "podman", "", "[]", "[]", Podman, ""},
		{"chosen against the other's", "docker", "", "[]", mesh, "", `docker is not used: podman's network "jiji-mesh" has this server's subnet 10.210.0.0/24, and one engine has it: --engine podman, or end that network: podman network rm jiji-mesh`},
	} {
		docker.mu.Lock()
		docker.networks = tc.docker
		docker.mu.Unlock()
		podman.mu.Lock()
		podman.networks = tc.podman
		podman.mu.Unlock()
		w := New(Config{Engine: tc.engine, Owner: tc.owner, Sockets: []Socket{{Docker, docker.path}, {Podman, podman.path}}, Rules: func() Rules { return rules },
			Network: netConfig(), Log: slog.New(slog.DiscardHandler)})
		c, notes, err := w.connect(t.Context())
		note := strings.Join(notes, "\n")
		if err != nil {
			note = err.Error()
		}
		if (c == nil) != (tc.want == "") || c != nil && c.Kind != tc.want || note != tc.note {
			t.Errorf("%s: %+v\n%s\nwant %s\n%s", tc.name, c, note, tc.want, tc.note)
		}
	}
}

// While the engine that had the network does not answer, another one does not get it.
func TestWatchOwnerIsAwaited(t *testing.T) {
	docker, podman := newWire(t, Docker), newWire(t, Podman)
	docker.info = "<html>"
	for owner, want := range map[Kind]Kind{Docker: "", Podman: Podman, "": Podman} {
		w := New(Config{Engine: "auto", Owner: owner, Sockets: []Socket{{Docker, docker.path}, {Podman, podman.path}}, Rules: func() Rules { return rules }, Network: netConfig(), Log: slog.New(slog.DiscardHandler)})
		c, notes, err := w.connect(t.Context())
		if (err == nil) != (want != "") || c != nil && (c.Kind != want || len(notes) != 1) {
			t.Errorf("owner %q: %+v, %q, %v", owner, c, notes, err)
		}
	}
	docker.kill()
	os.Remove(docker.path) // as some daemons do when they stop
	for _, c := range []struct {
		engine string
		podman string
		want   string // of the error; "": Podman is followed
	}{
		{"auto", podman.path, "docker, which ran this server's containers, has no socket " + docker.path + ": is it running? --engine takes another one"},
		{"podman", podman.path, ""},
		{"auto", podman.path + "-absent", "a hint"}, // none is here, so none is kept out
	} {
		w := New(Config{Engine: c.engine, Owner: Docker, Sockets: []Socket{{Docker, docker.path}, {Podman, c.podman}}, Rules: func() Rules { return rules }, Network: netConfig(), Log: slog.New(slog.DiscardHandler)})
		found, _, err := w.connect(t.Context())
		var none *noneError
		if strings.HasSuffix(c.podman, "absent") != errors.As(err, &none) {
			t.Errorf("%+v: %v", c, err)
		}
		if c.want == "" && (err != nil || found.Kind != Podman) || c.want != "" && (err == nil || none == nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %+v, %v", c, found, err)
		}
	}
}

// A socket of Docker's name may be Podman's.
func TestWatchPodmanDocker(t *testing.T) {
	podman := newWire(t, Podman)
	w := New(Config{Engine: "auto", Sockets: []Socket{{Docker, podman.path}, {Podman, podman.path}}, Rules: func() Rules { return rules }, Log: slog.New(slog.DiscardHandler)})
	c, notes, err := w.connect(t.Context())
	if err != nil || c.Kind != Podman || len(notes) != 0 {
		t.Errorf("%+v, %v, %v", c, notes, err)
	}
}
