//go:build linux

package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

const (
	agentWrapper = "/run/corrosion"      // what the nodes run: an agent, unless it is away
	agentAway    = "/run/corrosion-away" // while this file exists
)

// newOutages is newCluster with agents that can be kept away.
func newOutages(t *testing.T, n int) *cluster {
	t.Helper()
	c := newCluster(t, n)
	for _, s := range c.servers {
		s.WriteFile(agentWrapper, fmt.Sprintf("#!/bin/sh\nif test -e %s; then echo away >&2; exit 1; fi\nexec %s \"$@\"\n", agentAway, c.bin))
		s.Run("chmod", "755", agentWrapper)
	}
	c.bin = agentWrapper
	return c
}

// A ledger is what the test has registered and not taken back: the address of
// each service, which has one container on the server of that number.
type ledger struct {
	at     map[string]netip.Addr
	number [256]int // of addresses given, by server
}

func newLedger() *ledger { return &ledger{at: map[string]netip.Addr{}} }

// register registers services of server i by its node's API, one after the other.
func (l *ledger) register(c *cluster, i int, services ...string) {
	c.t.Helper()
	for _, name := range services {
		l.number[i]++
		ip := netip.AddrFrom4([4]byte{10, 210, byte(i), byte(10 + l.number[i])})
		v := control.Container{ID: name, Service: name, IP: ip, Ports: []string{"80/tcp"}, Project: "shop"}
		if _, err := clientOf(c.servers[i]).Register(c.t.Context(), v); err != nil {
			c.t.Fatalf("register %s on %s: %v", name, c.servers[i].Name, err)
		}
		l.at[name] = ip
	}
}

// deregister takes services of server i back.
func (l *ledger) deregister(c *cluster, i int, services ...string) {
	c.t.Helper()
	n, err := clientOf(c.servers[i]).Deregister(c.t.Context(), services)
	if err != nil || n != len(services) {
		c.t.Fatalf("deregister %v on %s: %d were there, %v", services, c.servers[i].Name, n, err)
	}
	for _, name := range services {
		delete(l.at, name)
	}
}

// answered returns an error unless server i answers all that is registered, and
// nothing for the names in gone.
func answered(c *cluster, i int, want map[string]netip.Addr, gone ...string) error {
	names := append(slices.Sorted(maps.Keys(want)), gone...)
	var args []string
	for _, n := range names {
		args = append(args, n+".jiji")
	}
	out, err := c.servers[i].Try("dig", append([]string{"+noall", "+answer", "+tries=1", "+time=2", "@" + wireGuardIP(i)}, args...)...)
	if err != nil {
		return err
	}
	got := map[string][]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 5 && f[3] == "A" {
			got[strings.TrimSuffix(f[0], ".jiji.")] = append(got[strings.TrimSuffix(f[0], ".jiji.")], f[4])
		}
	}
	for _, name := range names {
		var expected []string
		if ip, ok := want[name]; ok {
			expected = []string{ip.String()}
		}
		if !slices.Equal(got[name], expected) {
			err = errors.Join(err, fmt.Errorf("%s answers %v for %s, want %v", c.servers[i].Name, got[name], name, expected))
		}
	}
	return err
}

// rows asks the server's agent itself, and returns what it says line by line, in order.
func (c *cluster) rows(s *lab.Server, statement string) ([]string, error) {
	token := strings.TrimSpace(s.ReadFile("/var/lib/jiji/corrosion/token"))
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = s.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	body, err := json.Marshal(statement)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1:8080/v1/queries", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var rows []string
	whole := false
	for line := range strings.Lines(string(text)) {
		var ev struct {
			Row []json.RawMessage
			EOQ json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			return nil, err
		}
		if len(ev.Row) == 2 {
			rows = append(rows, string(ev.Row[1]))
		}
		whole = whole || ev.EOQ != nil
	}
	if resp.StatusCode != http.StatusOK || !whole {
		return nil, fmt.Errorf("agent of %s: %s: %s", s.Name, resp.Status, text)
	}
	slices.Sort(rows)
	return rows, nil
}

// replicated are all cells of the registry but the times of the last signs of life.
var replicated = []string{
	"SELECT id, service, server_id, ip, started_at, instance_id, health_status, last_health_check, consecutive_failures, health_port FROM containers",
	"SELECT id, server_id, project, name, ports, external FROM jiji_containers",
	"SELECT name, project FROM services",
	"SELECT id, hostname, subnet, wireguard_ip, wireguard_pubkey, management_ip, endpoints, removed_at FROM servers",
	"SELECT id, version, boot_id, mtu, claimed_at FROM jiji_servers",
	"SELECT key, value FROM cluster_metadata",
}

// converged returns an error unless all agents have the same rows, those of the
// ledger and no others, and all nodes answer them.
func (c *cluster) converged(l *ledger, gone ...string) error {
	var want []string
	for name, ip := range l.at {
		want = append(want, fmt.Sprintf("[%q,%q]", name, ip))
	}
	slices.Sort(want)
	for _, s := range c.servers {
		got, err := c.rows(s, "SELECT id, ip FROM containers")
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("the agent of %s has the containers %v, want %v", s.Name, got, want)
		}
	}
	for _, statement := range replicated {
		first, err := c.rows(c.servers[0], statement)
		if err != nil {
			return err
		}
		for _, s := range c.servers[1:] {
			other, err := c.rows(s, statement)
			if err != nil {
				return err
			}
			if !slices.Equal(first, other) {
				return fmt.Errorf("%s: %s has %v, %s has %v", statement, c.servers[0].Name, first, s.Name, other)
			}
		}
	}
	for i := range c.servers {
		if err := answered(c, i, l.at, gone...); err != nil {
			return err
		}
	}
	return nil
}

// agentPid is the agent of a server as that one sees it, 0 if none runs.
func agentPid(t *testing.T, s *lab.Server) int {
	t.Helper()
	st, err := tryStatus(t, s)
	if err != nil || st.Registry.Agent == nil {
		return 0
	}
	return st.Registry.Agent.PID
}

// agentProcesses are the agents that run on a server, whoever started them.
func agentProcesses(s *lab.Server) []string {
	out, _ := s.Try("pgrep", "-f", "corrosion/config.toml agent")
	return strings.Fields(out)
}

// Show 2: while all agents are away, tunnels, names and restarts of nodes go on, and
// what is registered is accepted. When they are back, all have all of it.
func TestRegistryShow2AgentsAwayForAMinute(t *testing.T) {
	away := time.Minute
	if testing.Short() {
		away = 20 * time.Second
	}
	c := newOutages(t, 3)
	c.Plain() // times of a binary that users run
	a, b := c.servers[1].Container("a", "10.210.1.200"), c.servers[2].Container("b", "10.210.2.200")
	l := newLedger()
	c.startAll()
	var before, gone []string
	c.step("Register", func() {
		for i, s := range c.servers {
			l.register(c, i, s.Name+"-stays", s.Name+"-goes", s.Name+"-early")
			before = append(before, s.Name+"-stays", s.Name+"-goes", s.Name+"-early")
		}
		lab.Eventually(t, 10*time.Second, "all have all", func() error { return c.converged(l) })
		lab.Eventually(t, 15*time.Second, "web1 has others' names on disk", func() error {
			text, err := os.ReadFile(c.servers[0].Path("/var/lib/jiji/containers.json"))
			for _, name := range before[3:] {
				if !bytes.Contains(text, []byte(name)) {
					return fmt.Errorf("%s is not there (%v)", name, err)
				}
			}
			return nil
		})
	})

	ping := a.Spawn("ping", "-n", "-i", "0.1", "-W", "1", b.Addr.String())
	ping.WaitLog("icmp_seq=1 ", 5*time.Second)
	killed := time.Now()
	c.step("Kill all agents", func() {
		for _, s := range c.servers {
			pid := agentPid(t, s)
			if pid == 0 {
				t.Fatalf("no agent runs on %s", s.Name)
			}
			s.WriteFile(agentAway, "")
			s.Run("kill", "-9", strconv.Itoa(pid))
		}
		for _, s := range c.servers {
			down(t, s, killed)
		}
	})
	remembered := maps.Clone(l.at)
	c.step("Go on without agents", func() {
		for i, s := range c.servers {
			begun := time.Now()
			l.register(c, i, s.Name+"-late", s.Name+"-later")
			l.deregister(c, i, s.Name+"-goes")
			gone = append(gone, s.Name+"-goes")
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("%s took %v for two registrations and one deregistration", s.Name, took)
			}
			l.register(c, i, s.Name+"-brief") // and what comes and goes meanwhile
			l.deregister(c, i, s.Name+"-brief")
			gone = append(gone, s.Name+"-brief")
		}
		for i := range c.servers {
			c.rememberedWithoutAgents(i, remembered, l.at, gone)
		}
	})
	for round := range 2 {
		c.step("Restart a node without agents", func() {
			c.nodes[0].Kill9()
			c.start(0, c.corrosion()...)
			c.waitUp(c.servers...)
			reach(t, c.servers[0].Host, b.Addr.String(), 10*time.Second)
			c.rememberedWithoutAgents(0, remembered, l.at, gone)
			down(t, c.servers[0], killed)
			name := fmt.Sprintf("web1-restarted-%d", round)
			l.register(c, 0, name)
			c.rememberedWithoutAgents(0, remembered, l.at, gone)
		})
	}
	says(t, c.servers[0], "web2-early|the registry is down since |changes on other servers may be missing", "resolve", "web2-early")
	l.deregister(c, 0, "web1-restarted-0", "web1-early")
	gone = append(gone, "web1-restarted-0", "web1-early")
	for time.Since(killed) < away {
		for i, s := range c.servers {
			c.rememberedWithoutAgents(i, remembered, l.at, gone)
			down(t, s, killed)
		}
	}

	released := time.Now()
	for _, s := range c.servers {
		s.Run("rm", agentAway)
	}
	var back time.Time
	lab.Eventually(t, 10*time.Second, "the agents are back", func() error {
		for _, s := range c.servers {
			if agentPid(t, s) == 0 {
				return fmt.Errorf("none runs on %s", s.Name)
			}
		}
		back = time.Now()
		return nil
	})
	lab.Eventually(t, 20*time.Second, "all have all", func() error { return c.converged(l, gone...) })
	took := time.Since(back)
	t.Logf("agents were back %v after they could be, and all had all %v later", back.Sub(released).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("converged %v after the agents were back, want at most 5 s", took)
	}
	for _, s := range c.servers {
		c.joined(s)
		if n := len(status(t, s).Peers); n != 2 {
			t.Errorf("%s has %d peers, want 2", s.Name, n)
		}
	}
	ping.Signal(syscall.SIGINT)
	ping.Wait(5 * time.Second)
	if !strings.Contains(ping.Log(), " 0% packet loss") {
		t.Errorf("the tunnel between two nodes that went on lost packets:\n%s", ping.Log()[max(0, len(ping.Log())-400):])
	}
}

// down waits until the server says that its registry is down, and since when.
func down(t *testing.T, s *lab.Server, since time.Time) {
	t.Helper()
	waitRegistry(t, s, 5*time.Second, func(r control.Registry) error {
		switch {
		case r.State != "down" || r.Error == "":
			return fmt.Errorf("registry is %+v", r)
		case r.Since == nil || r.Since.Before(since.Add(-time.Second)) || r.Since.After(time.Now()):
			return fmt.Errorf("down since %v, the agents were killed at %v", r.Since, since)
		}
		return nil
	})
}

// rememberedWithoutAgents waits until server i answers what others had before the
// agents went, and of its own what is registered now.
func (c *cluster) rememberedWithoutAgents(i int, before, now map[string]netip.Addr, gone []string) {
	c.t.Helper()
	own := c.servers[i].Name + "-"
	want := map[string]netip.Addr{}
	for name, ip := range before {
		if !strings.HasPrefix(name, own) {
			want[name] = ip
		}
	}
	for name, ip := range now {
		if strings.HasPrefix(name, own) {
			want[name] = ip
		}
	}
	gone = slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return !strings.HasPrefix(name, own) })
	lab.Eventually(c.t, 2*time.Second, c.servers[i].Name+" answers from memory", func() error { return answered(c, i, want, gone...) })
}

// Show 3: what is registered on both sides of a partition is everywhere soon after it
// is healed, and no side ever removes a peer.
func TestRegistryShow3PartitionHeals(t *testing.T) {
	apart := 75 * time.Second
	if testing.Short() {
		apart = 20 * time.Second
	}
	c := newCluster(t, 3)
	c.Plain() // times of a binary that users run
	l := newLedger()
	c.startAll()
	for i, s := range c.servers {
		l.register(c, i, s.Name+"-stays", s.Name+"-goes")
	}
	lab.Eventually(t, 10*time.Second, "all have all", func() error { return c.converged(l) })

	watched := watchPeers(t, c)
	remembered := maps.Clone(l.at)
	cut := time.Now()
	c.lan.Cut(c.servers[0], c.servers[2])
	c.lan.Cut(c.servers[1], c.servers[2])
	for _, s := range c.servers[:2] {
		waitPeer(t, s, "web3", 30*time.Second, func(p control.Peer) bool { return p.State != "up" })
	}
	var gone []string
	c.step("Register on both sides", func() {
		for n := 0; time.Since(cut) < apart; n++ {
			for i, s := range c.servers {
				l.register(c, i, fmt.Sprintf("%s-apart-%d", s.Name, n))
			}
			if n == 0 {
				for i, s := range c.servers {
					l.deregister(c, i, s.Name+"-goes")
					gone = append(gone, s.Name+"-goes")
				}
			}
			// Each side answers its own; of the other what it had before.
			for i := range c.servers {
				want := maps.Clone(remembered)
				for name, ip := range l.at {
					if strings.HasPrefix(name, "web3-") == (i == 2) {
						want[name] = ip
					}
				}
				side := slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return strings.HasPrefix(name, "web3-") != (i == 2) })
				for _, name := range side {
					delete(want, name)
				}
				lab.Eventually(t, 5*time.Second, c.servers[i].Name+" answers in the partition", func() error { return answered(c, i, want, side...) })
			}
			time.Sleep(time.Second) // paces the registrations
		}
	})
	healed := time.Now()
	c.lan.Heal(c.servers[0], c.servers[2])
	c.lan.Heal(c.servers[1], c.servers[2])
	var up time.Duration
	c.waitUp(c.servers...)
	up = time.Since(healed)
	lab.Eventually(t, time.Minute, "all have all", func() error { return c.converged(l, gone...) })
	took := time.Since(healed)
	t.Logf("apart for %v, %d services; tunnels up %v after the heal, all had all after %v", healed.Sub(cut).Round(time.Second), len(l.at), up.Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 15*time.Second {
		t.Errorf("converged %v after the heal, want at most 15 s", took)
	}
	watched.judge()
}

// A peerWatch reads the peers of all devices every 100 ms.
type peerWatch struct {
	c    *cluster
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	readings []int           // by server; guarded by mu
	gap      []time.Duration // between two readings at most; guarded by mu
	wrong    []string        // guarded by mu
}

func watchPeers(t *testing.T, c *cluster) *peerWatch {
	t.Helper()
	w := &peerWatch{c: c, stop: make(chan struct{}), readings: make([]int, len(c.servers)), gap: make([]time.Duration, len(c.servers))}
	for i, s := range c.servers {
		want, err := devicePeers(s)
		if err != nil || len(want) != len(c.servers)-1 {
			t.Fatalf("%s has the peers %v, want %d (%v)", s.Name, want, len(c.servers)-1, err)
		}
		w.done.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for last := time.Now(); ; {
				select {
				case <-w.stop:
					return
				case <-tick.C:
				}
				got, err := devicePeers(s)
				w.mu.Lock()
				w.readings[i]++
				w.gap[i] = max(w.gap[i], time.Since(last))
				if err != nil || !slices.Equal(got, want) {
					w.wrong = append(w.wrong, fmt.Sprintf("%s: peers %v, want %v (%v)", s.Name, got, want, err))
				}
				w.mu.Unlock()
				last = time.Now()
			}
		})
	}
	t.Cleanup(w.end)
	return w
}

func (w *peerWatch) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.done.Wait()
}

// judge ends the watch and fails for a peer that was missing at any time.
func (w *peerWatch) judge() {
	w.c.t.Helper()
	w.end()
	w.c.t.Logf("read the peers %v times, at most %v apart", w.readings, w.gap)
	if len(w.wrong) > 0 {
		w.c.t.Errorf("%d readings of the devices are wrong, the first: %s", len(w.wrong), w.wrong[0])
	}
	for i, n := range w.readings {
		if n < 10 {
			w.c.t.Errorf("%s was read %d times only", w.c.servers[i].Name, n)
		}
	}
}

// devicePeers are the keys of the peers of a server's device, in order, by the socket
// of wg(8).
func devicePeers(s *lab.Server) ([]string, error) {
	conn, err := net.Dial("unix", s.Path("/var/run/wireguard/jiji0.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "get=1\n\n"); err != nil {
		return nil, err
	}
	text := ""
	for buf := make([]byte, 64<<10); !strings.Contains(text, "errno="); {
		n, err := conn.Read(buf)
		text += string(buf[:n])
		if err != nil {
			return nil, err
		}
	}
	var keys []string
	for line := range strings.Lines(text) {
		if key, ok := strings.CutPrefix(strings.TrimSpace(line), "public_key="); ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// A node that is killed at any moment, with its agent, loses nothing that it has
// accepted; no agent stays behind, and none keeps the next start from its work.
func TestRegistryKill9WithRegistrations(t *testing.T) {
	t.Parallel()
	const kills = 10
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := newCluster(t, 2)
	web1, web2 := c.servers[0], c.servers[1]
	c.startAll()
	acknowledged := &confirmed{services: map[string]netip.Addr{}}
	var slowestReady, slowestAgent time.Duration
	for i := range kills {
		moment := time.Duration(random.Int64N(int64(700 * time.Millisecond)))
		if i%3 == 2 { // in its start, when its former agent may still be ending
			c.nodes[0].Kill9()
			c.launch(0, c.corrosion()...)
			time.Sleep(moment)
			c.nodes[0].Kill9()
		} else {
			killDuring(c.mesh, moment, func(ctx context.Context, n int) error { return acknowledged.register(ctx, web1, i, n) })
		}
		killed := time.Now()
		c.start(0, c.corrosion()...)
		slowestReady = max(slowestReady, time.Since(killed))
		acknowledged.check(t, web1)
		waitRegistry(t, web1, 30*time.Second, func(r control.Registry) error {
			if r.State != "up" || r.Pending != 0 || r.Error != "" || r.Agent.PID == 0 {
				return fmt.Errorf("registry is %+v", r)
			}
			return nil
		})
		slowestAgent = max(slowestAgent, time.Since(killed))
		if pids, own := agentProcesses(web1), strconv.Itoa(agentPid(t, web1)); !slices.Equal(pids, []string{own}) {
			t.Fatalf("the agents %v run, want the node's own, %s, alone", pids, own)
		}
		t.Logf("killed %3d ms into it; %d acknowledged so far; followed again after %v", moment.Milliseconds(), len(acknowledged.services), time.Since(killed).Round(time.Millisecond))
	}
	t.Logf("%d registrations were acknowledged; ready after at most %v, registry followed after at most %v",
		len(acknowledged.services), slowestReady.Round(time.Millisecond), slowestAgent.Round(time.Millisecond))
	lab.Eventually(t, time.Minute, "web2 has all that was acknowledged", func() error {
		list, err := clientOf(web2).Containers(t.Context())
		if err != nil {
			return err
		}
		has := map[string]netip.Addr{}
		for _, v := range list {
			has[v.Service] = v.IP
		}
		for service, ip := range acknowledged.services {
			if has[service] != ip {
				return fmt.Errorf("%s has %v, want %v", service, has[service], ip)
			}
		}
		return nil
	})
	c.nodes[0].Kill9()
	lab.Eventually(t, 15*time.Second, "the agent of a killed node ends", func() error {
		if pids := agentProcesses(web1); len(pids) > 0 {
			return fmt.Errorf("%v run", pids)
		}
		return nil
	})
}

// A node that is told to end ends its agent in order, and carries traffic and answers
// names until that has ended. `down` leaves nothing.
func TestRegistryAgentEndsInOrder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	web1 := c.servers[0]
	a, b := web1.Container("a", "10.210.0.200"), c.servers[1].Container("b", "10.210.1.200")
	l := newLedger()
	c.startAll()
	l.register(c, 1, "web2-early")
	lab.Eventually(t, 5*time.Second, "web1 answers", func() error { return answered(c, 0, l.at) })
	reach(t, a.Host, b.Addr.String(), 5*time.Second)

	c.step("SIGTERM", func() {
		begun := time.Now()
		c.nodes[0].Signal(syscall.SIGTERM)
		var carried, answering int
		for !c.nodes[0].Ended() {
			agents := len(agentProcesses(web1))
			_, pinged := a.Try("ping", "-n", "-c1", "-W1", b.Addr.String())
			err := answered(c, 0, l.at)
			if len(agentProcesses(web1)) == 0 || agents == 0 { // it may have ended while we asked
				break
			}
			if pinged != nil {
				t.Fatalf("the agent still ends, %v after SIGTERM, and the tunnel carries nothing: %v", time.Since(begun), pinged)
			}
			carried++
			if err != nil {
				t.Fatalf("the agent still ends, %v after SIGTERM, and names are not answered: %v", time.Since(begun), err)
			}
			answering++
		}
		if code := c.nodes[0].Wait(15 * time.Second); code != 0 {
			t.Errorf("exit code %d, want 0\n%s", code, c.nodes[0].Log())
		}
		t.Logf("ended %v after SIGTERM; %d pings and %d lookups meanwhile", time.Since(begun).Round(time.Millisecond), carried, answering)
		if carried == 0 {
			t.Error("the agent ended before anything was seen")
		}
		if log := c.nodes[0].Log(); strings.Contains(log, "does not end") {
			t.Errorf("the agent was killed:\n%s", log)
		}
		agentGone(t, web1)
	})
	c.step("Start again, down", func() {
		c.start(0, c.corrosion()...)
		c.joined(web1)
		web1.Run("jiji-node", "down")
		if code := c.nodes[0].Wait(15 * time.Second); code != 0 {
			t.Errorf("exit code %d, want 0\n%s", code, c.nodes[0].Log())
		}
		agentGone(t, web1)
	})
	c.step("Start again, kill, down", func() {
		c.start(0, c.corrosion()...)
		c.joined(web1)
		c.nodes[0].Kill9()
		web1.Run("jiji-node", "down")
		lab.Eventually(t, 15*time.Second, "the agent ends", func() error {
			if pids := agentProcesses(web1); len(pids) > 0 {
				return fmt.Errorf("%v run", pids)
			}
			return nil
		})
		agentGone(t, web1)
	})
}

// agentGone fails if anything of an agent is left on the server but its directory.
func agentGone(t *testing.T, s *lab.Server) {
	t.Helper()
	checkNothingLeft(t, s)
	if pids := agentProcesses(s); len(pids) > 0 {
		t.Errorf("the agents %v still run", pids)
	}
	if out := s.Run("ss", "-Htulnx"); strings.Contains(out, ":8786 ") || strings.Contains(out, ":8787 ") || strings.Contains(out, ":8080 ") || strings.Contains(out, "corrosion") {
		t.Errorf("sockets are left:\n%s", out)
	}
}
