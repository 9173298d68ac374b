//go:build linux

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// wholeState is all that a node may touch of a host, normalised: routes, rules of
// routing, addresses, sysctls of IPv4, /etc, sockets, and the firewall's rules.
func wholeState(s *lab.Server) string {
	out := s.Run("sh", "-c", `
		for f in -4 -6; do ip $f rule show; ip $f route show table all; done | grep -v '^multicast'
		ip -o addr show | sed 's/  *valid_lft.*//'
		cd /proc/sys/net/ipv4 && grep -rs . ip_forward conf | grep -v '/far' | sort
		find /etc -xdev -printf '%p %y %m %l\n' | sort
		find /etc -xdev -type f -size -64k -print0 | sort -z | xargs -0 md5sum
		find /run /var/run/wireguard -name '*.sock' 2>/dev/null | sort
		nft list ruleset
		for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do command -v $p-save >/dev/null && $p-save 2>/dev/null; done
		:`)
	// Dates and warnings, and the tables and chains that come with a mere look at them.
	out = regexp.MustCompile(`(?m)^(#.*|\*.*|COMMIT|:[A-Z]+ ACCEPT.*|table ip6? (raw|filter|mangle|nat) \{|\s*chain [A-Z]+ \{|\s*type .* policy accept;|\s*\}|)\n`).ReplaceAllString(out, "")
	return regexp.MustCompile(`\[\d+:\d+\]|expires \S+|counter packets \d+ bytes \d+`).ReplaceAllString(out, "")
}

// sameState fails with the lines that differ.
func sameState(t *testing.T, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	var diff strings.Builder
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			diff.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) {
			diff.WriteString("+ " + line)
		}
	}
	t.Fatalf("%s: the host is not as before:\n%s", what, diff.String())
}

// Show 5: run and down, again and again, with kills in between, on each kind of firewall
// with an engine's rules.
func TestShow5RunAndDownFiftyTimes(t *testing.T) {
	for _, kind := range firewallKinds {
		t.Run(kind.backend.String(), func(t *testing.T) {
			t.Parallel()
			runAndDown(t, kind)
		})
	}
}

func runAndDown(t *testing.T, kind firewallKind) {
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := newMesh(t, 2)
	web1 := m.servers[0]
	a, b := web1.Container("a", "10.210.0.10"), m.servers[1].Container("b", "10.210.1.10")
	web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.eth0.forwarding=1")
	web1.Run("sh", "-ec", kind.setUp)
	web1.Run("sh", "-ec", kind.engine)
	m.start(1)
	web1.Run("rm", "-f", "/etc/sysctl.d/90-jiji.conf") // this machine may have one
	before := wholeState(web1)

	for i := range rounds {
		for range random.IntN(3) { // starts that do not get far
			p := m.launch(0)
			time.Sleep(time.Duration(random.Int64N(int64(400 * time.Millisecond))))
			p.Kill9()
		}
		how := []string{"through the running node", "after a kill", "during a start", "killed itself"}[i%4]
		switch how {
		case "through the running node":
			m.start(0)
			if i == 0 {
				reach(t, a.Host, b.Addr.String(), killedLimit)
			}
			web1.Run("jiji-node", "down")
			if code := m.nodes[0].Wait(5 * time.Second); code != 0 {
				t.Fatalf("the node ended with %d\n%s", code, m.nodes[0].Log())
			}
		case "after a kill":
			m.start(0)
			m.nodes[0].Kill9()
			web1.Run("jiji-node", "down")
		case "during a start":
			p := m.launch(0)
			time.Sleep(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
			p.Kill9()
			web1.Run("jiji-node", "down")
		case "killed itself":
			m.start(0).Stop()
			web1.Run("sh", "-c", fmt.Sprintf("jiji-node down & sleep 0.%03d; kill -9 $!; wait; :", random.IntN(40)))
			web1.Run("jiji-node", "down")
		}
		sameState(t, fmt.Sprintf("round %d, down %s", i+1, how), before, wholeState(web1))
		if i%10 == 0 {
			if out := web1.Run("jiji-node", "down"); out != "nothing to take back\n" {
				t.Fatalf("down once more: %s", out)
			}
		}
	}
	m.start(0) // and it comes up again as it was
	reach(t, a.Host, b.Addr.String(), killedLimit)
}

// Show 5: what someone else changed meanwhile stays.
func TestShow5DownKeepsWhatSomebodyElseChanged(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	web1.Run("sysctl", "-qw", "net.ipv4.ip_forward=0")
	web1.Run("rm", "-f", "/etc/sysctl.d/90-jiji.conf") // this machine may have one
	web1.Run("sh", "-ec", iptablesEngine)
	m.start(0)
	web1.Run("sh", "-ec", `
		iptables -I DOCKER-USER -s 198.51.100.7 -j DROP; iptables -A FORWARD -s 198.51.100.8 -j DROP; iptables -D FORWARD -i jiji-br0 -j ACCEPT
		nft add table inet theirs; nft 'add chain inet theirs in { type filter hook input priority 0; }'; nft add rule inet theirs in ip saddr 198.51.100.9 drop
		ip addr add 192.0.2.77/32 dev eth0`)
	m.nodes[0].Stop()
	web1.WriteFile("/etc/sysctl.d/90-jiji.conf", "net.ipv4.ip_forward = 1\nnet.ipv4.tcp_ecn = 1\n")
	web1.Run("ip", "route", "add", "10.99.0.0/16", "via", "203.0.113.14")
	web1.Run("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=1")

	var u control.Undone
	if err := json.Unmarshal([]byte(web1.Run("jiji-node", "down", "--json")), &u); err != nil {
		t.Fatal(err)
	}
	if len(u.Kept) != 1 || u.Kept[0] != "/etc/sysctl.d/90-jiji.conf was changed by somebody else" {
		t.Errorf("kept %q", u.Kept)
	}
	if got := web1.ReadFile("/etc/sysctl.d/90-jiji.conf"); !strings.Contains(got, "tcp_ecn") {
		t.Errorf("the file is %q", got)
	}
	if out := web1.Run("ip", "route", "show", "10.99.0.0/16"); !strings.Contains(out, "via 203.0.113.14") {
		t.Errorf("the route is gone: %q", out)
	}
	rules := web1.Run("sh", "-c", "iptables-save; nft list table inet theirs; ip addr show eth0")
	for text, want := range map[string]bool{"-A DOCKER-USER -s 198.51.100.7/32 -j DROP": true, "-A FORWARD -s 198.51.100.8/32 -j DROP": true, "-A FORWARD -i jiji-br0 -j ACCEPT": false,
		"ip saddr 198.51.100.9 drop": true, "inet 192.0.2.77/32": true, "-A FORWARD -j DOCKER-USER": true, "JIJI": false} {
		if strings.Contains(rules, text) != want {
			t.Errorf("%q is there is %v, want %v:\n%s", text, !want, want, rules)
		}
	}
	if got := strings.Fields(web1.Run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.all.accept_redirects")); got[0] != "0" || got[1] != "1" {
		t.Errorf("sysctls %q", got)
	}
}

// SIGTERM leaves what protects the mesh, down takes it away, and uninstall the state.
func TestStopDownUninstall(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	web1.Run("rm", "-f", "/etc/sysctl.d/90-jiji.conf") // this machine may have one
	before := wholeState(web1)
	m.start(0)
	m.nodes[0].Stop()
	checkNothingLeft(t, web1)
	for _, family := range []string{"-4", "-6"} {
		if out := web1.Run("ip", family, "route", "show", "proto", "86"); strings.Count(out, "unreachable") != 1 {
			t.Errorf("after SIGTERM ip %s route show proto 86: %q", family, out)
		}
	}
	if _, err := web1.Try("jiji-node", "uninstall"); codeOf(err) != 2 || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("uninstall without a terminal: %v", err)
	}
	m.start(0)
	out := web1.Run("jiji-node", "uninstall", "--yes")
	if code := m.nodes[0].Wait(5 * time.Second); code != 0 {
		t.Errorf("the node ended with %d", code)
	}
	if !strings.Contains(out, "/var/lib/jiji/private.key removed") || !strings.Contains(out, "interface jiji0 removed") {
		t.Errorf("uninstall says:\n%s", out)
	}
	if out, err := web1.Try("ls", "-A", "/var/lib/jiji"); err == nil {
		t.Errorf("the state directory has: %q", out)
	}
	sameState(t, "uninstall", before, wholeState(web1))
	if out := web1.Run("jiji-node", "uninstall"); out != "nothing to take back\n" { // nothing is deleted, so nothing is asked
		t.Errorf("uninstall once more: %q", out)
	}

	// A damaged journal: what can be found goes, what cannot is said, once.
	m2 := m.start(0)
	m2.Stop()
	web1.WriteFile("/var/lib/jiji/undo.json", "{")
	if p := web1.Start("run"); p.Wait(10*time.Second) != 1 || !strings.Contains(p.Log(), "undo.json is damaged") {
		t.Errorf("run says:\n%s", p.Log())
	}
	if out, err := web1.Try("jiji-node", "down"); codeOf(err) != 1 || !strings.Contains(err.Error(), "undo.json is damaged") || !strings.Contains(out, "route unreachable 10.210.0.0/16 removed") {
		t.Errorf("down with a damaged journal: %v\n%s", err, out)
	}
	if out := web1.Run("jiji-node", "down"); out != "nothing to take back\n" {
		t.Errorf("down after that: %q", out)
	}
}

func codeOf(err error) int {
	if e, ok := err.(*lab.CommandError); ok {
		return e.Code
	}
	return 0
}

// A node that is killed as it starts a program may leave its socket with that for a
// moment: who connects then is cut off, and finds nobody after it.
func TestDownWhenTheNodeDiesAsItIsAsked(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	m.start(0)
	m.nodes[0].Kill9()
	dying := web1.Spawn("python3", "-c", `
import os, socket, sys
path = "/run/jiji/node.sock"
os.path.exists(path) and os.unlink(path)
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen()
print("listening", file=sys.stderr, flush=True)
c, _ = s.accept()
c.recv(1)
s.close()
c.close() # with what was not read: a reset
`)
	lab.Eventually(t, 5*time.Second, "somebody listens", func() error {
		if !strings.Contains(dying.Log(), "listening") {
			return errors.New(dying.Log())
		}
		return nil
	})
	if out := web1.Run("jiji-node", "down"); !strings.Contains(out, "route") {
		t.Errorf("down took nothing back:\n%s", out)
	}
	if code := dying.Wait(5 * time.Second); code != 0 {
		t.Errorf("nobody was cut off: %d\n%s", code, dying.Log())
	}
}
