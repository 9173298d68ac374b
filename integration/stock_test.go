//go:build linux

package integration_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// wireguard-go as its authors publish it is a peer like any other.
func TestStockWireGuardIsFourthPeer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 3)
	a := m.servers[0].Container("a", "10.210.0.10")
	m.startAll()

	key := wgkey.NewPrivate()
	subnet := netip.MustParsePrefix("10.210.3.0/24")
	stock := m.Server("stock").On(m.lan)
	self := topology.Server{
		ID: "stock", Hostname: "stock", Key: key.Public(), Subnet: subnet, WireGuardIP: ipplan.WireGuardIP(subnet),
		ManagementIP: ipplan.Management(key.Public()), Endpoints: []netip.AddrPort{stock.Endpoint(m.lan)},
	}
	config := lab.StockConfig{
		Key: key, Addresses: []netip.Prefix{
			netip.PrefixFrom(self.WireGuardIP, 32), netip.PrefixFrom(self.ManagementIP, 128),
		},
	}
	topo, err := topology.Parse("network.json", []byte(m.servers[0].ReadFile("/var/lib/jiji/network.json")))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range m.servers {
		s.RunInput(string(topology.Entry(topo, self)), "jiji-node", "server", "add", "-")
		me := status(t, s).Server
		config.Peers = append(config.Peers, lab.StockPeer{
			Key: me.Key, Endpoint: s.Endpoint(m.lan), Keepalive: 25 * time.Second,
			AllowedIPs: []netip.Prefix{me.Subnet, netip.PrefixFrom(me.ManagementIP, 128)},
		})
	}
	theirs := &lab.Container{Host: stock.Host, Server: stock, Addr: self.WireGuardIP}

	bothWays := func(limit time.Duration) {
		t.Helper()
		for i, s := range m.servers {
			reach(t, s.Host, self.WireGuardIP.String(), limit)
			reach(t, s.Host, self.ManagementIP.String(), limit)
			reach(t, stock.Host, wireGuardIP(i), limit)
			waitPeer(t, s, "stock", limit, func(p control.Peer) bool { return p.State == "up" })
		}
		reach(t, a.Host, self.WireGuardIP.String(), limit)
		reach(t, stock.Host, a.Addr.String(), limit)
		if seen := transfer(t, a, theirs, 10<<20, 30*time.Second); seen != a.Addr {
			t.Errorf("the stock peer saw %s, want %s", seen, a.Addr)
		}
		if seen := transfer(t, theirs, a, 10<<20, 30*time.Second); seen != self.WireGuardIP {
			t.Errorf("%s saw %s, want %s", a.Name, seen, self.WireGuardIP)
		}
	}
	running := stock.StartStockWireGuard(config)
	bothWays(meshLimit)
	running.Stop()
	running = stock.StartStockWireGuard(config)
	bothWays(20 * time.Second)
	running.Kill9()

	// Ours begins: the stock peer waits.
	for i := range config.Peers {
		config.Peers[i].Endpoint, config.Peers[i].Keepalive = netip.AddrPort{}, 0
	}
	stock.StartStockWireGuard(config)
	bothWays(30 * time.Second)
}
