//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// A hostMesh is two servers with a container each, of which web2 runs its node.
type hostMesh struct {
	*mesh
	web1, web2 *lab.Server
	a, b       *lab.Container
}

func newHostMesh(t *testing.T, kind firewallKind) *hostMesh {
	t.Helper()
	t.Parallel()
	m := newMesh(t, 2)
	h := &hostMesh{mesh: m, web1: m.servers[0], web2: m.servers[1]}
	h.a, h.b = h.web1.Container("a", "10.210.0.10"), h.web2.Container("b", "10.210.1.10")
	h.web1.Run("rm", "-f", "/etc/sysctl.d/90-jiji.conf") // this machine may have one
	h.web1.Run("sh", "-ec", "true;"+kind.setUp)
	h.web1.Run("sh", "-ec", kind.engine)
	m.start(1)
	return h
}

func (h *hostMesh) works() {
	h.t.Helper()
	reach(h.t, h.a.Host, h.b.Addr.String(), meshLimit)
	reach(h.t, h.b.Host, h.a.Addr.String(), meshLimit)
}

// warns waits until status of web1 has one warning for each of parts, with that in it.
func (h *hostMesh) warns(limit time.Duration, parts ...string) {
	h.t.Helper()
	lab.Eventually(h.t, limit, fmt.Sprintf("%d warnings", len(parts)), func() error {
		st, err := tryStatus(h.t, h.web1)
		if err != nil {
			return err
		}
		for i, w := range st.Warnings {
			if len(st.Warnings) != len(parts) || !strings.Contains(w, parts[i]) || strings.Contains(w, "\n") {
				return fmt.Errorf("have %q, want %q", st.Warnings, parts)
			}
		}
		if len(st.Warnings) != len(parts) {
			return fmt.Errorf("have %q, want %q", st.Warnings, parts)
		}
		return nil
	})
}

// Another program holds the lock of legacy iptables: a start does not wait for it for
// long, says so in one line, and goes on when it is free; down waits for it.
func TestLockOfIPTablesIsHeld(t *testing.T) {
	h := newHostMesh(t, firewallKinds[1])
	before := wholeState(h.web1)
	hold := func() *lab.Process {
		p := h.web1.Spawn("flock", "/run/xtables.lock", "sh", "-c", "echo held; exec sleep 60")
		p.WaitLog("held", 5*time.Second)
		return p
	}
	free := func(p *lab.Process) { // flock passes no signals on
		h.web1.Run("sh", "-c", "kill $(pgrep -f '^sleep 60')")
		p.Wait(5 * time.Second)
	}
	holder := hold()
	start := time.Now()
	p := h.launch(0)
	p.WaitReady()
	if took := time.Since(start); took > 12*time.Second {
		t.Errorf("ready after %v, want one wait of 5 s", took)
	}
	h.warns(15*time.Second, "change iptables's tables: another program holds the lock of iptables for more than 5s: end the one that `fuser -v /run/xtables.lock` shows")
	free(holder)
	h.warns(25 * time.Second)
	h.works()
	if n := strings.Count(p.Log(), "the firewall is not as wanted"); n != 1 {
		t.Errorf("the log says it %d times, want once:\n%s", n, p.Log())
	}

	// The service manager hears of a node that waits.
	p.Stop()
	h.web1.Setenv("WATCHDOG_USEC", "600000")
	p = h.start(0)
	holder = hold()
	down := h.web1.Spawn("sh", "-c", "jiji-node down")
	p.WaitLog("going down", 5*time.Second)
	beats := p.Notified("WATCHDOG=1")
	time.Sleep(2 * time.Second) // it waits
	if n := p.Notified("WATCHDOG=1") - beats; n < 5 {
		t.Errorf("it told the watchdog %d times within 2 s, want 10", n)
	}
	free(holder)
	if code := down.Wait(20 * time.Second); code != 0 {
		t.Errorf("down ended with %d:\n%s", code, down.Log())
	}
	p.Wait(5 * time.Second)
	sameState(t, "down while the lock was held", before, wholeState(h.web1))
}

// What is in place of the undo journal may be anything. A start says what to do, down
// does it, touches nothing that no node can have changed, and then all is well.
func TestUndoJournalIsHostile(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	before := wholeState(h.web1)
	for _, c := range []struct{ name, make, says string }{
		{"huge", "head -c 17000000 /dev/zero >$undo", "has 17000000 bytes, want at most"},
		{"empty", ": >$undo", "unexpected end of JSON input"},
		{"cut off", "head -c 100 $undo >/run/cut; mv /run/cut $undo", "unexpected end of JSON input"},
		{"a directory", "rm $undo; mkdir $undo; touch $undo/file", "is a directory, want a regular file"},
		{"a pipe", "rm $undo; mkfifo $undo", "is a named pipe, want a regular file"},
		{"a link", "rm $undo; ln -s /etc/passwd $undo", "invalid character"},
		{"paths", `echo '{"changes":[{"kind":"sysctl","name":"net/ipv4/ip_forward","was":{"text":"0"},"set":[{"text":"1"}]},
			{"kind":"sysctl","name":"../../run/victim","was":{"text":"gone"},"set":[{"text":"x"}]}]}' >$undo`, `change 2: no version changes the sysctl "../../run/victim"`},
		{"files", `echo '{"changes":[{"kind":"file","name":"/etc/../run/victim","set":[{"text":"x"}]}]}' >$undo`, `change 1: no version changes the file "/etc/../run/victim"`},
		{"directories", `echo '{"changes":[{"kind":"directory","name":"/run/dir"}]}' >$undo`, `change 1: no version changes the directory "/run/dir"`},
	} {
		h.start(0)
		h.nodes[0].Kill9()
		h.web1.Run("sh", "-ec", "printf x >/run/victim; mkdir -p /run/dir; undo=/var/lib/jiji/undo.json; "+c.make)
		p := h.launch(0)
		if code := p.Wait(10 * time.Second); code != 1 || !strings.Contains(p.Log(), c.says) || !strings.Contains(p.Log(), "run `jiji-node down`") {
			t.Errorf("%s: run ends with %d:\n%s", c.name, code, p.Log())
		}
		out, err := h.web1.Try("jiji-node", "down")
		if codeOf(err) != 1 || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "/var/lib/jiji/undo.json.damaged now") || !strings.Contains(out, "route unreachable 10.210.0.0/16 removed") {
			t.Errorf("%s: down says %v:\n%s", c.name, err, out)
		}
		if out := h.web1.Run("sh", "-c", "cat /run/victim; ls -d /run/dir"); out != "x/run/dir\n" {
			t.Errorf("%s: what is not ours is %q", c.name, out)
		}
		if out := h.web1.Run("jiji-node", "down"); out != "nothing to take back\n" {
			t.Errorf("%s: down again says %s", c.name, out)
		}
		h.web1.Run("sh", "-c", "rm -rf /run/victim /run/dir /var/lib/jiji/undo.json.damaged; sysctl -qw net.ipv4.ip_forward=0") // which is kept: what it was is not known
		h.web1.Run("sh", "-c", "find /run -name '*.sock' -delete")
	}
	h.start(0)
	h.works()
	h.web1.Run("jiji-node", "down")
	h.nodes[0].Wait(5 * time.Second)
	sameState(t, "down in the end", before, wholeState(h.web1))
}

// Nothing can be written to /etc: forwarding lasts until the next boot, and down has
// nothing to take back there.
func TestEtcIsReadOnly(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	h.web1.Run("sh", "-ec", "mount --bind /etc /etc; mount -o remount,ro,bind /etc")
	before := wholeState(h.web1)
	p := h.start(0)
	h.works()
	h.warns(5 * time.Second)
	if !strings.Contains(p.Log(), "net.ipv4.ip_forward=1 lasts until the next boot") {
		t.Errorf("the log does not say so:\n%s", p.Log())
	}
	h.web1.Run("jiji-node", "down")
	p.Wait(5 * time.Second)
	sameState(t, "down", before, wholeState(h.web1))
}

// Uplinks have names that rules of iptables cannot have in them.
func TestUplinksWithOddNames(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	h.web1.Run("sh", "-ec", `ip link add 'wan+' type veth peer name 'e"x!y'
		for i in 'wan+' 'e"x!y'; do ip link set "$i" up; done
		ip addr add 192.0.2.200/24 dev 'wan+'; ip addr add 192.0.99.200/24 dev 'e"x!y'`)
	before := wholeState(h.web1)
	h.start(0)
	h.works()
	h.warns(10 * time.Second)
	if out := h.web1.Run("nft", "list", "table", "inet", "jiji"); strings.Count(out, `iifname "wan+" ip daddr 10.210.0.1`) != 2 || strings.Count(out, `iifname "eth0" ip daddr 10.210.0.1`) != 2 {
		t.Errorf("DNS is not closed on each uplink:\n%s", out)
	}
	h.web1.Run("jiji-node", "down")
	h.nodes[0].Wait(5 * time.Second)
	sameState(t, "down", before, wholeState(h.web1))
}

// A rule of routing leads packets for the mesh elsewhere: none leaves, and it is named
// until somebody takes it away.
func TestRoutingRuleLeadsElsewhere(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	h.start(0)
	h.works()
	inClear := h.web1.Link(h.lan).Capture("net 10.210.0.0/16 or net fdcc::/16")
	h.web1.Run("sh", "-ec", "ip route add default via "+h.lan.Gateway().String()+" table 100; ip rule add to 10.210.0.0/16 lookup 100")
	h.warns(5*time.Second, "packets for 10.210.1.0/24 leave by eth0 and not by jiji0, by table 100: take away the rule that leads there, which `ip rule` shows")
	for _, from := range []*lab.Host{h.a.Host, h.web1.Host} {
		if _, err := from.Try("ping", "-n", "-c2", "-i0.2", "-W0.5", h.b.Addr.String()); err == nil {
			t.Errorf("%s reaches %v", from.Name, h.b.Addr)
		}
	}
	if n := inClear.Count(); n > 0 {
		t.Errorf("%d packets left in the clear:\n%s", n, inClear)
	}
	h.web1.Run("ip", "rule", "del", "to", "10.210.0.0/16", "lookup", "100")
	h.warns(5 * time.Second)
	h.works()
}

// An uplink comes and goes, all the time: that is no reason to write the firewall anew,
// or to fill the log.
func TestUplinkFlaps(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	h.start(0)
	h.works()
	h.warns(10 * time.Second)
	from := len(h.nodes[0].Log())
	h.web1.Run("sh", "-c", "for i in $(seq 40); do ip link set eth0 down; sleep 0.05; ip link set eth0 up; sleep 0.05; done; ip route replace default via "+h.lan.Gateway().String())
	h.works()
	h.warns(10 * time.Second)
	if log := h.nodes[0].Log()[from:]; strings.Count(log, "\n") > 20 || strings.Contains(log, "JIJI-") {
		t.Errorf("the log has %d lines more:\n%s", strings.Count(log, "\n"), log)
	}
}

// One variant of iptables is installed and does not work: the rest guards the mesh, the
// fault is named, and down takes back what there is.
func TestIPTablesIsBroken(t *testing.T) {
	for name, script := range map[string]string{
		"fails":                 "echo no luck >&2; exit 3",
		"prints without end":    "exec cat /dev/zero",
		"prints what is no use": `echo '*filter'; echo -A; echo :; echo '-A x'; exit 0`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostMesh(t, firewallKinds[0])
			before := wholeState(h.web1)
			h.web1.WriteFile("/run/stub", "#!/bin/sh\n"+script+"\n")
			h.web1.Run("sh", "-ec", "chmod 755 /run/stub; mount --bind /run/stub /usr/sbin/xtables-legacy-multi")
			h.start(0)
			h.works()
			says := map[string]string{"fails": "/usr/sbin/iptables-legacy-save: exit status 3: no luck", "prints without end": "/usr/sbin/iptables-legacy-save: it printed more than 64 MB"}[name]
			if says == "" {
				h.warns(10 * time.Second)
			} else {
				h.warns(20*time.Second, "set firewall: firewall: "+says)
			}
			if out := oursOf(h.web1); strings.Count(out, "-j JIJI-FORWARD") < 3 || !strings.Contains(out, "elsewhere to containers") {
				t.Errorf("the rules are:\n%s", out)
			}
			out, err := h.web1.Try("jiji-node", "down")
			if want := map[bool]int{true: 0, false: 1}[says == ""]; codeOf(err) != want || want == 1 && !strings.Contains(err.Error(), says) {
				t.Errorf("down: %v\n%s", err, out)
			}
			h.nodes[0].Wait(5 * time.Second)
			h.web1.Run("umount", "/usr/sbin/xtables-legacy-multi")
			h.web1.Run("jiji-node", "down")
			sameState(t, "down", before, wholeState(h.web1))
		})
	}
}

// Several at once take the network off, and one more brings it up: each ends, and in the
// end all is as before.
func TestManyGoDownAtOnce(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	before := wholeState(h.web1)
	for _, also := range []string{"", "(timeout -s TERM 3 jiji-node run) &"} {
		h.start(0)
		if also != "" {
			h.nodes[0].Stop()
		}
		out := h.web1.Run("sh", "-c", "for i in 1 2 3 4 5; do (timeout 50 jiji-node down 2>&1; echo ended $?) & done; "+also+" wait; jiji-node down")
		if strings.Contains(out, "ended 124") || !strings.Contains(out, "route unreachable 10.210.0.0/16 removed") {
			t.Errorf("they say:\n%s", out)
		}
		if also == "" {
			h.nodes[0].Wait(5 * time.Second)
		}
		sameState(t, "many downs", before, wholeState(h.web1))
	}
}

// A node that hangs cannot take the network off: down says how to do without it.
func TestDownOfANodeThatHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	h := newHostMesh(t, firewallKinds[0])
	before := wholeState(h.web1)
	p := h.start(0)
	p.Signal(syscall.SIGSTOP)
	_, err := h.web1.Try("jiji-node", "down")
	if err == nil || !strings.Contains(err.Error(), "does not answer within 30s: it hangs, or was stopped by a signal: `kill -9 ") {
		t.Fatalf("down says: %v", err)
	}
	_, command, _ := strings.Cut(err.Error(), "`")
	command, _, _ = strings.Cut(command, "`")
	h.web1.Run("sh", "-c", command)
	p.Wait(5 * time.Second)
	h.web1.Run("jiji-node", "down")
	sameState(t, "kill -9 and down", before, wholeState(h.web1))
}

// To forward from the containers' own bridge asks for nothing: that is said, and all the
// rest is done.
func TestForwardFromTheContainers(t *testing.T) {
	h := newHostMesh(t, firewallKinds[0])
	h.start(0, "--forward-from", "jiji-br0", "--forward-from", "docker0")
	h.works()
	h.warns(10*time.Second, "--forward-from jiji-br0 names the containers' own bridge, from which they reach the mesh anyway: take it away")
	if out := oursOf(h.web1); !strings.Contains(out, "-i docker0 -o jiji0") || !strings.Contains(out, "elsewhere to containers") {
		t.Errorf("the rules are:\n%s", out)
	}
}
