//go:build linux

package integration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
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
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	a, b := web1.Container("a", "10.210.0.10"), web2.Container("b", "10.210.1.10")
	// What an engine does for its containers' way out.
	web1.Run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.210.0.0/24", "!", "-o", "jiji-br0", "-j", "MASQUERADE")
	web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	// The mesh's prefixes have a way out, as a default route of IPv6 would be.
	web1.Run("ip", "-6", "route", "add", "default", "dev", "eth0")
	m.startAll()
	reach(t, a.Host, b.Addr.String(), meshLimit)
	management := status(t, web2).Server.ManagementIP
	unknown := []netip.Addr{netip.MustParseAddr("10.210.77.5"), netip.MustParseAddr("fdcc:7777::1")}

	inClear := web1.Link(m.lan).Capture("net 10.210.0.0/16 or net fdcc::/16")
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
			reach(t, a.Host, b.Addr.String(), meshLimit)
			web1.Run("ip", "link", "delete", "jiji0")
			time.Sleep(moment / 5)
		case 3:
			m.nodes[0].Kill9()
			m.launch(0).WaitReady()
			reach(t, a.Host, b.Addr.String(), meshLimit)
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
		if n := inClear.Count(); n != 0 {
			stop()
			t.Fatalf("kill %d: %d packets left in the clear:\n%s", i+1, n, inClear)
		}
	}
	m.nodes[0].Kill9()
	m.start(0)
	reach(t, a.Host, b.Addr.String(), meshLimit)
	web1.Run("jiji-node", "server", "remove", "--force", "web2")
	time.Sleep(300 * time.Millisecond)
	sent := stop()
	if n := inClear.Count(); n != 0 {
		t.Fatalf("%d packets left in the clear:\n%s", n, inClear)
	}
	t.Logf("%d packets for the mesh were sent, of which the uplink carried none in the clear; it carried %d packets", sent, web1.Link(m.lan).Counters().TxPackets)

	// The capture does see what leaves once the network is off the host.
	web1.Run("jiji-node", "down")
	stop = sendAll(t, map[*lab.Host][]netip.Addr{a.Host: {b.Addr}, web1.Host: {management}})
	lab.Eventually(t, 5*time.Second, "packets leave in the clear after down", func() error {
		if n := inClear.Count(); n == 0 {
			return fmt.Errorf("none of them was seen")
		}
		return nil
	})
	stop()
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
