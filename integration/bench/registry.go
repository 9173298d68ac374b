//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/fullmesh"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrosion"
)

const (
	agentAddr   = "127.0.0.1:8081"
	tapAddr     = "127.0.0.1:8080"
	burst       = 20_000           // changes
	burstOfOne  = 500              // of them in a transaction
	calmDown    = 15 * time.Second // of a node that has just caught up: it writes what it knows for the next start
	changes     = 10               // one after the other, of which the median counts
	knownWithin = time.Minute
)

// measureRegistry has a node follow an agent that has the largest cluster.
func measureRegistry(s *stage) *Part {
	p := &Part{
		Name:  "registry",
		Sides: [sides]string{"jiji-node", "", ""},
		Notes: []string{
			fmt.Sprintf("A node alone, a Corrosion agent beside it that has %d servers and %d containers in %d services, and a proxy between them, on the same cores.", fullmesh.Servers, fullmesh.Containers, fullmesh.Services),
			"Each round starts the node without a cache. Ready is what sd_notify(3) is told. The snapshot is from the last byte of the subscriptions to the first right answer; a change is from its event to its answer: the 0.6 s for which agents gather changes are the agent's.",
			fmt.Sprintf("The burst is of %d containers that turn unhealthy, %d in a transaction: changes a second from its first event to the answer that lacks the last of them, at the agent's pace; processor is the node's own for each.", burst, burstOfOne),
			fmt.Sprintf("Memory and processor idle are those of %v, from %v after the node has caught up; live is what the last collection until then left in use (GODEBUG=gctrace=1), which may have been in the middle of the work; most is what was resident at any time, the burst included.", idleWindow, calmDown),
		},
	}
	ready := p.add("start to ready", "ms", 0, atMost(3000))
	zone := p.add("last byte of the snapshot to the zone", "ms", 0, atMost(1000))
	change := p.add("a change, event to answer", "ms", 1, atMost(100))
	rate := p.add("burst", "changes/s", 0, Bar{})
	each := p.add("burst, processor", "us/change", 1, Bar{})
	rss := p.add("memory, idle", "MB", 1, atMost(120))
	peak := p.add("memory, most", "MB", 1, Bar{})
	live := p.add("memory, live heap", "MB", 0, Bar{})
	idle := p.add("processor, idle", "% of a core", 2, atMost(2))

	l := lab.New(s)
	h := l.Server("web0").On(l.Network("internet", "192.0.2.0/24"))
	h.Setenv("GODEBUG", "gctrace=1")
	agent := s.startAgent(h)
	dial := func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		err = h.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", agentAddr, time.Second)
			return err
		})
		return c, err
	}
	client, err := corrosion.New(corrosion.Config{URL: "http://" + agentAddr, Dial: dial})
	s.check("make a client of the agent", err)
	s.Cleanup(client.Close)
	lab.Eventually(s, 30*time.Second, "the agent answers", func() error {
		if agent.Ended() {
			s.Fatalf("the agent ended:\n%s", agent.Log())
		}
		return client.Query(s.ctx, corrosion.SQL("SELECT id FROM jiji_servers"), func([]any) error { return nil })
	})
	entries, err := topology.ParseEntries("init", strings.NewReader(h.Run("jiji-node", "init", "--name", "web0", "--index", "0", "--endpoint", h.Links()[0].Addr().String())))
	s.check("read the node's entry", err)
	servers := fullmesh.Topology().Servers
	servers[0] = entries[0].Server
	s.say("writing %d containers", fullmesh.Containers)
	s.check("fill the agent", fullmesh.Fill(s.ctx, client, servers))
	var listener net.Listener
	s.check("listen for the node", h.Do(func() (err error) {
		listener, err = net.Listen("tcp", tapAddr)
		return err
	}))
	tap := fullmesh.NewTap(listener, func() (net.Conn, error) { return dial(s.ctx, "tcp", "") })
	s.Cleanup(tap.Close)
	start := func() *lab.Process {
		p := h.Start("run", "--registry", "corrosion", "--corrosion-url", "http://"+tapAddr)
		p.WaitReady()
		return p
	}
	ask := s.asker(h, servers[0].WireGuardIP)

	const one = fullmesh.Containers - 1 // the last container, on the last server, the only one of its service there
	name := fmt.Sprintf("service%d.web%d.jiji.", one%fullmesh.Services, fullmesh.Servers-1)

	// The first start takes the rows of this server over, and the agent makes the
	// databases of its subscriptions: neither is measured.
	s.say("first start")
	first := start()
	ask.until(name, answered)
	s.sleep(idleSettling)
	first.Stop()
	for n := range s.pairs {
		s.say("round %d of %d", n+1, s.pairs)
		h.Run("rm", "-f", "/var/lib/jiji/containers.json")
		began := time.Now()
		node := start()
		ready.record(ours, milliseconds(time.Since(began)))
		at := ask.until(name, answered)
		zone.record(ours, milliseconds(at.Sub(tap.Last())))
		lab.Eventually(s, knownWithin, "the node has caught up", func() error {
			if out := h.Run("jiji-node", "status"); !strings.Contains(out, ", up since") {
				return fmt.Errorf("its status is\n%s", out)
			}
			return nil
		})

		s.sleep(calmDown)
		used, since := s.cpuTime(node), time.Now()
		s.sleep(idleWindow)
		idle.record(ours, 100*(s.cpuTime(node)-used).Seconds()/time.Since(since).Seconds())
		rss.record(ours, s.memory(node).now)
		inUse, err := liveHeap(node.Log())
		s.check("read the collections of "+node.Name, err)
		live.record(ours, inUse)

		var took []float64
		for i := range changes {
			health, want := "unhealthy", unanswered
			if i%2 == 1 {
				health, want = "healthy", answered
			}
			s.turn(client, health, one, one)
			at := ask.until(name, want)
			took = append(took, milliseconds(at.Sub(tap.Last())))
		}
		change.record(ours, median(took))

		s.sleep(time.Second)
		before, quiet := s.cpuTime(node), tap.Last()
		from := fullmesh.Containers - burst
		for at := from; at < fullmesh.Containers; at += burstOfOne {
			s.turn(client, "unhealthy", at, at+burstOfOne-1)
		}
		begins := s.firstAfter(tap, quiet)
		end := ask.until(name, unanswered)
		rate.record(ours, burst/end.Sub(begins).Seconds())
		each.record(ours, float64((s.cpuTime(node)-before).Microseconds())/burst)
		for at := from; at < fullmesh.Containers; at += burstOfOne {
			s.turn(client, "healthy", at, at+burstOfOne-1)
		}
		ask.until(name, answered)

		peak.record(ours, s.memory(node).peak)
		node.Stop()
	}
	return p
}

// startAgent runs the agent of the tests on h.
func (s *stage) startAgent(h *lab.Server) *lab.Process {
	cmd := exec.CommandContext(s.ctx, ".ci/corrosion")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	s.check("find a Corrosion agent", err)
	binary := strings.TrimSpace(string(out))
	if binary == "" {
		s.Fatalf("there is no Corrosion agent to measure with: see above")
	}
	if version, err := exec.CommandContext(s.ctx, binary, "--version").Output(); err == nil {
		s.against = append(s.against, "an agent "+strings.TrimSpace(string(version)))
	}
	const dir = "/var/lib/agent"
	h.Run("mkdir", "-p", dir+"/tmp")
	h.WriteFile(filepath.Join(dir, "schema", "jiji.sql"), registry.Schema)
	h.WriteFile(filepath.Join(dir, "config.toml"), fmt.Sprintf(`
db = { path = "%[1]s/state.db", schema_paths = ["%[1]s/schema"] }
gossip = { addr = "127.0.0.1:4001", plaintext = true }
api = { addr = "%[2]s" }
admin = { path = "/run/agent.sock" }
`, dir, agentAddr))
	h.Setenv("TMPDIR", dir+"/tmp")
	return h.Spawn(binary, "-c", dir+"/config.toml", "agent")
}

// turn sets the health of containers from one number to another.
func (s *stage) turn(c *corrosion.Client, health string, from, to int) {
	ids := make([]any, 0, to-from+2)
	ids = append(ids, health)
	for n := from; n <= to; n++ {
		ids = append(ids, fullmesh.ID(n))
	}
	_, err := c.Exec(s.ctx, corrosion.SQL("UPDATE containers SET health_status = ? WHERE id IN (?"+strings.Repeat(", ?", to-from)+")", ids...))
	s.check("change containers", err)
}

// firstAfter returns when the first byte of a subscription came after before, within
// a millisecond.
func (s *stage) firstAfter(tap *fullmesh.Tap, before time.Time) time.Time {
	for start := time.Now(); ; s.sleep(time.Millisecond) {
		if last := tap.Last(); last.After(before) {
			return last
		}
		if time.Since(start) > knownWithin {
			s.Fatalf("the agent tells of no change within %v", knownWithin)
		}
	}
}

// An asker asks the node's name server.
type asker struct {
	s    *stage
	conn func() dns.Conn
}

func (s *stage) asker(h *lab.Server, at netip.Addr) asker {
	return asker{s, func() (c dns.Conn) {
		s.check("make a socket", h.Do(func() (err error) {
			c.Conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 53)))
			return err
		}))
		return c
	}}
}

func answered(m *dns.Msg) bool   { return m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 }
func unanswered(m *dns.Msg) bool { return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 }

// until asks for the addresses of a name, every millisecond, until the answer pleases
// ok, and returns when that one came.
func (a asker) until(name string, ok func(*dns.Msg) bool) time.Time {
	c := a.conn()
	defer c.Close()
	var reply *dns.Msg
	var err error
	for start := time.Now(); time.Since(start) < knownWithin; a.s.sleep(time.Millisecond) {
		query := new(dns.Msg).SetQuestion(name, dns.TypeA)
		c.SetDeadline(time.Now().Add(time.Second))
		if err = c.WriteMsg(query); err == nil {
			reply, err = c.ReadMsg()
		}
		if err == nil && reply.Id == query.Id && ok(reply) {
			return time.Now()
		}
	}
	a.s.Fatalf("%s is not answered as it should within %v: %v, %v", name, knownWithin, reply, err)
	panic("unreachable")
}

// gcLine is a collection in the trace of the runtime; the third size is what was in
// use after it, in MiB.
var gcLine = regexp.MustCompile(`(?m)^gc \d+ @.* \d+->\d+->(\d+) MB, `)

// liveHeap returns the MB that a program had in use after its last collection.
func liveHeap(log string) (float64, error) {
	found := gcLine.FindAllStringSubmatch(log, -1)
	if len(found) == 0 {
		return 0, errors.New("no collection in its log")
	}
	mib, err := strconv.ParseFloat(found[len(found)-1][1], 64)
	return mib * (1 << 20) / 1e6, err
}
