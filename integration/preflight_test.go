//go:build linux

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/host"
)

// Show 7: every preflight line has a case that triggers it, and triggers nothing
// else. (TestEveryLine of node/host has all the lines; here are those that a lab
// can bring about.) `run --check` says it and touches nothing; `run` says the
// same and, where it refuses, has touched nothing either.
func TestShow7Preflight(t *testing.T) {
	t.Parallel()
	run := func(command ...string) func(*testing.T, *lab.Server) {
		return func(_ *testing.T, s *lab.Server) { s.Run("sh", "-c", strings.Join(command, " && ")) }
	}
	without := func(capability string) []string {
		return []string{"setpriv", "--bounding-set=-" + capability, "--inh-caps=-" + capability}
	}
	for _, c := range []struct {
		name  string
		setUp func(*testing.T, *lab.Server)
		by    []string // what starts jiji-node
		args  []string
		code  int // exit code: 0 for what the node can run with
		kind  host.Kind
		want  string // parts of the line, separated by |
	}{
		{name: "nothing", want: ""},
		{name: "no NET_ADMIN", by: without("net_admin"), code: 1, kind: host.KindPrivilege, want: "CAP_NET_ADMIN is missing"},
		{name: "no NET_BIND_SERVICE", by: without("net_bind_service"), code: 1, kind: host.KindPrivilege, want: "CAP_NET_BIND_SERVICE is missing|port 53/udp on 10.210.0.1, port 53/tcp on 10.210.0.1"},
		{name: "no NET_RAW", by: without("net_raw"), kind: host.KindPrivilege, want: "CAP_NET_RAW is missing|`jiji-node ping`"},
		{name: "no TUN device", setUp: run("mount -t tmpfs tmpfs /dev/net"), code: 1, kind: host.KindTUN, want: "open /dev/net/tun: no such file or directory"},

		{name: "unit with a process", setUp: run("mount -t tmpfs tmpfs /sys/fs/cgroup", "mkdir -p /sys/fs/cgroup/system.slice/jiji-control-loop.service"),
			code: 1, kind: host.KindUnit, want: "unit jiji-control-loop.service is active|`systemctl disable --now jiji-control-loop.service`"},
		{name: "unit of the next boot", setUp: run("mkdir -p /etc/systemd/system/multi-user.target.wants", "ln -s /lib/systemd/system/wg-quick@.service /etc/systemd/system/multi-user.target.wants/wg-quick@jiji0.service"),
			kind: host.KindUnit, want: "unit wg-quick@jiji0.service is enabled|`systemctl disable --now wg-quick@jiji0.service`"},

		{name: "bridge of that name", setUp: run("ip link add jiji0 type bridge"), code: 1, kind: host.KindInterface, want: "interface jiji0 exists already, of type bridge"},
		{name: "TUN device of that name", setUp: run("ip tuntap add jiji0 mode tun"), code: 1, kind: host.KindInterface, want: "interface jiji0 exists already, as a TUN device of an unknown process or of none"},
		{name: "interface of another name", setUp: run("ip link add jiji0 type bridge"), args: []string{"--interface", "mesh0"}},

		{name: "listen port", setUp: holdUDP("0.0.0.0:51820"), code: 1, kind: host.KindPort, want: "port 51820/udp is taken by|:51820)|--listen-port"},
		{name: "DNS port", setUp: holdUDP("0.0.0.0:53"), code: 1, kind: host.KindPort, want: "port 53/udp on 10.210.0.1 is taken by|:53)|--dns-port"},
		{name: "other addresses' ports", setUp: holdUDP("127.0.0.53:53")},

		{name: "route", setUp: run("ip route add 10.210.7.0/24 dev eth0"), code: 1, kind: host.KindOverlap, want: "cluster CIDR 10.210.0.0/16 overlaps route 10.210.7.0/24 dev eth0|--cluster-cidr or JIJI_CLUSTER_CIDR, such as 10.211.0.0/16"},
		{name: "address", setUp: run("ip link add lan0 type bridge", "ip address add 10.210.7.1/24 dev lan0", "ip link set lan0 up"), code: 1, kind: host.KindOverlap, want: "address 10.210.7.1/24 of lan0"},
		{name: "management address", setUp: run("ip address add fdcc:7::1/64 dev eth0"), code: 1, kind: host.KindOverlap, want: "fdcc::/16, which holds the management addresses, overlaps address fdcc:7::1/64 of eth0"},
		{name: "docker network", setUp: engine("/run/docker.sock", networks("bridge", "172.17.0.0/16", "shop", "10.210.7.0/24")),
			code: 1, kind: host.KindOverlap, want: `docker network "shop" (10.210.7.0/24)|` + "`docker network rm shop`|such as 10.211.0.0/16"},
		{name: "podman network", setUp: engine("/run/podman/podman.sock", networks("podman", "10.88.0.0/16", "shop", "10.210.7.0/24")),
			code: 1, kind: host.KindOverlap, want: `podman network "shop" (10.210.7.0/24)|` + "`podman network rm shop`"},
		{name: "own network", setUp: engine("/run/docker.sock", networks("bridge", "172.17.0.0/16", "jiji-mesh", "10.210.0.0/24"))},
		{name: "engine that hangs", setUp: engine("/run/docker.sock", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })},
		{name: "engine that refuses", setUp: engine("/run/docker.sock", http.NotFound)},

		{name: "strict second uplink", setUp: run("sysctl -qw net.ipv4.conf.eth1.rp_filter=1"), kind: host.KindRPFilter, want: "net.ipv4.conf.eth1.rp_filter=1 (strict)|leaves by eth0|`sysctl -w net.ipv4.conf.eth1.rp_filter=2`"},
		{name: "strict first uplink", setUp: run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")},
		{name: "no IPv6", setUp: run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"), kind: host.KindIPv6, want: "net.ipv6.conf.all.disable_ipv6=1"},
		{name: "small uplink", setUp: func(_ *testing.T, s *lab.Server) { s.Links()[1].SetMTU(1279) }, code: 1, kind: "mtu", want: "mtu of uplink eth1 is 1279"},
		{name: "other cluster", setUp: run("jiji-node init --name web --cluster-cidr 10.99.0.0/16"), args: []string{"--cluster-cidr", "10.98.0.0/16"},
			code: 2, kind: "configuration", want: "cluster CIDR 10.98.0.0/16: this machine belongs to the cluster 10.99.0.0/16 (/var/lib/jiji/network.json)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			s := l.Server("web").On(l.Network("lan", lanPrefix), l.Network("dsl", "198.51.100.0/24"))
			lab.Binary(t)
			lab.Eventually(t, 30*time.Second, "the links have come up", func() error { // which changes the footprint
				if out := s.Run("ip", "-brief", "address"); strings.Contains(out, "DOWN") || strings.Count(out, " fe80::") != 2 {
					return errors.New(out)
				}
				return nil
			})
			if c.setUp != nil {
				c.setUp(t, s)
			}
			before := footprint(s)
			command := append(append(append([]string{}, c.by...), "jiji-node", "run"), c.args...)

			start := time.Now()
			r, code := check(t, s, append(command, "--check")...)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("the check took %v", d)
			}
			expectReadiness(t, r, code, c.code, c.kind, c.want)
			if r.Running != 0 {
				t.Errorf("process %d is said to run", r.Running)
			}
			text, _ := s.Try(command[0], append(command[1:], "--check")...)
			if ready := strings.HasSuffix(text, "ready to run\n"); ready != (c.code == 0) {
				t.Errorf("the check for people says:\n%s", text)
			}
			expectUntouched(t, s, before)

			if c.code == 0 {
				p := s.Spawn(command[0], command[1:]...)
				p.WaitReady()
				if len(r.Problems) > 0 && !strings.Contains(p.Log(), "degraded") {
					t.Errorf("the node says nothing of it:\n%s", p.Log())
				}
				p.Stop()
				return
			}
			_, err := s.Try(command[0], command[1:]...)
			var refusal *lab.CommandError
			if !errors.As(err, &refusal) || refusal.Code != c.code {
				t.Fatalf("run: %v, want exit code %d", err, c.code)
			}
			for part := range strings.SplitSeq(c.want, "|") {
				if !strings.Contains(refusal.Stderr, part) {
					t.Errorf("run says\n%swant %s", refusal.Stderr, part)
				}
			}
			if lines := strings.Count(refusal.Stderr, "jiji-node: "); lines != 1 {
				t.Errorf("run says %d things:\n%s", lines, refusal.Stderr)
			}
			expectUntouched(t, s, before, "/var/lib") // but for the key, which is made for ever
		})
	}
}

// A check beside a running node: its own is no problem; with another state
// directory it is another node, whatever else differs.
func TestCheckBesideRunningNode(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	s := m.servers[0]
	m.start(0)
	pid := strings.TrimSpace(s.Run("cat", "/var/lib/jiji/lock"))
	before := footprint(s)

	r, code := check(t, s, "jiji-node", "run", "--check")
	expectReadiness(t, r, code, 0, "", "")
	if fmt.Sprint(r.Running) != pid {
		t.Errorf("running is process %d, want %s", r.Running, pid)
	}
	if text := s.Run("jiji-node", "run", "--check"); text != "running   process "+pid+" is this node: what it holds is no problem\nready to run\n" {
		t.Errorf("the check for people says:\n%s", text)
	}

	other := []string{"jiji-node", "run", "--state-dir", "/var/lib/other"}
	for _, args := range [][]string{
		{},
		{"--runtime-dir", "/run/other"},
		{"--runtime-dir", "/run/other", "--interface", "jiji1", "--listen-port", "51821", "--dns-port", "5353"},
		{"--runtime-dir", "/run/other", "--interface", "jiji1", "--listen-port", "51821", "--cluster-cidr", "10.99.0.0/16"},
	} {
		command := append(append([]string{}, other...), args...)
		r, code := check(t, s, append(command, "--check")...)
		expectReadiness(t, r, code, 1, host.KindNode, "(pid "+pid+")|is another node on this machine and holds")
		_, err := s.Try(command[0], command[1:]...)
		if err == nil || !strings.Contains(err.Error(), "(pid "+pid+") is another node on this machine") {
			t.Errorf("%s: %v", strings.Join(command, " "), err)
		}
	}
	expectUntouched(t, s, before, "/var/lib ")
	if text, err := s.Try("jiji-node", "status"); err != nil {
		t.Errorf("the node after it: %v\n%s", err, text)
	}

	m.nodes[0].Stop()
	if r, code := check(t, s, "jiji-node", "run", "--check"); code != 0 || r.Running != 0 {
		t.Errorf("after its end: exit code %d, %+v", code, r)
	}
	m.start(0)
	m.nodes[0].Kill9()
	if r, code := check(t, s, "jiji-node", "run", "--check"); code != 0 || r.Running != 0 {
		t.Errorf("after it was killed: exit code %d, %+v", code, r)
	}
}

// check runs `jiji-node run --check --json`, behind whatever starts it.
func check(t *testing.T, s *lab.Server, command ...string) (r node.Readiness, code int) {
	t.Helper()
	out, err := s.Try(command[0], append(command[1:], "--json")...)
	var failed *lab.CommandError
	if errors.As(err, &failed) {
		code = failed.Code
	} else if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%s: %v\n%s\n%v", strings.Join(command, " "), err, out, failed)
	}
	return r, code
}

// expectReadiness wants one problem, or none if want is empty.
func expectReadiness(t *testing.T, r node.Readiness, code, wantCode int, kind host.Kind, want string) {
	t.Helper()
	if code != wantCode || r.Ready != (wantCode == 0) {
		t.Errorf("exit code %d, want %d: %+v", code, wantCode, r)
	}
	if want == "" {
		if len(r.Problems) != 0 {
			t.Errorf("problems %+v, want none", r.Problems)
		}
		return
	}
	if len(r.Problems) != 1 {
		t.Fatalf("problems %+v, want one: %s", r.Problems, want)
	}
	p := r.Problems[0]
	if p.Kind != kind || p.Degraded != (wantCode == 0) || strings.Contains(p.Text, "\n") {
		t.Errorf("problem %+v, want kind %s", p, kind)
	}
	for part := range strings.SplitSeq(want, "|") {
		if !strings.Contains(p.Text, part) {
			t.Errorf("got  %s\nwant %s", p.Text, part)
		}
	}
}

// footprint is all of the server that a node changes.
func footprint(s *lab.Server) string {
	return s.Run("sh", "-c", `ip -brief address; ip route show table all; ip -6 route show table all; ip rule
grep -r . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/send_redirects /proc/sys/net/ipv4/conf/*/rp_filter
find /var/lib /run /etc/sysctl.d /etc/jiji ! -path '/run/*.sock' -printf '%p %m %s %T@\n' 2>&-; true`)
}

// expectUntouched compares the server's footprint to that of before, but for
// lines that begin with one of others.
func expectUntouched(t *testing.T, s *lab.Server, before string, others ...string) {
	t.Helper()
	after := footprint(s)
	report := func(what, in, than string) {
		for line := range strings.SplitSeq(in, "\n") {
			if !strings.Contains(than, line) && !slices.ContainsFunc(others, func(o string) bool { return strings.HasPrefix(line, o) }) {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	report("gone", before, after)
	report("new", after, before)
}

// holdUDP has somebody hold a UDP port of the server.
func holdUDP(addr string) func(*testing.T, *lab.Server) {
	return func(t *testing.T, s *lab.Server) { listenUDP(t, s.Host, netip.MustParseAddrPort(addr)) }
}

// engine has something answer on an engine's socket of the server.
func engine(socket string, answer http.HandlerFunc) func(*testing.T, *lab.Server) {
	return func(t *testing.T, s *lab.Server) {
		path := s.Path(socket)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: answer}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
	}
}

// networks answers as an engine that has these: name, subnet and so on.
func networks(list ...string) http.HandlerFunc {
	var all []string
	for i := 0; i < len(list); i += 2 {
		all = append(all, fmt.Sprintf(`{"Name":%q,"Driver":"bridge","IPAM":{"Driver":"default","Config":[{"Subnet":%q}]}}`, list[i], list[i+1]))
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/networks" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "["+strings.Join(all, ",")+"]")
	}
}
