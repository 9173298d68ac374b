//go:build linux

package integration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// Show 1: whatever happens to the node, no packet for the mesh leaves in the clear.
func TestShow1NothingInTheClear(t *testing.T) {
	t.Parallel()
	kills := 200
	if testing.Short() {
		kills = 30
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := newMeshOn(t, 2, lanPrefix, "198.51.100.0/24")
	web1, web2 := m.servers[0], m.servers[1]
	a, b := web1.Container("a", "10.210.0.10"), web2.Container("b", "10.210.1.10")
	// What an engine does for its containers' way out.
	web1.Run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.210.0.0/24", "!", "-o", "jiji-br0", "-j", "MASQUERADE")
	web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	// The mesh's prefixes have a way out, as a default route of IPv6 would be.
	wayOut6(web1)
	m.startAll()
	reach(t, a.Host, b.Addr.String(), meshLimit)
	management := status(t, web2).Server.ManagementIP
	unknown := []netip.Addr{netip.MustParseAddr("10.210.77.5"), netip.MustParseAddr("fdcc:7777::1")}

	var uplinks []*lab.Capture
	for _, k := range web1.Links() {
		uplinks = append(uplinks, k.Capture("net 10.210.0.0/16 or net fdcc::/16"))
	}
	inClear := func() (n int) {
		for _, c := range uplinks {
			n += c.Count()
		}
		return n
	}
	stop := sendAll(t, map[*lab.Host][]netip.Addr{
		a.Host:    {b.Addr, unknown[0]},
		web1.Host: {b.Addr, management, unknown[0], unknown[1]},
	})
	for i := range kills {
		moment := time.Duration(random.Int64N(int64(250 * time.Millisecond)))
		switch i % 5 {
		case 0, 1: // at any moment of a start, and after it
			m.nodes[0].Kill9()
			m.launch(0)
			time.Sleep(moment)
		case 2:
			m.nodes[0].Kill9()
			m.launch(0).WaitReady()
			reach(t, a.Host, b.Addr.String(), killedLimit)
			web1.Run("ip", "link", "delete", "jiji0")
			time.Sleep(moment / 5)
		case 3:
			m.nodes[0].Kill9()
			m.launch(0).WaitReady()
			reach(t, a.Host, b.Addr.String(), killedLimit)
			web1.Try("ip", "route", "del", "10.210.1.0/24")
			web1.Try("ip", "-6", "route", "flush", "dev", "jiji0")
			time.Sleep(moment / 5)
		case 4: // at any moment of a stop
			m.nodes[0].Kill9()
			p := m.launch(0)
			p.WaitReady()
			p.Signal(15)
			time.Sleep(moment / 20)
		}
		if n := inClear(); n != 0 {
			stop()
			t.Fatalf("kill %d: %d packets left in the clear:\n%s", i+1, n, uplinks)
		}
	}
	m.nodes[0].Kill9()
	m.start(0)
	reach(t, a.Host, b.Addr.String(), killedLimit)
	web1.Run("jiji-node", "server", "remove", "--force", "web2")
	time.Sleep(300 * time.Millisecond)
	sent := stop()
	if n := inClear(); n != 0 {
		t.Fatalf("%d packets left in the clear:\n%s", n, uplinks)
	}
	t.Logf("%d packets for the mesh were sent, of which the uplink carried none in the clear; it carried %d packets", sent, web1.Link(m.lan).Counters().TxPackets)

	// The capture does see what leaves once the network is off the host.
	web1.Run("jiji-node", "down")
	if code := m.nodes[0].Wait(5 * time.Second); code != 0 {
		t.Errorf("the node ended with %d", code)
	}
	stop = sendAll(t, map[*lab.Host][]netip.Addr{a.Host: {b.Addr}, web1.Host: {management}})
	lab.Eventually(t, 5*time.Second, "packets leave in the clear after down", func() error {
		if text := uplinks[0].String(); !strings.Contains(text, "> "+b.Addr.String()) || !strings.Contains(text, "> "+management.String()) {
			return fmt.Errorf("not of both families were seen:\n%s", text)
		}
		return nil
	})
	stop()
}

// wayOut6 gives a server a default route of IPv6, whose gateway need not be asked for its
// hardware address: else a packet that leaves would be a question for that.
func wayOut6(s *lab.Server) {
	s.Run("sh", "-ec", "ip -6 neigh add fe80::1 lladdr 02:00:00:00:00:01 nud permanent dev eth0; ip -6 route add default via fe80::1 dev eth0")
}

// sendAll sends datagrams to addresses, from each host to its own, a thousand a second
// together at most, until stop is called; it returns how many the kernel took or refused.
func sendAll(t *testing.T, targets map[*lab.Host][]netip.Addr) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	counts := make(chan int, len(targets))
	for h, addrs := range targets {
		var c *net.UDPConn
		if err := h.Do(func() (err error) {
			c, err = net.ListenUDP("udp", nil)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			sent := 0
			for ; ctx.Err() == nil; sent++ {
				c.WriteToUDPAddrPort([]byte("in the clear"), netip.AddrPortFrom(addrs[sent%len(addrs)], 9999)) // refused: as it should be
				time.Sleep(2 * time.Millisecond)
			}
			counts <- sent
		})
	}
	return func() (sent int) {
		cancel()
		wg.Wait()
		for range targets {
			sent += <-counts
		}
		return sent
	}
}

// Show 1: an agent that gossips while the network is taken off the host sends nothing
// in the clear, either.
func TestShow1ClusterGoesDownInTheTunnel(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.startAll()
	web1 := c.servers[0]
	wayOut6(web1)
	inClear := web1.Link(c.lan).Capture("net 10.210.0.0/16 or net fdcc::/16")
	web1.Run("jiji-node", "down")
	if code := c.nodes[0].Wait(5 * time.Second); code != 0 {
		t.Errorf("the node ended with %d", code)
	}
	if n := inClear.Count(); n != 0 {
		t.Errorf("%d packets left in the clear:\n%s", n, inClear)
	}
}

// An agent that somebody else runs is not ended, but named: it goes on gossiping.
func TestDownNamesAnAgentThatGoesOn(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	m.start(0, "--registry", "corrosion", "--corrosion-url", "http://127.0.0.1:18080")
	const want = "left as it is: the Corrosion agent at http://127.0.0.1:18080 is not ours: if it still runs, stop it, for its gossip leaves this machine in the clear now"
	if out := m.servers[0].Run("jiji-node", "down"); !strings.Contains(out, want+"\n") {
		t.Errorf("down says:\n%s", out)
	}
	m.nodes[0].Wait(5 * time.Second)
}
