package node

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/acidtib/jiji-node/monitor"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
	"github.com/acidtib/jiji-node/registry/corrotest"
	"github.com/acidtib/jiji-node/registry/embedded"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// A day of a busy cluster: five other servers that say every 30 s that they live,
// 200 containers of which one comes, goes or turns every 20 s.
const (
	dayServers    = 5
	dayContainers = 200
	dayServices   = 50
	dayEvent      = 20 * time.Second
	dayBeat       = 30 * time.Second
)

// TestRegistryShow6Day lives through 24 hours of that in virtual time, all
// that the registry does by the clock included, with an agent that ends its
// streams, restarts, is killed and loses answers now and then: nothing is left of
// it at the end that was not there after the first hour.
func TestRegistryShow6Day(t *testing.T) {
	if testing.Short() {
		t.Skip("writes tens of thousands of changes")
	}
	if raceBuilt {
		withoutRace(t)
		return
	}
	runtime.MemProfileRate = 2 << 10
	defer func() { runtime.MemProfileRate = 512 << 10 }()
	began := time.Now()
	synctest.Test(t, day)
	t.Logf("the day took %v", time.Since(began).Round(time.Second))
}

// A census is what there is at one instant.
type census struct {
	goroutines, conns int
	live, all         float64 // MB of the heap in use: without the double, and all
}

func day(t *testing.T) {
	const token = "t0ken"
	cfg := corrotest.Config{Schema: registry.Schema, Token: token, Coalesce: corrotest.DefaultCoalesce, NoNetwork: true}
	near, far := corrotest.New(t, cfg), corrotest.New(t, cfg)
	corrotest.Link(near, far)

	n, stop := dayNode(t)
	defer stop()
	var conns, dials atomic.Int64
	p := &clusterPart{Node: n, mode: control.RegistryMode{Mode: control.Corrosion, URL: near.URL()}, news: make(chan struct{}, 1), cache: make(chan struct{}, 1)}
	err := p.open(t.Context(), corrosion.Config{URL: near.URL(), Token: token, Log: n.log,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := near.Dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			dials.Add(1)
			conns.Add(1)
			return &countedConn{Conn: c, open: &conns}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	p.setPeers(n.members.Topology())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()

	others, err := corrosion.New(corrosion.Config{URL: far.URL(), Token: token, Dial: far.Dial})
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	w := &world{T: t, c: others, heard: p.store.Heard, rand: rand.New(rand.NewPCG(1, 2))}
	w.populate()
	settled := func() error { // all that w did is here, and what is ours there
		st, want := p.store.State(), len(w.containers)
		if s := p.store.Snapshot(); !st.Up || !st.CaughtUp || st.Pending > 0 || st.Problem != "" || s.Len() != want || len(s.Skipped) > 0 {
			return fmt.Errorf("%d containers, want %d; skipped %v, state %+v", s.Len(), want, s.Skipped, st)
		}
		return nil
	}
	settle := func(hour int) {
		t.Helper()
		err := settled()
		for range 120 { // s; then nothing is on its way any more
			if err == nil {
				break
			}
			time.Sleep(time.Second)
			err = settled()
		}
		if err != nil {
			t.Fatalf("hour %d: %v", hour, err)
		}
	}
	take := func() census {
		time.Sleep(2 * time.Minute) // idle connections end, marks and doubts drain
		synctest.Wait()
		live, all := heapOutside("registry/corrotest", "node.(*world)")
		return census{runtime.NumGoroutine(), int(conns.Load()), live, all}
	}
	settle(0)

	start := time.Now()
	var first census
	beats := 0
	for hour := 1; hour <= 24; hour++ {
		for tick := range int(time.Hour / dayEvent) {
			time.Sleep(dayEvent)
			w.event()
			for ; time.Duration(beats) < time.Since(start)*dayServers/dayBeat; beats++ {
				w.exec("UPDATE servers SET last_seen = ? WHERE id = ?", time.Now().UnixMilli(), dayServer(beats%dayServers).ID)
			}
			w.trouble(near, hour, tick)
			if tick%15 == 0 { // this server's own containers come and go, too
				id := fmt.Sprintf("mine-%d-%d", hour, tick)
				c := registry.Container{ID: id, Service: "web", ServerID: "web0", IP: netip.MustParseAddr("10.210.0.9"), Health: registry.Healthy, StartedAt: time.Now()}
				if err := p.store.Register(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if err := p.store.SetHealth(t.Context(), id, registry.Unhealthy, time.Now()); err != nil {
					t.Fatal(err)
				}
				if _, err := p.store.Deregister(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
		}
		settle(hour)
		if hour == 1 {
			first = take()
		}
	}
	last := take()
	t.Logf("%d changes of containers and %d beats in %v of virtual time; %d connections made", w.changes, beats, time.Since(start).Round(time.Minute), dials.Load())
	t.Logf("after an hour %d goroutines, %d connections, %.2f MB live (%.2f MB with the double)", first.goroutines, first.conns, first.live, first.all)
	t.Logf("after 24 hours %d goroutines, %d connections, %.2f MB live (%.2f MB with the double)", last.goroutines, last.conns, last.live, last.all)
	if last.goroutines > first.goroutines {
		t.Errorf("%d goroutines after an hour, %d after a day", first.goroutines, last.goroutines)
	}
	if last.conns > first.conns {
		t.Errorf("%d connections after an hour, %d after a day", first.conns, last.conns)
	}
	if grown := last.live - first.live; grown > 0.2 {
		t.Errorf("the heap in use grew by %.2f MB", grown)
	}
	cached, versions := n.readCache()
	if len(cached) != len(w.containers) || len(versions) < 2 {
		t.Errorf("the cache has %d containers and %d versions, want %d of two writers", len(cached), len(versions), len(w.containers))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	synctest.Wait()
	if open := conns.Load(); open != 0 {
		t.Errorf("%d connections are open at the end", open)
	}
}

// dayNode is a node with what its registry's part needs.
func dayNode(t *testing.T) (n *Node, stop func()) {
	t.Helper()
	index := 0
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	m, err := membership.Open(membership.Config{Dir: dir, Name: "web0", Index: &index, Log: log,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.100:51820")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	local, err := embedded.Open(t.Context(), embedded.Config{Path: filepath.Join(dir, registryName), ServerID: "web0"})
	if err != nil {
		t.Fatal(err)
	}
	key, _ := m.Key()
	n = &Node{
		cfg: Config{StateDir: dir, Version: "test", Log: log}, log: log, members: m, key: key.Public(), local: local,
		monitor:      monitor.New(monitor.Config{Self: key.Public(), Log: log}),
		namesChanged: make(chan struct{}, 1), reopened: make(chan struct{}, 1),
	}
	n.mtu.Store(1420)
	return n, func() {
		if err := local.Close(); err != nil {
			t.Error(err)
		}
	}
}

func dayServer(i int) topology.Server {
	id, key := fmt.Sprintf("web%d", i+1), wgkey.Public{byte(i), 9}
	s := topology.Server{ID: id, Hostname: id, Key: key, ManagementIP: ipplan.Management(key), Subnet: netip.MustParsePrefix(fmt.Sprintf("10.210.%d.0/24", i+1))}
	s.WireGuardIP = ipplan.WireGuardIP(s.Subnet)
	s.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 51820)}
	return s
}

// A world is all other servers of the cluster.
type world struct {
	*testing.T
	c          *corrosion.Client
	heard      func(writer [16]byte, version int64)
	rand       *rand.Rand
	containers []string // their ids, the oldest first
	made       int
	changes    int
}

// exec writes, and tells of it as servers do.
func (w *world) exec(statement string, params ...any) {
	w.Helper()
	out, err := w.c.Exec(w.Context(), corrosion.SQL(statement, params...))
	if err != nil {
		w.Fatal(err)
	}
	if out.Changed && strings.Contains(statement, "containers") {
		w.changes++
		w.heard(out.Actor, out.Version)
	}
}

func (w *world) populate() {
	for i := range dayServers {
		s := dayServer(i)
		w.exec(`INSERT INTO servers (id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, 1)`,
			s.ID, s.Hostname, s.Subnet.String(), s.WireGuardIP.String(), s.Key.String(), s.ManagementIP.StringExpanded(), registry.FormatEndpoints(s.Endpoints))
	}
	for range dayContainers {
		w.start()
	}
}

func (w *world) start() {
	id := fmt.Sprintf("%064x", w.made)
	s := dayServer(w.made % dayServers)
	service := fmt.Sprintf("service%d", w.made%dayServices)
	w.exec(`INSERT INTO services (name, project) VALUES (?, 'shop') ON CONFLICT (name) DO NOTHING`, service)
	w.exec(`INSERT INTO containers (id, service, server_id, ip, started_at, health_status) VALUES (?, ?, ?, ?, ?, 'starting')`,
		id, service, s.ID, fmt.Sprintf("10.210.%d.%d", w.made%dayServers+1, 2+w.made/dayServers%250), time.Now().UnixMilli())
	w.exec(`INSERT INTO jiji_containers (id, server_id, project, name) VALUES (?, ?, 'shop', ?)`, id, s.ID, "shop-"+id[56:])
	w.made++
	w.containers = append(w.containers, id)
}

// event is one thing that happens to a container.
func (w *world) event() {
	switch w.rand.IntN(4) {
	case 0, 1: // a service of two
		w.start()
		w.start()
	case 2:
		id := w.containers[0]
		w.containers = w.containers[1:]
		w.exec("DELETE FROM containers WHERE id = ?", id)
		w.exec("DELETE FROM jiji_containers WHERE id = ?", id)
		if len(w.containers) < dayContainers {
			w.start()
		}
	default:
		id := w.containers[w.rand.IntN(len(w.containers))]
		health := []string{"healthy", "unhealthy", "healthy", "starting"}[w.rand.IntN(4)]
		w.exec("UPDATE containers SET health_status = ?, last_health_check = ? WHERE id = ?", health, time.Now().UnixMilli(), id)
	}
	for len(w.containers) > dayContainers+20 { // as many as ever
		id := w.containers[0]
		w.containers = w.containers[1:]
		w.exec("DELETE FROM containers WHERE id = ?", id)
		w.exec("DELETE FROM jiji_containers WHERE id = ?", id)
	}
}

// trouble is what goes wrong with the agent at some times of an hour.
func (w *world) trouble(a *corrotest.Agent, hour, tick int) {
	switch {
	case tick == 30:
		a.EndStreams()
	case tick == 45:
		a.LoseResponse(1)
	case tick == 60:
		a.Shed(corrotest.Transactions, 2)
	case tick == 75:
		a.PurgeHistory(10)
		a.EndStreams()
	case tick == 100 && hour%2 == 1:
		a.Stop()
		time.Sleep(7 * time.Second)
		a.Start()
	case tick == 100:
		a.Kill()
		time.Sleep(20 * time.Second)
		a.Start()
	}
}

// A countedConn is counted while it is open.
type countedConn struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// heapOutside returns how many MB of the heap are in use, without and with what
// was allocated by functions that have one of the names in theirs.
func heapOutside(names ...string) (without, all float64) {
	runtime.GC()
	runtime.GC()
	var records []runtime.MemProfileRecord
	for n := 1000; ; n = n * 3 / 2 {
		records = make([]runtime.MemProfileRecord, n)
		if got, ok := runtime.MemProfile(records, false); ok {
			records = records[:got]
			break
		}
	}
	for _, r := range records {
		count, bytes := float64(r.InUseObjects()), float64(r.InUseBytes())
		if count == 0 {
			continue
		}
		// What the sampling left out, as in pprof's profiles.
		bytes /= 1 - math.Exp(-bytes/count/float64(runtime.MemProfileRate))
		all += bytes / 1e6
		inside := false
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more && !inside; {
			var f runtime.Frame
			f, more = frames.Next()
			inside = slices.ContainsFunc(names, func(name string) bool { return strings.Contains(f.Function, name) })
		}
		if !inside {
			without += bytes / 1e6
		}
	}
	return without, all
}
