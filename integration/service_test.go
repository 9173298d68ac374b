//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

// A bootedKind is a machine that was booted with one kind of firewall, as its owner
// made it.
type bootedKind struct {
	name    string
	prepare string   // before it boots
	setUp   string   // once it has
	restart []string // commands after which its rules are as they were, without ours
	told    []string // what the log says of the firewall's manager
}

var bootedKinds = []bootedKind{
	{name: "iptables-nft", prepare: "systemctl -q mask ufw firewalld", setUp: ownIPTables},
	{name: "iptables-legacy", prepare: `systemctl -q mask ufw firewalld
		update-alternatives --quiet --set iptables /usr/sbin/iptables-legacy
		update-alternatives --quiet --set ip6tables /usr/sbin/ip6tables-legacy`, setUp: ownIPTables},
	{name: "nftables", prepare: `systemctl -q mask ufw firewalld; systemctl -q enable nftables
		rm /usr/sbin/xtables-*-multi
		printf '#!/usr/sbin/nft -f
			flush ruleset
			table inet filter {
				chain input {
					type filter hook input priority 0; policy drop
					iif lo accept
					ct state established,related accept
					meta l4proto ipv6-icmp accept
					tcp dport 22 accept
					udp dport 51820 accept
					iifname { jiji0, jiji-br0 } accept
				}
				chain forward { type filter hook forward priority 0; policy drop; iifname { jiji0, jiji-br0 } oifname { jiji0, jiji-br0 } accept; }
			}' >/etc/nftables.conf`, restart: []string{"systemctl restart nftables"}},
	{name: "ufw", prepare: "systemctl -q mask firewalld",
		setUp:   "ufw allow 22/tcp; ufw route allow in on jiji-br0 out on jiji0; ufw --force enable; systemctl restart ufw",
		restart: []string{"ufw reload", "systemctl restart ufw", "ufw disable; ufw --force enable"},
		told:    []string{"ufw: rule allow 51820/udp added", "ufw: rule route allow in on jiji0 out on jiji-br0 added"}},
	{name: "firewalld", prepare: "systemctl -q mask ufw", setUp: ownFirewalld,
		restart: []string{"firewall-cmd -q --reload", "firewall-cmd -q --complete-reload", "systemctl restart firewalld"},
		told:    toldFirewalld},
	{name: "firewalld-iptables", prepare: "systemctl -q mask ufw; sed -i s/^FirewallBackend=.*/FirewallBackend=iptables/ /etc/firewalld/firewalld.conf", setUp: ownFirewalld,
		restart: []string{"firewall-cmd -q --reload", "systemctl restart firewalld"},
		told:    toldFirewalld},
}

const (
	ownIPTables = `
		for t in iptables ip6tables; do
			$t -P INPUT DROP; $t -A INPUT -i lo -j ACCEPT; $t -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			$t -A INPUT -p tcp --dport 22 -j ACCEPT; $t -P FORWARD DROP
		done
		ip6tables -A INPUT -p ipv6-icmp -j ACCEPT`
	ownFirewalld = `for when in "" --permanent; do
			firewall-cmd -q $when --add-rich-rule='rule port port="22" protocol="tcp" accept'
		done`
)

var toldFirewalld = []string{
	"firewalld: interface jiji0 added to zone trusted", "firewalld: interface jiji-br0 added to zone trusted",
	"firewalld: port 51820/udp added to zone public",
}

// unitCommands are those of docs/operating.md, "As a service", from the clone on.
func unitCommands(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, _ := strings.Cut(string(text), "## As a service")
	_, block, _ := strings.Cut(chapter, "```sh\n")
	block, _, _ = strings.Cut(block, "\n```")
	lines := strings.Split(block, "\n")
	if len(lines) != 6 || lines[0] != "make build" || lines[5] != "journalctl -u jiji-node -f" {
		t.Fatalf("the commands of docs/operating.md, \"As a service\", have changed:\n%s", block)
	}
	return lines[1:5]
}

// A bootedMesh is two servers, the first of which was booted with systemd and has the
// service installed and enabled, by the commands of the documentation; the other one
// runs its node.
type bootedMesh struct {
	*mesh
	kind        bootedKind
	web1, web2  *lab.Server
	a, b        *lab.Container
	other, near *lab.Host // on another bridge of web1, and beside it on the LAN
}

func newBootedMesh(t *testing.T, kind bootedKind) *bootedMesh {
	t.Helper()
	m := &bootedMesh{mesh: newMesh(t, 2), kind: kind}
	m.Plain()
	m.web1, m.web2 = m.servers[0], m.servers[1]
	m.a, m.b = m.web1.Container("a", "10.210.0.10"), m.web2.Container("b", "10.210.1.10")
	m.other = m.web1.ContainerOn("docker0", "other", "172.17.0.2").Host
	m.near = m.Server("near").On(m.lan).Host
	m.near.Run("ip", "route", "add", "10.210.0.0/16", "via", m.web1.Addr(m.lan).String())
	bootWithUnit(t, m.web1, kind)
	m.start(1)
	return m
}

// bootWithUnit boots a server that has its identity, with the service installed and
// enabled.
func bootWithUnit(t *testing.T, s *lab.Server, kind bootedKind) {
	t.Helper()
	identity := s.Run("tar", "-C", "/var/lib", "-cf", "-", "jiji")
	s.Boot(kind.prepare)
	s.RunInput(identity, "tar", "-C", "/var/lib", "-xf", "-")
	s.Run("sh", "-ec", "sysctl -qw net.ipv4.ip_forward=0\n"+kind.setUp)
	copyInto(t, s, lab.PlainBinary(t), "/root/jiji-node/bin/jiji-node")
	copyInto(t, s, "../packaging/jiji-node.service", "/root/jiji-node/packaging/jiji-node.service")
	for _, line := range unitCommands(t)[:3] {
		s.Run("sh", "-c", "cd /root/jiji-node && "+line)
	}
	s.Run("systemctl", "-q", "enable", "jiji-node") // what enabling leaves is no part of what a node leaves
}

// begin starts the service, and waits until web2 is reached.
func (m *bootedMesh) begin() {
	m.t.Helper()
	m.web1.Run("sh", "-c", unitCommands(m.t)[3])
	m.works()
}

// works checks what has to work, and that nobody else gets in.
func (m *bootedMesh) works() {
	m.t.Helper()
	reach(m.t, m.a.Host, m.b.Addr.String(), meshLimit)
	reach(m.t, m.b.Host, m.a.Addr.String(), meshLimit)
	reach(m.t, m.web2.Host, status(m.t, m.web1).Server.ManagementIP.String(), meshLimit)
	if out := m.a.Run("dig", "+short", "+time=2", "web2.node.jiji"); strings.TrimSpace(out) != "10.210.1.1" {
		m.t.Errorf("web2.node.jiji is %q", out)
	}
	for _, h := range []*lab.Host{m.near, m.other} {
		for _, to := range []string{m.a.Addr.String(), m.b.Addr.String()} {
			if _, err := h.Try("ping", "-n", "-c1", "-W0.2", to); err == nil {
				m.t.Errorf("%s reaches %s", h.Name, to)
			}
		}
	}
}

func (m *bootedMesh) journal() string { return journalOf(m.web1) }

// journalOf is what the service of a booted server logged.
func journalOf(s *lab.Server) string {
	return s.Run("journalctl", "-q", "-u", "jiji-node", "--no-pager", "-o", "cat")
}

// state is wholeState, and what the firewall's manager says of itself.
func (m *bootedMesh) state() string {
	m.t.Helper()
	said := ""
	switch {
	case m.kind.name == "ufw":
		said = m.web1.Run("ufw", "show", "added")
	case m.firewalld():
		said = m.web1.Run("firewall-cmd", "--list-all-zones") + m.web1.Run("firewall-cmd", "--permanent", "--list-all-zones")
		m.web1.Run("firewall-cmd", "-q", "--reload") // it keeps chains for zones that nothing is in any more
	}
	return regexp.MustCompile(`(?m)^.*/etc/firewalld/zones.*\n`).ReplaceAllString(wholeState(m.web1), "") + said // it writes them anew, and keeps those before
}

func (m *bootedMesh) firewalld() bool { return strings.HasPrefix(m.kind.name, "firewalld") }

// The service under a booted systemd, with its hardening, on each kind of firewall, with
// the real ufw and firewalld: what it needs it may do, and it takes all back.
func TestService(t *testing.T) {
	for _, kind := range bootedKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			testService(t, newBootedMesh(t, kind))
		})
	}
}

func testService(t *testing.T, m *bootedMesh) {
	web1 := m.web1
	before := m.state()
	m.step("start", m.begin)
	if st := status(t, web1); st.State != "ready" || len(st.Warnings) != 0 {
		t.Errorf("state %s, warnings:\n%s", st.State, strings.Join(st.Warnings, "\n"))
	}
	log := m.journal()
	for _, line := range m.kind.told {
		if strings.Count(log, line) != 1 {
			t.Errorf("the journal does not say once %q:\n%s", line, log)
		}
	}
	if n := strings.Count(log, `change="ufw: `) + strings.Count(log, `change="firewalld: `); n != len(m.kind.told) {
		t.Errorf("the manager was told %d things, want %d:\n%s", n, len(m.kind.told), log)
	}
	if m.firewalld() { // what others told it for now is not lost
		web1.Run("firewall-cmd", "-q", "--zone=public", "--add-port=2222/tcp")
	}

	stream := startStream(t, m.a, m.b)
	m.step("restart", func() { web1.Run("systemctl", "restart", "jiji-node") })
	stream.goesOn(meshLimit)
	m.works()
	pid := strings.TrimSpace(web1.Run("systemctl", "show", "jiji-node", "-p", "MainPID", "--value"))
	web1.Run("kill", "-9", pid)
	lab.Eventually(t, meshLimit, "systemd starts it again", func() error {
		if now := strings.TrimSpace(web1.Run("systemctl", "show", "jiji-node", "-p", "MainPID", "--value")); now == pid || now == "0" {
			return fmt.Errorf("main process %s", now)
		}
		_, err := tryStatus(t, web1)
		return err
	})
	stream.goesOn(meshLimit)
	m.works()

	if m.firewalld() {
		if out := web1.Run("firewall-cmd", "--zone=public", "--list-ports"); strings.TrimSpace(out) != "2222/tcp" {
			t.Errorf("firewalld's open ports: %s", out)
		}
		web1.Run("firewall-cmd", "-q", "--zone=public", "--remove-port=2222/tcp")
	}

	// Through the running node, with the powers that it has.
	web1.Run("jiji-node", "down")
	lab.Eventually(t, 5*time.Second, "the unit has ended", func() error {
		if out, _ := web1.Try("systemctl", "is-active", "jiji-node"); strings.TrimSpace(out) != "inactive" {
			return fmt.Errorf("it is %s", out)
		}
		return nil
	})
	sameState(m.t, "down through the unit", before, m.state())

	// And without a running one, after a kill.
	m.begin()
	web1.Run("sh", "-c", "systemctl kill -s KILL jiji-node; systemctl stop jiji-node")
	web1.Run("jiji-node", "down")
	sameState(m.t, "down after a kill", before, m.state())
	// Nor does firewalld have to run: it would have all of it again when it starts.
	if m.firewalld() {
		m.begin()
		web1.Run("systemctl", "stop", "firewalld")
		out := web1.Run("jiji-node", "down")
		if !strings.Contains(out, "firewalld: interface jiji0 removed from zone trusted for good\n") {
			t.Errorf("down says:\n%s", out)
		}
		web1.Run("systemctl", "start", "firewalld")
		sameState(m.t, "down without firewalld", before, m.state())
	}
	for line := range strings.Lines(m.journal()) {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, "no known endpoint") || strings.Contains(line, "not as wanted") {
			t.Errorf("the journal has: %s", line)
		}
	}
}

// Show 4: whatever manages the firewall is restarted, and takes our rules away.
func TestShow4FirewallManagerRestarts(t *testing.T) { // not beside others: it takes times
	for _, kind := range bootedKinds {
		if len(kind.restart) == 0 {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			m := newBootedMesh(t, kind)
			m.begin()
			stream := startStream(t, m.a, m.b)
			whole := oursOf(m.web1)
			for _, command := range kind.restart {
				m.web1.Run("sh", "-ec", command)
				start := time.Now()
				lab.Eventually(t, heard, "our rules are back after "+command, func() error {
					if now := oursOf(m.web1); now != whole {
						return fmt.Errorf("they were\n%s\nand are\n%s", whole, now)
					}
					_, err := m.a.Try("ping", "-n", "-c1", "-W0.1", m.b.Addr.String())
					return err
				})
				t.Logf("%-40s %v", command, time.Since(start).Round(time.Millisecond))
				stream.goesOn(meshLimit)
				m.works()
			}
			if st := status(t, m.web1); st.State != "ready" || len(st.Warnings) != 0 {
				t.Errorf("state %s, warnings %q\n%s", st.State, st.Warnings, m.journal())
			}
		})
	}
}

// The service runs a Corrosion agent, with no more powers than it has itself; a restart, a
// kill and down end that, too.
func TestServiceRunsAnAgent(t *testing.T) {
	bin := agenttest.Binary(t)
	t.Parallel()
	m := newBootedMesh(t, bootedKinds[0])
	web1 := m.web1
	copyInto(t, web1, bin, "/usr/local/bin/corrosion")
	web1.SetResolvers(m.lan.Gateway())
	before := m.state()
	m.begin()
	web1.Run("jiji-node", "registry", "use", "corrosion")
	agent := ""
	runs := func() {
		t.Helper()
		waitRegistry(t, web1, time.Minute, func(r control.Registry) error {
			if r.Error != "" || r.State == "down" || r.Agent == nil || !r.Agent.Running {
				return fmt.Errorf("registry is %+v", r)
			}
			return nil
		})
		now := strings.Fields(web1.Run("pgrep", "-x", "corrosion"))
		if len(now) != 1 || now[0] == agent {
			t.Errorf("agents %q, the one before was %s", now, agent)
		}
		agent = now[0]
	}
	runs()
	stream := startStream(t, m.a, m.b)
	for _, command := range []string{"systemctl restart jiji-node", "kill -9 $(systemctl show jiji-node -p MainPID --value)"} {
		m.step(command, func() { web1.Run("sh", "-ec", command) })
		lab.Eventually(t, meshLimit, "the node is there again", func() error {
			_, err := tryStatus(t, web1)
			return err
		})
		runs()
		stream.goesOn(meshLimit)
	}
	m.step("down", func() { web1.Run("jiji-node", "down") })
	if out, err := web1.Try("pgrep", "-x", "corrosion"); err == nil {
		t.Errorf("agents that go on: %s", out)
	}
	sameState(t, "down", before, m.state())
}

// copyInto copies a file of this machine to a server, executable.
func copyInto(t *testing.T, s *lab.Server, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	s.WriteFile(to, string(data))
	s.Run("chmod", "755", to)
}

// A stream is a TCP connection between containers, over which bytes go both ways.
type stream struct {
	t    *testing.T
	a, b net.Conn
	n    byte
}

func startStream(t *testing.T, a, b *lab.Container) *stream {
	t.Helper()
	l := listenTCP(t, b.Host, b.Addr)
	s := &stream{t: t}
	c := dialTCP(t, a.Host, l.Addr().(*net.TCPAddr).AddrPort(), time.Minute)
	accepted, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	s.a, s.b = c, accepted
	s.goesOn(5 * time.Second)
	return s
}

// goesOn sends a byte there and one back.
func (s *stream) goesOn(limit time.Duration) {
	s.t.Helper()
	start := time.Now()
	for _, way := range [][2]net.Conn{{s.a, s.b}, {s.b, s.a}} {
		s.n++
		var got [1]byte
		way[0].SetDeadline(time.Now().Add(limit))
		way[1].SetDeadline(time.Now().Add(limit))
		if _, err := way[0].Write([]byte{s.n}); err != nil {
			s.t.Fatalf("send on the stream: %v", err)
		}
		if _, err := way[1].Read(got[:]); err != nil || got[0] != s.n {
			s.t.Fatalf("the stream had byte %d, then says %d: %v", s.n, got[0], err)
		}
	}
	s.t.Logf("the stream went on after %v", time.Since(start).Round(time.Millisecond))
}
