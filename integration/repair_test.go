//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/host/firewall"
)

const (
	heard   = time.Second // for a repair of what netlink tells, with the way to see it
	unheard = time.Minute // for a repair of the rest
)

// Show 4: somebody takes away a part of the network, and traffic goes on.
func TestShow4WhatSomebodyTakesAwayIsRepaired(t *testing.T) { // not beside others: it takes times
	m := newMesh(t, 2)
	m.Plain()
	web1 := m.servers[0]
	a, b := web1.Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	node := m.nodes[0]
	management := status(t, m.servers[1]).Server.ManagementIP.String()
	reach(t, a.Host, b.Addr.String(), meshLimit)
	reach(t, web1.Host, management, meshLimit)

	for _, c := range []struct {
		name, command string
		log           string // what is said of the repair
	}{
		{"the peers' routes", "ip route flush dev jiji0; ip -6 route flush dev jiji0", "route 10.210.1.0/24 dev jiji0 src 10.210.0.1 was gone"},
		{"the closed routes", "ip route del unreachable 10.210.0.0/16; ip -6 route del unreachable fdcc::/16 dev lo", "route unreachable fdcc::/16 was gone"},
		{"forwarding", "sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward set to 1, was 0"},
		{"forwarding of one interface", "sysctl -qw net.ipv4.conf.all.forwarding=0", "net.ipv4.ip_forward set to 1, was 0"},
		{"forwarding of the tunnel", "sysctl -qw net.ipv4.conf.jiji0.forwarding=0", "net.ipv4.conf.jiji0.forwarding set to 1, was 0"},
		{"IPv6 of the tunnel", "sysctl -qw net.ipv6.conf.jiji0.disable_ipv6=1", "interface jiji0 had lost: IPv6"},
		{"the addresses", "ip addr flush dev jiji0", "interface jiji0 had lost: address 10.210.0.1/32"},
		{"the link's state", "ip link set jiji0 down", "interface jiji0 had lost: up"},
		{"the MTU", "ip link set jiji0 mtu 1300", "interface jiji0 had lost: mtu 1440"},
		{"the interface", "ip link delete jiji0", "interface jiji0 was gone, made again"},
		{"its name", "for i in 1 2 3 4 5; do ip link set jiji0 down && ip link set jiji0 name other0 && break; done; ip link set other0 up || :", "interface jiji0 was gone, made again"},
		{"the namespace", "unshare -n sleep 1 >/dev/null 2>&1 & sleep 0.1; ip link set jiji0 netns $!", "interface jiji0 was gone, made again"},
		{"the interface again", "ip link delete jiji0", "interface jiji0 was gone, made again"},
		{"all rules of nftables", "nft flush ruleset", "nftables: table inet jiji"},
		{"all rules of iptables", "iptables -F; iptables -X", "FORWARD"},
	} {
		before := strings.Count(node.Log(), c.log)
		web1.Run("sh", "-c", c.command)
		start := time.Now()
		lab.Eventually(t, heard, c.name+" is repaired", func() error {
			if got := strings.Count(node.Log(), c.log); got <= before {
				return fmt.Errorf("the log does not say %q", c.log)
			}
			if _, err := a.Try("ping", "-n", "-c1", "-W0.1", b.Addr.String()); err != nil {
				return err
			}
			_, err := web1.Try("ping", "-n", "-c1", "-W0.1", management)
			return err
		})
		took := time.Since(start)
		t.Logf("%-28s %v", c.name, took.Round(time.Millisecond))
		// The names go on, too, and so do wg(8) and the monitor.
		if out := a.Run("dig", "+short", "+time=1", "web2.node.jiji"); strings.TrimSpace(out) != "10.210.1.1" {
			t.Errorf("%s: web2.node.jiji is %q", c.name, out)
		}
		if out := web1.Run("wg", "show", "jiji0", "peers"); strings.Count(out, "\n") != 1 {
			t.Errorf("%s: wg show jiji0 peers: %s", c.name, out)
		}
	}
	if out := web1.Run("sh", "-c", "ip route show | grep -c jiji0"); strings.TrimSpace(out) != "1" {
		t.Errorf("%s routes over jiji0, want one for the peer", strings.TrimSpace(out))
	}
	if out, err := web1.Try("ip", "link", "show", "other0"); err == nil {
		t.Errorf("what was renamed is there: %s", out)
	}
	if st := status(t, web1); st.State != "ready" || len(st.Warnings) != 0 || st.PID != status(t, web1).PID {
		t.Errorf("state %s, warnings %q", st.State, st.Warnings)
	}
	m.waitUp(m.servers...)
}

// Show 4: an uplink gets another name.
func TestShow4UplinkRenamed(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	a, b := web1.Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	m.startAll()
	reach(t, a.Host, b.Addr.String(), meshLimit)
	gateway := m.lan.Gateway().String()
	web1.Run("sh", "-c", "ip link set eth0 down && ip link set eth0 name wan0 && ip link set wan0 up && ip route add default via "+gateway)
	start := time.Now()
	reach(t, a.Host, b.Addr.String(), unheard)
	t.Logf("traffic goes on %v after the rename", time.Since(start).Round(time.Millisecond))
	lab.Eventually(t, unheard, "the firewall knows the new name", func() error {
		if out, err := web1.Try("nft", "list", "table", "inet", "jiji"); err != nil || !strings.Contains(out, `"wan0"`) || strings.Contains(out, `"eth0"`) {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if st := status(t, web1); st.State != "ready" || len(st.Warnings) != 0 {
		t.Errorf("state %s, warnings %q", st.State, st.Warnings)
	}
}

// Show 4: another program fights over a route. That ends in one warning, which names it.
func TestShow4AFightEndsInOneWarning(t *testing.T) { // not beside others: it takes times
	m := newMesh(t, 2)
	m.Plain()
	web1 := m.servers[0]
	m.startAll()
	fighter := web1.Spawn("sh", "-c", "while :; do ip route del unreachable 10.210.0.0/16 2>/dev/null; sleep 0.05; done")
	const warning = "another program changes this again and again"
	m.nodes[0].WaitLog(warning, 15*time.Second)
	time.Sleep(3 * time.Second) // many of its rounds
	log := m.nodes[0].Log()
	if repairs := strings.Count(log, "route unreachable 10.210.0.0/16 was gone"); repairs > 10 || strings.Count(log, warning) != 1 {
		t.Errorf("%d lines about it, want 9 repairs and one warning:\n%s", repairs, log)
	}
	st := status(t, web1)
	if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "another program changes it again and again: route unreachable 10.210.0.0/16") {
		t.Errorf("warnings %q", st.Warnings)
	}
	// What nobody fights over is repaired as before.
	web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=0")
	lab.Eventually(t, heard, "forwarding is repaired", func() error {
		if got := strings.TrimSpace(web1.Run("sysctl", "-n", "net.ipv4.ip_forward")); got != "1" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	fighter.Kill9()
	lab.Eventually(t, unheard+5*time.Second, "the route is back once the fight is over", func() error {
		if out := web1.Run("ip", "route", "show", "10.210.0.0/16"); !strings.Contains(out, "unreachable") {
			return fmt.Errorf("ip route show: %q", out)
		}
		return nil
	})
}

// Show 4 on each kind of firewall: rules that somebody flushes are back within a second
// where netlink tells, and within a minute elsewhere.
func TestShow4RulesOnEachFirewall(t *testing.T) {
	for _, kind := range firewallKinds {
		t.Run(kind.backend.String(), func(t *testing.T) {
			t.Parallel() // of all that is told here a minute is enough, but for what is asked for below
			m := newMesh(t, 2)
			m.Plain()
			web1 := m.servers[0]
			a, b := web1.Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
			web1.Run("sh", "-ec", "true;"+kind.setUp)
			web1.Run("sh", "-ec", kind.engine)
			m.startAll()
			reach(t, a.Host, b.Addr.String(), meshLimit)
			lab.Eventually(t, meshLimit, "the firewall is at rest", func() error { // the bridge came before the node
				if st := status(t, web1); len(st.Warnings) > 0 {
					return fmt.Errorf("warnings %q", st.Warnings)
				}
				return nil
			})
			whole := oursOf(web1)
			repaired := func(name, command string, limit time.Duration) (took time.Duration) {
				t.Helper()
				web1.Run("sh", "-ec", command)
				start := time.Now()
				lab.Eventually(t, limit, name+" are back", func() error {
					if now := oursOf(web1); now != whole {
						return fmt.Errorf("they were\n%s\nand are\n%s", whole, now)
					}
					return nil
				})
				took = time.Since(start)
				t.Logf("%-40s %v", name, took.Round(time.Millisecond))
				reach(t, a.Host, b.Addr.String(), heard)
				return took
			}
			repaired("the rules in nftables", "nft delete table inet jiji", 2*heard) // beside other tests
			if kind.backend == firewall.NFTables {
				repaired("all rules", "nft flush ruleset", 2*heard)
				return
			}
			const flush = "for t in iptables ip6tables; do $t-save | grep -v JIJI- | $t-restore; done"
			if kind.backend == firewall.IPTablesNFT {
				repaired("the rules in iptables", flush, 2*heard)
				return
			}
			for range 3 { // until it is not by chance that they are looked at
				if repaired("the rules in legacy iptables", flush, unheard) > heard {
					return
				}
			}
		})
	}
}

// oursOf are a server's rules with our names, in their order.
func oursOf(s *lab.Server) string {
	return s.Run("sh", "-c", "{ nft -s list table inet jiji; { iptables-save; ip6tables-save; } | grep JIJI-; } 2>/dev/null; :")
}

// Show 4: another program fights over a rule of the firewall. That ends in one warning,
// which names the rule, and what the program leaves alone goes on protecting.
func TestShow4AFightOverARule(t *testing.T) {
	for _, kind := range firewallKinds[:1] { // of the others, nothing tells at once, or the fight is over the same table
		t.Run(kind.backend.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, 2)
			web1 := m.servers[0]
			web1.Run("sh", "-ec", kind.engine)
			m.startAll()
			fighter := web1.Spawn("sh", "-c", "while :; do iptables -D FORWARD -i jiji0 -j JIJI-FORWARD 2>/dev/null; sleep 0.05; done")
			const (
				warning = "another program changes this again and again"
				rule    = "iptables filter: rule -A FORWARD -i jiji0 -j JIJI-FORWARD was not there: added"
			)
			m.nodes[0].WaitLog(warning, 15*time.Second)
			time.Sleep(3 * time.Second) // many of its rounds
			log := m.nodes[0].Log()
			if strings.Count(log, rule) != 10 || strings.Count(log, warning) != 1 { // 9 repairs, and the warning
				t.Errorf("%d lines about the rule, want 10, and %d warnings:\n%s", strings.Count(log, rule), strings.Count(log, warning), log)
			}
			if st := status(t, web1); len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "another program changes it again and again: "+rule) {
				t.Errorf("warnings %q", st.Warnings)
			}
			fighter.Kill9()
			lab.Eventually(t, unheard+5*time.Second, "the rule is back once the fight is over", func() error {
				_, err := web1.Try("iptables", "-C", "FORWARD", "-i", "jiji0", "-j", "JIJI-FORWARD")
				return err
			})
		})
	}
}
