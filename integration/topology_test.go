//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/topology"
)

func TestFourthServerJoinsWithoutRestart(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 3)
	a := m.servers[0].Container("a", "10.210.0.10")
	b := m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	ping := startPing(t, a.Host, b.Addr.String())

	newcomer := m.addServer()
	m.addEntries(newcomer)
	m.start(3) // knows all, and none knows it
	for _, s := range m.servers[:3] {
		sh(s, "jiji-node server add web4.json")
	}
	m.waitUp(m.servers...)
	for i, s := range m.servers {
		for j := range m.servers {
			s.Run("ping", "-n", "-c1", "-W2", wireGuardIP(j))
		}
		if st := status(t, s); st.PID == 0 || len(st.Peers) != 3 || m.nodes[i].Ended() {
			t.Errorf("%s has %d peers, want 3", s.Name, len(st.Peers))
		}
	}
	if gap := ping.gap(); gap > time.Second {
		t.Errorf("the traffic of the others stood still for %v", gap)
	}
	out := m.servers[0].Run("dig", "+short", "@10.210.0.1", "web4.node.jiji")
	if got := strings.TrimSpace(out); got != wireGuardIP(3) {
		t.Errorf("web4.node.jiji is %q, want %s", got, wireGuardIP(3))
	}
}

func TestChangedEndpointMoves(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	m.startAll()
	path := m.Path(m.servers[0], m.servers[1])

	sh(m.servers[1], fmt.Sprintf("jiji-node init --endpoint %s > web2.json", path.Addr()))
	m.copyEntries()
	sh(m.servers[0], "jiji-node server add web2.json")
	waitPeer(t, m.servers[0], "web2", 3*time.Second, func(p control.Peer) bool {
		return p.Endpoint == path.Addr() && tellsOfMove(p, m.servers[1].Endpoint(m.lan), path.Addr())
	})
	before := path.Forward.Counts().In
	reach(t, m.servers[0].Host, wireGuardIP(1), 5*time.Second)
	if path.Forward.Counts().In == before {
		t.Error("packets go another way than the endpoint")
	}
}

// The file that others write: absence is not removal, removedAt is, and what is wrong
// changes nothing.
func TestNetworkFileIsFollowed(t *testing.T) {
	t.Parallel()
	const file = "/etc/jiji/network.json"
	m := newMesh(t, 3)
	web1 := m.servers[0]
	for _, s := range m.servers {
		s.WriteFile(file, s.ReadFile("/var/lib/jiji/network.json"))
	}
	m.startAll("--network", file)
	given := web1.ReadFile(file)
	extra := netip.MustParseAddrPort("203.0.113.99:51820")
	hasExtra := func(p control.Peer) bool { return slices.Contains(p.Endpoints, extra) }

	editTopology(t, web1, file, func(topo *topology.Topology) {
		topo.Servers = topo.Servers[:2]
		topo.Servers[1].Endpoints = append(topo.Servers[1].Endpoints, extra)
	})
	waitPeer(t, web1, "web2", 5*time.Second, hasExtra) // so the file was read
	peer(t, web1, "web3")
	reach(t, web1.Host, wireGuardIP(2), 5*time.Second)

	broken := given[:len(given)/2]
	web1.WriteFile(file, broken) // in place, too
	lab.Eventually(t, 5*time.Second, "status tells of the bad file", func() error {
		st := status(t, web1)
		line := fmt.Sprintf("%s:%d:", file, strings.Count(broken, "\n")+1)
		if !strings.Contains(st.Topology.Error, line) || !slices.Contains(st.Warnings, st.Topology.Error) {
			return fmt.Errorf("error %q, warnings %q", st.Topology.Error, st.Warnings)
		}
		return nil
	})
	if p := peer(t, web1, "web2"); !hasExtra(p) {
		t.Error("the last good topology is not in force")
	}
	reach(t, web1.Host, wireGuardIP(1), 5*time.Second)

	replaceFile(t, web1, file, given)
	waitPeer(t, web1, "web2", 5*time.Second, func(p control.Peer) bool { return !hasExtra(p) })
	if st := status(t, web1); st.Topology.Error != "" || len(st.Warnings) != 0 {
		t.Errorf("the file is good again: error %q, warnings %q", st.Topology.Error, st.Warnings)
	}

	key := peer(t, web1, "web3").Key.String()
	editTopology(t, web1, file, func(topo *topology.Topology) { topo.Servers[2].RemovedAt = time.Now() })
	lab.Eventually(t, 5*time.Second, "web3 is removed", func() error {
		var err error
		if _, known := peerOf(status(t, web1), "web3"); known {
			err = errors.New("status has it")
		}
		if strings.Contains(web1.Run("wg", "show", "jiji0"), key) {
			err = errors.Join(err, errors.New("the device has it"))
		}
		if routes := web1.Run("ip", "route"); strings.Contains(routes, "10.210.2.0/24") {
			err = errors.Join(err, fmt.Errorf("there is a route:\n%s", routes))
		}
		return err
	})
	reach(t, web1.Host, wireGuardIP(1), 5*time.Second)

	editTopology(t, web1, file, func(topo *topology.Topology) { topo.Servers[0].RemovedAt = time.Now() })
	lab.Eventually(t, 5*time.Second, "web1 reads its own tombstone", func() error {
		if st := status(t, web1); st.State != "removed" || len(st.Peers) != 0 && strings.Contains(web1.Run("wg", "show", "jiji0"), "peer") {
			return fmt.Errorf("state %s, %d peers", st.State, len(st.Peers))
		}
		return nil
	})
	if now := web1.ReadFile(file); strings.Count(now, "removedAt") != 2 {
		t.Errorf("%s was written:\n%s", file, now)
	}
}

// What others change on the device is put back at the next convergence.
func TestWgSetIsPutBack(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 3)
	m.startAll()
	web1 := m.servers[0]
	before := peersOnDevice(web1)
	web2, web3 := peer(t, web1, "web2").Key.String(), peer(t, web1, "web3").Key.String()
	key := web1.ReadFile("/var/lib/jiji/private.key")

	web1.Run("wg", "set", "jiji0", "peer", web2, "allowed-ips", "10.99.0.0/16", "persistent-keepalive", "7")
	web1.Run("wg", "set", "jiji0", "peer", web3, "remove")
	web1.Run("wg", "set", "jiji0", "peer", strings.TrimSpace(web1.Run("sh", "-c", "wg genkey | wg pubkey")), "allowed-ips", "10.98.0.0/16")
	web1.RunInput(web1.Run("wg", "genkey"), "wg", "set", "jiji0", "private-key", "/dev/stdin", "listen-port", "1234")
	if out := peersOnDevice(web1); out == before {
		t.Fatalf("wg set changed nothing:\n%s", out)
	}
	sh(m.servers[1], "jiji-node init --endpoint 203.0.113.2 --endpoint 203.0.113.99 > web2.json")
	m.copyEntries()
	sh(web1, "jiji-node server add web2.json") // any change of the topology
	for _, change := range []string{"allowed ips", "keepalive", "added", "removed", `put back" what="private key"`, `put back" what="listen port"`} {
		m.nodes[0].WaitLog(change, 5*time.Second)
	}
	if out := peersOnDevice(web1); out != before {
		t.Errorf("the device has\n%s\nwant\n%s", out, before)
	}
	if got := web1.Run("wg", "show", "jiji0", "private-key"); strings.TrimSpace(got) != strings.TrimSpace(key) {
		t.Error("the device has another private key than the file")
	}
	if got := web1.Run("wg", "show", "jiji0", "listen-port"); got != "51820\n" {
		t.Errorf("the listen port is %s", got)
	}
	for i := range m.servers {
		reach(t, web1.Host, wireGuardIP(i), meshLimit)
	}

	web1.Run("ip", "route", "del", "10.210.1.0/24") // this is noticed at once
	web1.Run("ip", "link", "set", "jiji0", "mtu", "1300", "down")
	reach(t, web1.Host, wireGuardIP(1), 5*time.Second)
	if out := web1.Run("ip", "link", "show", "jiji0"); !strings.Contains(out, " mtu 1440 ") {
		t.Errorf("jiji0 is not as it was: %s", out)
	}
}

// peersOnDevice returns the peers' keys with allowed IPs and keepalives.
func peersOnDevice(s *lab.Server) string {
	return sh(s, "for what in allowed-ips persistent-keepalive; do wg show jiji0 $what | sort; done")
}
