//go:build linux

package integration_test

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const rttLimit = 100 * time.Second // from a change of a path to an echo that tells: one in 25 s at least, of which a busy machine spoils some

// ordersOn asks web1 for api.jiji many times, and returns how often it was answered in
// which order: servers by number.
func ordersOn(t *testing.T, web1 *lab.Server) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for range 30 {
		var order []string
		for _, ip := range strings.Fields(web1.Run("dig", "+short", "+tries=1", "+time=2", "@10.210.0.1", "api.jiji")) {
			subnet, err := strconv.Atoi(strings.Split(ip, ".")[2])
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, strconv.Itoa(subnet+1))
		}
		seen[strings.Join(order, " ")]++
	}
	return seen
}

// inOrders waits until web1 answers api.jiji in just these orders.
func inOrders(t *testing.T, web1 *lab.Server, limit time.Duration, want ...string) {
	t.Helper()
	slices.Sort(want)
	lab.Eventually(t, limit, fmt.Sprintf("api.jiji is answered in the orders %q", want), func() error {
		if got := ordersOn(t, web1); !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
			return fmt.Errorf("it is in %v", got)
		}
		return nil
	})
	t.Logf("api.jiji is answered in the orders %v", ordersOn(t, web1))
}

// Of four servers one is near and two are equally far: they are answered so, whatever
// they are called.
func TestDNSOrderByRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	web1 := c.servers[0]
	paths := map[int]*lab.Path{}
	for _, i := range []int{1, 2} { // web2 and web3 are reached through a slow path alone
		p := c.lan.PathTo(c.servers[i].Endpoint(c.lan))
		p.Set(lab.Faults{Delay: 20 * time.Millisecond}) // in the class of 32 to 64 ms, with what a busy machine adds, too
		c.lan.Cut(web1, c.servers[i])
		paths[i] = p
	}
	for _, s := range c.servers {
		editTopology(t, s, "/var/lib/jiji/network.json", func(topo *topology.Topology) {
			for i, p := range paths {
				at := slices.IndexFunc(topo.Servers, func(v topology.Server) bool { return v.ID == c.servers[i].Name })
				topo.Servers[at].Endpoints = []netip.AddrPort{p.Addr()}
			}
		})
	}
	for i := range c.servers {
		args := c.corrosion()
		if p := paths[i]; p != nil {
			args = append(args, "--endpoint", p.Addr().String())
		}
		c.launch(i, args...)
	}
	for i, s := range c.servers {
		c.nodes[i].WaitReady()
		c.joined(s)
	}
	c.waitUp(c.servers...)

	c.step("Measure", func() {
		for i := range c.servers[1:] {
			name, least, most := c.servers[i+1].Name, 40*time.Millisecond, 60*time.Millisecond
			if paths[i+1] == nil {
				least, most = 1, 20*time.Millisecond
			}
			p := waitPeer(t, web1, name, rttLimit, func(p control.Peer) bool {
				return time.Duration(p.RTT) >= least && time.Duration(p.RTT) < most
			})
			t.Logf("%s has an RTT of %v", name, time.Duration(p.RTT))
		}
		out := web1.Run("jiji-node", "status")
		for i, want := range []string{`RTT`, `web2 +up +\S+ +[45]\d\.\d\d ms`, `web3 +up +\S+ +[45]\d\.\d\d ms`, `web4 +up +\S+ +1?\d\.\d\d ms`} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("status lacks %q (%d):\n%s", want, i, out)
			}
		}
	})
	c.step("Nearest first", func() {
		for i, s := range c.servers[1:] {
			s.Run("jiji-node", "service", "register", "api", "--ip", fmt.Sprintf("10.210.%d.10", i+1))
		}
		inOrders(t, web1, rttLimit, "4 2 3", "4 3 2")
		out := web1.Run("jiji-node", "resolve", "api")
		if !regexp.MustCompile(`order: web4 \(1?\d\.\d\d ms\), web2 \(\d\d\.\d\d ms\), web3 \(\d\d\.\d\d ms\)\n`).MatchString(out) {
			t.Errorf("resolve does not say why:\n%s", out)
		}
	})
	c.step("Own server first", func() {
		web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
		inOrders(t, web1, 5*time.Second, "1 4 2 3", "1 4 3 2")
	})
	c.step("A path becomes shorter", func() {
		paths[2].Set(lab.Faults{Delay: 6 * time.Millisecond})
		inOrders(t, web1, rttLimit, "1 4 3 2")
	})
	c.step("A server filters ICMP", func() {
		c.servers[3].Run("iptables", "-I", "INPUT", "-p", "icmp", "-j", "DROP")
		c.nodes[0].Stop()
		c.start(0, c.corrosion()...)
		inOrders(t, web1, rttLimit, "1 3 2 4") // what is not measured is last, and answered
	})
	c.step("Plain rotation", func() {
		c.nodes[0].Stop()
		c.start(0, append(c.corrosion(), "--dns-order", "rotate")...)
		lab.Eventually(t, rttLimit, "each server comes first", func() error {
			first := map[byte]int{}
			for order, n := range ordersOn(t, web1) {
				first[order[0]] += n
			}
			if len(first) < 4 {
				return fmt.Errorf("these do: %v", first)
			}
			return nil
		})
		if out := web1.Run("jiji-node", "resolve", "api"); strings.Contains(out, "order:") {
			t.Errorf("resolve speaks of an order:\n%s", out)
		}
	})
}

// A peer that drops our echoes has no round-trip time, and nothing else happens: it is
// not even asked for a handshake, let alone taken for dead.
func TestPeerThatFiltersICMPStaysUp(t *testing.T) {
	t.Parallel()
	const watched = 80 * time.Second // less than after which WireGuard makes a new session
	m := newMesh(t, 1)
	web1 := m.servers[0]
	m.startAll()
	key := wgkey.NewPrivate()
	subnet := netip.MustParsePrefix("10.210.3.0/24")
	stock := m.Server("stock").On(m.lan)
	self := topology.Server{
		ID: "stock", Hostname: "stock", Key: key.Public(), Subnet: subnet, WireGuardIP: ipplan.WireGuardIP(subnet),
		ManagementIP: ipplan.Management(key.Public()), Endpoints: []netip.AddrPort{stock.Endpoint(m.lan)},
	}
	stock.RunInput(`table inet quiet {
	counter echoes { }
	chain input {
		type filter hook input priority 0
		ip protocol icmp counter name echoes drop
	}
}`, "nft", "-f", "-")
	me := status(t, web1).Server
	config := lab.StockConfig{
		Key: key, Addresses: []netip.Prefix{netip.PrefixFrom(self.WireGuardIP, 32)},
		// Keepalives as every member sends them: without, who is silent for 30 s is asked.
		Peers: []lab.StockPeer{{Key: me.Key, AllowedIPs: []netip.Prefix{me.Subnet}, Keepalive: 25 * time.Second}},
	}
	stock.StartStockWireGuard(config)
	topo, err := topology.Parse("network.json", []byte(web1.ReadFile("/var/lib/jiji/network.json")))
	if err != nil {
		t.Fatal(err)
	}
	web1.RunInput(string(topology.Entry(topo, self)), "jiji-node", "server", "add", "-")
	before := waitPeer(t, web1, "stock", meshLimit, func(p control.Peer) bool { return p.State == "up" })
	start := time.Now()
	lab.Eventually(t, watched+10*time.Second, "the time passes", func() error {
		st, err := tryStatus(t, web1)
		p, _ := peerOf(st, "stock")
		if err != nil || p.State != "up" || len(p.Changes) != len(before.Changes) || !p.LastHandshake.Equal(*before.LastHandshake) || p.RTT != 0 {
			t.Fatalf("after %v a peer that filters ICMP is %+v, was %+v: %v", time.Since(start), p, before, err)
		}
		if left := watched - time.Since(start); left > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	out := stock.Run("nft", "list", "counter", "inet", "quiet", "echoes")
	var packets, bytes int
	if _, err := fmt.Sscanf(out[strings.Index(out, "packets"):], "packets %d bytes %d", &packets, &bytes); err != nil || packets < 5 || packets > 8 {
		t.Errorf("it dropped %d echoes, want 5 to 8: %v\n%s", packets, err, out)
	}
	t.Logf("up for %v; it dropped %d echoes of %d bytes", time.Since(start).Round(time.Second), packets, bytes/max(packets, 1))
	a := web1.Container("a", "10.210.0.10")
	transfer(t, a, &lab.Container{Host: stock.Host, Server: stock, Addr: self.WireGuardIP}, 1<<20, 10*time.Second)
}

// Without CAP_NET_RAW nothing is measured; status says so, and all else works.
func TestNodeWithoutRawSocketsRunsDegraded(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	m.launch(1)
	m.nodes[0] = web1.Spawn("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "jiji-node", "run")
	for _, p := range m.nodes {
		p.WaitReady()
	}
	m.waitUp(web1, web2)
	waitPeer(t, web2, "web1", rttLimit, func(p control.Peer) bool { return p.RTT > 0 })
	st := status(t, web1)
	if p, _ := peerOf(st, "web2"); p.RTT != 0 {
		t.Errorf("web2 has an RTT of %v", time.Duration(p.RTT))
	}
	for _, want := range []string{"CAP_NET_RAW is missing", "round-trip times are not measured"} {
		if !slices.ContainsFunc(st.Warnings, func(line string) bool { return strings.Contains(line, want) }) {
			t.Errorf("status does not say %q: %q", want, st.Warnings)
		}
	}
	t.Logf("warnings: %q", st.Warnings)
	reach(t, web1.Host, wireGuardIP(1), 5*time.Second)
}
