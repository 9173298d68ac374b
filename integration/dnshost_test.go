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
)

const hostDNSLimit = 5 * time.Second // for programs of the host to find names of the mesh, or to do so again

// Programs on a server find names of the mesh by a real systemd-resolved, and all
// others as before. Whatever takes that away, it is put back; down leaves nothing.
func TestDNSHostResolved(t *testing.T) {
	t.Parallel()
	m := newBootedMesh(t, bootedKind{name: "resolved", prepare: `systemctl -q mask ufw firewalld; systemctl -q unmask systemd-resolved
		ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf`})
	web1 := m.web1
	outside := m.Server("outside").On(m.lan)
	startResolver(t, outside, "192.0.2.1")
	web1.WriteFile("/etc/systemd/resolved.conf.d/lab.conf", fmt.Sprintf("[Resolve]\nDNS=%v\nLLMNR=yes\nDNSOverTLS=no\n", outside.Addr(m.lan)))
	web1.Run("systemctl", "restart", "systemd-resolved")
	resolver := func() string { // without what it has found out since
		return web1.Run("sh", "-c", `resolvectl status | grep -v 'Current DNS Server' | sed 's/^ *//'; cd /run/systemd/resolve; grep -hv '^#' resolv.conf stub-resolv.conf; find netif -type f 2>/dev/null || :`)
	}
	before, host := resolver(), m.state()

	finds := func(what string) {
		t.Helper()
		start := time.Now()
		lab.Eventually(t, hostDNSLimit, "api.jiji is found "+what, func() error {
			out, err := web1.Try("getent", "hosts", "api.jiji")
			if err == nil && !strings.HasPrefix(out, "10.210.0.10 ") {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		})
		t.Logf("api.jiji is found %s after %v", what, time.Since(start).Round(time.Millisecond))
	}
	m.step("start", m.begin)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10", "--id", "0123456789abcdef", "--port", "8080")
	finds("after the start")
	t.Logf("resolvectl status jiji0:\n%s", web1.Run("resolvectl", "status", "jiji0"))

	management := status(t, m.web2).Server.ManagementIP
	for _, c := range []struct{ command, want string }{
		{"getent hosts api.jiji", "10.210.0.10"},
		{"getent -s dns hosts API.jiji", "10.210.0.10"}, // by the stub, as programs do that read /etc/resolv.conf
		{"getent hosts web2.node.jiji", management.String()},
		{"getent ahostsv4 web2.node.jiji", "10.210.1.1"},
		{"getent hosts 10.210.0.10", "0123456789ab.api.jiji"},
		{"getent hosts 10.210.1.1", "web2.node.jiji"},
		{"getent hosts " + management.String(), "web2.node.jiji"},
		{"resolvectl query api.jiji", "10.210.0.10"},
		{"resolvectl query 10.210.1.1", "web2.node.jiji"},
		{"resolvectl query --type=SRV _8080._tcp.api.jiji", "8080 0123456789ab.api.jiji"},
	} {
		if out, err := web1.Try("sh", "-c", c.command); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, want %q\n%s", c.command, err, c.want, out)
		}
	}

	// All others go their way, and never to us.
	asked := status(t, web1).DNS
	if !slices.Equal(asked.Upstreams, []netip.AddrPort{netip.AddrPortFrom(outside.Addr(m.lan), 53)}) {
		t.Errorf("upstreams %v", asked.Upstreams)
	}
	if asked.Host.By != "systemd-resolved" || asked.Host.Hint != "" || asked.Host.Configured != "auto" {
		t.Errorf("status says of the host %+v", asked.Host)
	}
	for _, c := range []struct {
		command string
		found   bool
	}{
		{"getent hosts www.example.org", true}, {"getent -s dns hosts www.example.org", true},
		{"getent hosts absent.example.org", false}, {"getent hosts api", false}, {"getent hosts 192.168.7.7", false},
	} {
		if out, err := web1.Try("sh", "-c", c.command); (err == nil) != c.found {
			t.Errorf("%s is found is %v, want %v\n%s", c.command, err == nil, c.found, out)
		}
	}
	if now := status(t, web1).DNS.Queries; now != asked.Queries {
		t.Errorf("names of others: %d questions came to us", now-asked.Queries)
	}
	if got := ask(t, m.a.Host, "www.example.org"); got != "NOERROR 192.0.2.1" {
		t.Errorf("a container is answered %s", got)
	}

	// Somebody takes it away.
	repaired := func() int { return strings.Count(m.journal(), "systemd-resolved had lost, of jiji0: ") }
	commands := []string{"resolvectl revert jiji0", "resolvectl domain jiji0 '~.'", "resolvectl dns jiji0 192.0.2.53", "resolvectl default-route jiji0 yes",
		"resolvectl llmnr jiji0 yes; touch /run/systemd/resolve/resolv.conf", // that is no change of servers, and seen at the next look
		"systemctl stop systemd-resolved; rm -rf /run/systemd/resolve/netif; systemctl start systemd-resolved"}
	for i, command := range commands {
		web1.Run("sh", "-ec", command)
		start := time.Now()
		lab.Eventually(t, hostDNSLimit, "it is put back after "+command, func() error {
			if n := repaired(); n != i+1 {
				return fmt.Errorf("%d repairs, want %d", n, i+1)
			}
			return nil
		})
		t.Logf("put back %v after %s", time.Since(start).Round(time.Millisecond), command)
		finds("then")
	}
	told := func(want int, why string) { // to a new jiji0, which tells how many there were
		t.Helper()
		lab.Eventually(t, hostDNSLimit, "systemd-resolved is told "+why, func() error {
			if n := strings.Count(m.journal(), "systemd-resolved asks 10.210.0.1:53 for jiji and the reverse zones of [10.210.0.0/16 fdcc::/16]"); n != want {
				return fmt.Errorf("%d times, want %d", n, want)
			}
			return nil
		})
		finds(why)
	}
	told(1, "still")
	web1.Run("systemctl", "restart", "systemd-resolved") // which remembers
	finds("after its restart")
	web1.Run("ip", "link", "delete", "jiji0")
	told(2, "of another jiji0")
	if n := repaired(); n != len(commands) {
		t.Errorf("%d repairs, want %d", n, len(commands))
	}
	lab.Eventually(t, meshLimit, "a fight is told of", func() error {
		web1.Run("resolvectl", "revert", "jiji0")
		if w := status(t, web1).Warnings; len(w) != 1 || !strings.Contains(w[0], "another program changes it again and again: systemd-resolved had lost, of jiji0: ") {
			return fmt.Errorf("warnings %q", w)
		}
		return nil
	})

	// The node ends, and is killed; systemd-resolved hangs.
	clean := func(what string) {
		t.Helper()
		lab.Eventually(t, hostDNSLimit, "systemd-resolved is as before, "+what, func() error {
			if now := resolver(); now != before {
				return fmt.Errorf("it says\n%s\nand said\n%s", now, before)
			}
			return nil
		})
	}
	web1.Run("systemctl", "kill", "-s", "KILL", "jiji-node")
	told(3, "after a kill")
	web1.Run("sh", "-c", "systemctl kill -s KILL jiji-node; systemctl stop jiji-node")
	clean("after a kill and no new start")
	web1.Run("systemctl", "kill", "-s", "STOP", "systemd-resolved")
	m.step("start beside one that hangs", func() { web1.Run("systemctl", "start", "jiji-node") })
	lab.Eventually(t, hostDNSLimit, "a warning", func() error {
		if st := status(t, web1); st.State != "ready" || len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "no answer within 2s") {
			return fmt.Errorf("state %s, warnings %q", st.State, st.Warnings)
		}
		return nil
	})
	web1.Run("systemctl", "kill", "-s", "CONT", "systemd-resolved")
	lab.Eventually(t, 2*hostDNSLimit, "no warning", func() error {
		if st := status(t, web1); len(st.Warnings) != 0 || st.DNS.Host.By != "systemd-resolved" {
			return fmt.Errorf("warnings %q, %+v", st.Warnings, st.DNS.Host)
		}
		return nil
	})
	finds("after it hung")

	web1.Run("jiji-node", "down")
	clean("after down")
	sameState(t, "down", host, m.state())

	web1.WriteFile("/etc/jiji/node.yaml", "dns-port: 5300\n")
	web1.Run("systemctl", "start", "jiji-node")
	finds("on another port")
	web1.Run("jiji-node", "down")

	web1.WriteFile("/etc/jiji/node.yaml", "dns-host: off\n")
	m.step("start, --dns-host off", m.begin)
	if out := web1.Run("resolvectl", "status", "jiji0"); strings.Contains(out, "10.210.0.1") || strings.Contains(out, "~jiji") {
		t.Errorf("--dns-host off:\n%s", out)
	}
	if h := status(t, web1).DNS.Host; h.Configured != "off" || h.By != "" || h.Hint != "" {
		t.Errorf("--dns-host off: status says %+v", h)
	}
}

// Without systemd-resolved the host is left alone, and what it takes is said. That
// works, also while no node runs.
func TestDNSHostWithoutResolved(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	outside := m.Server("outside").On(m.lan)
	startResolver(t, outside, "192.0.2.1")
	web1.SetResolvers(outside.Addr(m.lan))
	before := web1.ReadFile("/etc/resolv.conf")
	m.start(0)
	m.nodes[0].WaitLog("this server's own programs do not find names of the mesh", 5*time.Second)
	out := web1.Run("jiji-node", "status")
	_, hint, _ := strings.Cut(out, "  host dns   no: put `")
	line, _, found := strings.Cut(hint, "` above the others in /etc/resolv.conf")
	if st := status(t, web1); !found || line != "nameserver 10.210.0.1" || st.DNS.Host.Hint == "" || len(st.Warnings) != 0 {
		t.Fatalf("status says:\n%s", out)
	}
	if now := web1.ReadFile("/etc/resolv.conf"); now != before {
		t.Errorf("/etc/resolv.conf is %q, was %q", now, before)
	}

	web1.WriteFile("/etc/resolv.conf", line+"\n"+before)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
	is := func(name, want string) {
		t.Helper()
		start := time.Now()
		out, err := web1.Try("getent", "ahostsv4", name)
		if err != nil || !strings.HasPrefix(out, want+" ") || time.Since(start) > time.Second {
			t.Errorf("%s is %q after %v, %v", name, out, time.Since(start), err)
		}
	}
	is("api.jiji", "10.210.0.10")
	is("www.example.org", "192.0.2.1")
	m.nodes[0].Kill9()
	is("www.example.org", "192.0.2.1")
	m.start(0)
	lab.Eventually(t, hostDNSLimit, "status says so", func() error {
		if h := status(t, web1).DNS.Host; h.By != "/etc/resolv.conf" || h.Hint != "" {
			return fmt.Errorf("status says of the host %+v", h)
		}
		return nil
	})
	if log := m.nodes[0].Log(); strings.Contains(log, "names of the mesh") {
		t.Errorf("the log says:\n%s", log)
	}
}
