//go:build linux

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// A node that is killed at any moment comes back as it was, with all that it has
// confirmed, and the mesh heals.
func TestKill9AtTwentyRandomMoments(t *testing.T) {
	t.Parallel()
	const kills = 20
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	a, b := web1.Container("a", "10.210.0.10"), web2.Container("b", "10.210.1.10")
	m.startAll()
	identity := status(t, web1).Server
	confirmed := &confirmed{services: map[string]netip.Addr{}}

	var slowest time.Duration
	for i := range kills {
		moment := time.Duration(random.Int64N(int64(300 * time.Millisecond)))
		var during string
		switch i % 3 {
		case 0:
			during = "its start"
			m.nodes[0].Kill9()
			m.launch(0)
			time.Sleep(moment)
			m.nodes[0].Kill9()
		case 1:
			during = "registrations"
			killDuring(m, moment, func(ctx context.Context, n int) error { return confirmed.register(ctx, web1, i, n) })
		case 2:
			during = "changes of the topology"
			killDuring(m, moment, func(ctx context.Context, n int) error { return confirmed.topology(ctx, web1, web2, m.lan, n) })
		}

		restarted := time.Now()
		m.start(0)
		reach(t, a.Host, b.Addr.String(), 10*time.Second)
		reach(t, b.Host, a.Addr.String(), 10*time.Second)
		healed := time.Since(restarted)
		slowest = max(slowest, healed)
		t.Logf("killed %3d ms into %s; ping across %v after the restart", moment.Milliseconds(), during, healed.Round(time.Millisecond))
		if now := status(t, web1).Server; now.Key != identity.Key || now.ID != identity.ID || now.Subnet != identity.Subnet || now.ManagementIP != identity.ManagementIP {
			t.Fatalf("it came back as %+v, was %+v", now, identity)
		}
		confirmed.check(t, web1)
	}
	t.Logf("%d registrations were confirmed; the slowest recovery took %v", len(confirmed.services), slowest.Round(time.Millisecond))

	m.nodes[0].Stop() // which judges the exit code
	checkNothingLeft(t, web1)
	files := strings.Fields(web1.Run("ls", "-A", "/var/lib/jiji"))
	if want := []string{"lock", "network.json", "private.key", "registry.db", "undo.json"}; !slices.Equal(files, want) {
		t.Errorf("the state directory has %q, want %q", files, want)
	}
	m.start(0)
	confirmed.check(t, web1)
}

// killDuring kills the first server's node some time after it began to do something again
// and again, the n-th time as do(n).
func killDuring(m *mesh, moment time.Duration, do func(ctx context.Context, n int) error) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			if err := do(ctx, n); err != nil {
				failed <- err
				return
			}
		}
	}()
	select {
	case err := <-failed:
		m.t.Fatalf("before the node was killed: %v", err)
	case <-time.After(moment):
	}
	m.nodes[0].Kill9()
	cancel()
	<-failed
}

// confirmed is what a node has said it has done.
type confirmed struct {
	services map[string]netip.Addr
	updated  []netip.AddrPort   // endpoints of the peer as last confirmed; nil: none
	maybe    [][]netip.AddrPort // and those asked for since
}

// register registers one service more.
func (c *confirmed) register(ctx context.Context, s *lab.Server, round, n int) error {
	v := control.Container{
		Service: fmt.Sprintf("s%d-%d", round, n), Ports: []string{"80/tcp"},
		IP: netip.AddrFrom4([4]byte{10, 210, 0, byte(2 + (round*31+n)%250)}),
	}
	if _, err := clientOf(s).Register(ctx, v); err != nil {
		return err
	}
	c.services[v.Service] = v.IP
	return nil
}

// topology adds the entry of peer again, with another second endpoint.
func (c *confirmed) topology(ctx context.Context, s, peer *lab.Server, lan *lab.Network, n int) error {
	endpoints := []netip.AddrPort{peer.Endpoint(lan), netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + n%100)}), 51820)}
	entry := strings.Replace(peer.ReadFile("/run/"+peer.Name+".json"),
		fmt.Sprintf("%q", endpoints[0]), fmt.Sprintf("%q, %q", endpoints[0], endpoints[1]), 1)
	c.maybe = append(c.maybe, endpoints)
	if _, err := clientOf(s).AddServers(ctx, []byte(entry), "test"); err != nil {
		return err
	}
	c.updated, c.maybe = endpoints, nil
	return nil
}

// check fails unless the node has all that was confirmed.
func (c *confirmed) check(t *testing.T, s *lab.Server) {
	t.Helper()
	list, err := clientOf(s).Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]netip.Addr{}
	for _, v := range list {
		has[v.Service] = v.IP
	}
	for service, ip := range c.services {
		if has[service] != ip {
			t.Fatalf("service %s with the address %v was confirmed, the catalog has %v", service, ip, has[service])
		}
	}
	if len(has) > len(c.services)+20 { // one that was asked for may be there in each round
		t.Errorf("the catalog has %d services, %d were confirmed", len(has), len(c.services))
	}
	p := peer(t, s, "web2")
	allowed := append(c.maybe, c.updated)
	if c.updated != nil && !slices.ContainsFunc(allowed, func(e []netip.AddrPort) bool { return slices.Equal(e, p.Endpoints) }) {
		t.Errorf("the endpoints of web2 are %v, want one of %v", p.Endpoints, allowed)
	}
	if c.updated != nil {
		c.updated, c.maybe = p.Endpoints, nil
	}
}

// checkNothingLeft fails if a node that has ended left something on the host's network
// but what has packets for the mesh end there.
func checkNothingLeft(t *testing.T, s *lab.Server) {
	t.Helper()
	var left error
	if out, err := s.Try("ip", "link", "show", "jiji0"); err == nil {
		left = errors.Join(left, fmt.Errorf("interface:\n%s", out))
	}
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(s.Run("ip", family, "route", "show", "table", "all")) {
			ours := strings.Contains(line, "jiji0") || strings.Contains(line, "fdcc") || strings.Contains(line, "proto 86")
			if ours && !strings.HasPrefix(line, "unreachable") {
				left = errors.Join(left, fmt.Errorf("route: %s", line))
			}
		}
	}
	for _, dir := range []string{"/run/jiji", "/run/wireguard"} {
		if out, err := s.Try("ls", "-A", dir); err == nil && out != "" {
			left = errors.Join(left, fmt.Errorf("in %s: %s", dir, out))
		}
	}
	if out := s.Run("ss", "-Htulnx"); strings.Contains(out, ":53 ") || strings.Contains(out, ":51820") || strings.Contains(out, "jiji") {
		left = errors.Join(left, fmt.Errorf("sockets:\n%s", out))
	}
	if left != nil {
		t.Errorf("%s: left behind: %v", s.Name, left)
	}
}
