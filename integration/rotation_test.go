//go:build linux

package integration_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

const (
	dslPrefix     = "198.51.100.0/24"
	rotationLimit = 20 * time.Second // from a path's death to traffic on another one
)

// twoLinks makes two servers with two links each, a container behind each, and a ping
// between them.
func twoLinks(t *testing.T) (m *mesh, ping *pinger) {
	t.Helper()
	m = newMeshOn(t, 2, lanPrefix, dslPrefix)
	a := m.servers[0].Container("a", "10.210.0.10")
	b := m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	for i, s := range m.servers {
		other := m.servers[1-i]
		if p := peer(t, s, other.Name); p.Endpoint != other.Endpoint(m.lan) {
			t.Errorf("%s uses %v, want the first endpoint %v", s.Name, p.Endpoint, other.Endpoint(m.lan))
		}
	}
	return m, startPing(t, a.Host, b.Addr.String())
}

// rotated checks that the traffic went from one network to the other within the limit,
// and that both ends say so.
func rotated(t *testing.T, m *mesh, ping *pinger, from, to *lab.Network) {
	t.Helper()
	ping.resumes(rotationLimit + 5*time.Second)
	gap := ping.gap()
	t.Logf("no answer for %v", gap)
	if gap > rotationLimit {
		t.Errorf("no answer for %v, want at most %v", gap, rotationLimit)
	}
	for i, s := range m.servers {
		other := m.servers[1-i]
		waitPeer(t, s, other.Name, rotationLimit, func(p control.Peer) bool {
			return p.State == "up" && p.Endpoint == other.Endpoint(to) && tellsOfMove(p, other.Endpoint(from), other.Endpoint(to))
		})
	}
}

// tellsOfMove reports whether the changes of a peer have one from an endpoint to another.
func tellsOfMove(p control.Peer, from, to netip.AddrPort) bool {
	return slices.ContainsFunc(p.Changes, func(c control.PathChange) bool {
		return c.Old == from && c.New == to && c.Reason != "" && !c.At.IsZero()
	})
}

func TestRotationWhenAPathDies(t *testing.T) {
	t.Parallel()
	m, ping := twoLinks(t)
	lan, dsl := m.nets[0], m.nets[1]
	lan.Cut(m.servers[0], m.servers[1])
	rotated(t, m, ping, lan, dsl)
	lan.Heal(m.servers[0], m.servers[1])
	dsl.Cut(m.servers[0], m.servers[1])
	rotated(t, m, ping, dsl, lan) // and back, later
}

func TestRotationWhenAPathDiesOneWay(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"Forth", "Back"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, ping := twoLinks(t)
			m.lan.CutOneWay(m.servers[i], m.servers[1-i])
			rotated(t, m, ping, m.nets[0], m.nets[1])
		})
	}
}

func TestHealthyPathStays(t *testing.T) {
	t.Parallel()
	const watched = time.Minute
	m, ping := twoLinks(t)
	var before []control.Peer
	for i, s := range m.servers {
		before = append(before, peer(t, s, m.servers[1-i].Name))
	}
	start := time.Now()
	lab.Eventually(t, watched+5*time.Second, "a minute passes", func() error {
		for i, s := range m.servers {
			st, err := tryStatus(t, s)
			p, _ := peerOf(st, m.servers[1-i].Name)
			if err != nil || p.Endpoint != before[i].Endpoint || p.State != "up" || len(p.Changes) != len(before[i].Changes) {
				t.Fatalf("a healthy path changed: %+v, was %+v: %v", p, before[i], err)
			}
		}
		if left := watched - time.Since(start); left > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	if gap := ping.gap(); gap > time.Second {
		t.Errorf("no answer for %v", gap)
	}
}

// A peer that comes back with another address is followed there by those whom it dials,
// though nobody was told.
func TestRoamedPeerIsFollowed(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	a := m.servers[0].Container("a", "10.210.0.10")
	b := m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	ping := startPing(t, a.Host, b.Addr.String())
	for i, stop := range []func(*lab.Process){(*lab.Process).Stop, (*lab.Process).Kill9} {
		stop(m.nodes[1])
		m.servers[1].Link(m.lan).Renumber(fmt.Sprintf("203.0.113.%d", 40+i))
		m.start(1)
		waitPeer(t, m.servers[0], "web2", 5*time.Second, func(p control.Peer) bool {
			return p.State == "up" && p.Endpoint == m.servers[1].Endpoint(m.lan)
		})
		ping.resumes(5 * time.Second)
	}
}

// A server that is known by its second address, and a peer to which only answers get
// through, as behind NAT: to packets from another address there is no question.
func TestAnswersComeFromTheAddressAsked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, prefix, second string }{
		{"IPv4", lanPrefix, "203.0.113.101"},
		{"IPv6", "2001:db8:1::/64", "2001:db8:1::101"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMeshOn(t, 0, c.prefix)
			m.addServer()
			m.addServer()
			web1, web2 := m.servers[0], m.servers[1]
			link := web1.Link(m.lan)
			bits := netip.MustParsePrefix(c.prefix).Bits()
			args := []string{"addr", "add", fmt.Sprintf("%s/%d", c.second, bits), "dev", link.Name}
			if bits > 32 {
				args = append(args, "nodad", "preferred_lft", "0") // never chosen by itself
			}
			web1.Run("ip", args...)
			sh(web1, strings.Replace(m.readme[0], "203.0.113.10", c.second, 1))
			m.copyEntries()
			m.addEntries(web1)
			m.addEntries(web2)
			web2.RunInput("add table inet nat\nadd chain inet nat input { type filter hook input priority -150; }\nadd rule inet nat input iifname "+web2.Link(m.lan).Name+" udp dport 51820 ct state new drop\n", "nft", "-f", "-")
			m.start(0) // before it is asked
			m.start(1)
			m.waitUp(m.servers...)
			a, b := web1.Container("a", "10.210.0.10"), web2.Container("b", "10.210.1.10")
			a.Run("ping", "-n", "-c3", "-i0.2", "-W2", b.Addr.String())
			if p := peer(t, web2, "web1"); p.Endpoint.Addr().String() != c.second {
				t.Errorf("web2 uses %v of web1, want %s", p.Endpoint, c.second)
			}
		})
	}
}
