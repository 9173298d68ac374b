//go:build linux

package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// Every command as its user types it, with and without a node that runs.
func TestCommands(t *testing.T) {
	t.Parallel()
	t.Run("Help", helpOfAll)
	t.Run("Init", initCommands)
	t.Run("NotRunning", notRunning)
	t.Run("Server", serverCommands)
	t.Run("Running", commandsOfARunningNode)
}

// says runs jiji-node, which has to succeed and print all parts, separated by |.
func says(t *testing.T, s *lab.Server, want string, args ...string) string {
	t.Helper()
	out, err := s.Try("jiji-node", args...)
	if err != nil {
		t.Errorf("%v", err)
	}
	for part := range strings.SplitSeq(want, "|") {
		if !strings.Contains(out, part) {
			t.Errorf("jiji-node %s: lacks %q:\n%s", strings.Join(args, " "), part, out)
		}
	}
	return out
}

// saysJSON runs jiji-node, which has to print one JSON document with nothing that v lacks.
func saysJSON(t *testing.T, s *lab.Server, v any, args ...string) {
	t.Helper()
	out := s.Run("jiji-node", args...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("jiji-node %s: %v:\n%s", strings.Join(args, " "), err, out)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("jiji-node %s: more than one document:\n%s", strings.Join(args, " "), out)
	}
}

// fails is isRefused for a command of jiji-node's.
func fails(t *testing.T, s *lab.Server, code int, want string, args ...string) {
	t.Helper()
	isRefused(t, s, code, want, "jiji-node", args...)
}

// Each command's help has a usage, an example, and no error in its text; the shells take
// the completions.
func helpOfAll(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	commands := regexp.MustCompile(`(?m)^  ([a-z]+) +\S`)
	seen := 0
	var walk func(path ...string)
	walk = func(path ...string) {
		out := s.Run("jiji-node", append(path, "--help")...)
		_, list, group := strings.Cut(out, "Available Commands:\n")
		list, _, _ = strings.Cut(list, "\n\n")
		for _, part := range []string{"Usage:\n  jiji-node", "Examples:\n  ", "--help"} {
			if !strings.Contains(out, part) {
				t.Errorf("jiji-node %s --help lacks %q:\n%s", strings.Join(path, " "), part, out)
			}
		}
		seen++
		if again := s.Run("jiji-node", append([]string{"help"}, path...)...); again != out {
			t.Errorf("jiji-node help %s differs from --help:\n%s", strings.Join(path, " "), difference(out, again))
		}
		if group {
			for _, m := range commands.FindAllStringSubmatch(list, -1) {
				walk(append(slices.Clone(path), m[1])...)
			}
		}
	}
	walk()
	if seen < 25 {
		t.Errorf("only %d commands were found", seen)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := says(t, s, "jiji-node", "completion", shell)
		if _, err := exec.LookPath(shell); err == nil {
			s.RunInput(script, shell, "-n")
		}
	}
	if out := s.Run("jiji-node", "__complete", "service", ""); !strings.Contains(out, "register\t") || !strings.Contains(out, "cleanup\t") {
		t.Errorf("completion of `service`:\n%s", out)
	}
	says(t, s, "jiji-node |(go1.|linux/|wireguard-go v0.", "version")
	var v map[string]string
	saysJSON(t, s, &v, "version", "--json")
	if v["version"] == "" || v["go"] == "" || v["platform"] == "" || v["wireguardGo"] == "" {
		t.Errorf("version --json: %v", v)
	}
}

func initCommands(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	entryOf := func(text string) topology.Server {
		t.Helper()
		list, err := topology.ParseEntries("entry", strings.NewReader(text))
		if err != nil || len(list) != 1 {
			t.Fatalf("%d entries, %v:\n%s", len(list), err, text)
		}
		return list[0].Server
	}
	state := hostState(s)
	text := s.Run("jiji-node", "init")
	first := entryOf(text)
	if first.ID != "web1" || first.Subnet.String() != "10.210.0.0/24" || !slices.Equal(first.Endpoints, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}) {
		t.Errorf("of a new machine:\n%s", text)
	}
	if info, err := os.Stat(s.Path(keyFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: %v, %v", keyFile, info, err)
	}
	if again := s.Run("jiji-node", "init"); again != text {
		t.Errorf("again:\n%s", difference(text, again))
	}
	changed := entryOf(s.Run("jiji-node", "init", "--name", "web1.example.com", "--index", "7", "--endpoint", "203.0.113.10", "--endpoint", "[2001:db8::1]:1234", "--listen-port", "4000"))
	if changed.ID != "web1-example-com" || changed.Subnet.String() != "10.210.7.0/24" || fmt.Sprint(changed.Endpoints) != "[203.0.113.10:4000 [2001:db8::1]:1234]" || changed.Key != first.Key {
		t.Errorf("changed: %+v", changed)
	}
	if again := entryOf(s.Run("jiji-node", "init")); !again.Equal(changed) {
		t.Errorf("again: %+v, want %+v", again, changed)
	}
	if diff := difference(state, hostState(s)); diff != "" {
		t.Errorf("changed on the host:\n%s", diff)
	}

	// A key of wg-quick's, in files that are wrong and in one that is right.
	key := wgkey.NewPrivate()
	dir := []string{"init", "--state-dir", "/run/import", "--runtime-dir", "/run/import"}
	file := append(slices.Clone(dir), "--import", "/etc/wireguard/jiji0.conf")
	fails(t, s, typedWrong, "/etc/wireguard/jiji0.conf: no such file", file...)
	for content, want := range map[string]string{
		"":                                     "/etc/wireguard/jiji0.conf: has no PrivateKey",
		"[Interface]\nPrivateKey = c2hvcnQ=":   "/etc/wireguard/jiji0.conf:2: PrivateKey|want 44",
		"[Peer]\nPrivateKey = " + key.Base64(): "/etc/wireguard/jiji0.conf: has no PrivateKey",
		"[Interface]\nPrivateKey=" + key.Base64() + "\nMTU = large": "/etc/wireguard/jiji0.conf:3: MTU",
	} {
		s.WriteFile("/etc/wireguard/jiji0.conf", content)
		s.Run("chmod", "600", "/etc/wireguard/jiji0.conf")
		fails(t, s, typedWrong, want, file...)
	}
	conf := "[Interface] # ours\nprivatekey = " + key.Base64() + "\nAddress = 10.210.9.1/24\nPostUp = iptables -A x\n[Peer]\nPublicKey = x\n"
	s.WriteFile("/etc/wireguard/jiji0.conf", conf)
	s.Run("chmod", "644", "/etc/wireguard/jiji0.conf")
	fails(t, s, typedWrong, "/etc/wireguard/jiji0.conf has mode 0644|chmod 600 /etc/wireguard/jiji0.conf", file...)
	s.Run("chmod", "600", "/etc/wireguard/jiji0.conf")
	for range 2 {
		if got := entryOf(s.Run("jiji-node", file...)); got.Key != key.Public() {
			t.Errorf("imported key %s, want %s", got.Key, key.Public())
		}
	}
	s.WriteFile("/etc/wireguard/jiji0.conf", strings.Replace(conf, key.Base64(), wgkey.NewPrivate().Base64(), 1))
	fails(t, s, typedWrong, "/run/import/private.key holds another key already|"+key.Public().String(), file...)
	if out := s.ReadFile("/run/import/private.key"); out != key.Base64()+"\n" {
		t.Error("the key was changed")
	}
	if got := s.ReadFile("/etc/wireguard/jiji0.conf"); !strings.Contains(got, "PostUp") {
		t.Errorf("the file was changed:\n%s", got)
	}
}

// Commands that need a node say so.
func notRunning(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, line := range []string{
		"status", "status --json", "status --watch", "resolve api", "ping web2", "service list",
		"service register api --ip 10.210.0.10", "service health abc healthy", "service deregister abc", "service cleanup",
	} {
		fails(t, s, refused, "no jiji-node is running|/run/jiji/node.sock|`jiji-node run`", strings.Fields(line)...)
	}
	fails(t, s, refused, "/run/other/node.sock", "status", "--runtime-dir", "/run/other")
	fails(t, s, refused, "no topology yet|`jiji-node init`", "server", "list")
	says(t, s, "jiji-node ", "version")

	s.WriteFile("/etc/jiji/node.yaml", "mtu: 1300\nlog-format: json\nendpoint: [192.0.2.1, 192.0.2.2:1234]\n")
	s.Setenv("JIJI_LOG_FORMAT", "text")
	s.Setenv("JIJI_DNS_PORT", "5300")
	var list []control.Setting
	saysJSON(t, s, &list, "config", "show", "--json", "--dns-port", "5353")
	for _, want := range []control.Setting{
		{Name: "dns-port", Value: "5353", Origin: "flag"},
		{Name: "log-format", Value: "text", Origin: "environment JIJI_LOG_FORMAT"},
		{Name: "mtu", Value: "1300", Origin: "file /etc/jiji/node.yaml:1"},
		{Name: "endpoint", Value: "192.0.2.1,192.0.2.2:1234", Origin: "file /etc/jiji/node.yaml:3"},
		{Name: "state-dir", Value: "/var/lib/jiji", Origin: "default"},
	} {
		if !slices.Contains(list, want) {
			t.Errorf("config show lacks %+v:\n%+v", want, list)
		}
	}
	says(t, s, "SETTING|VALUE|FROM|file /etc/jiji/node.yaml:1|environment JIJI_DNS_PORT", "config", "show")
	fails(t, s, typedWrong, "--mtu: 5, want 1280 to 8921", "config", "show", "--mtu", "5")
	// A group of the system may use the socket; who is not in it is told.
	s.Run("sh", "-c", "mkdir -m 700 /run/closed; touch /run/closed/node.sock")
	isRefused(t, s, refused, "/run/closed/node.sock: permission denied|be root, or a member of the group jiji",
		"setpriv", "--reuid", "65534", "--clear-groups", lab.Binary(t), "status", "--runtime-dir", "/run/closed")
}

// The topology by hand, without a node that runs.
func serverCommands(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("sh", "-c", "jiji-node init >/run/web1.json;"+initAs("web2", "--index 1")+";"+initAs("web3", "--index 2")+";"+initAs("web4", "--index 3"))
	says(t, s, "web1 10.210.0.0/24: unchanged\nweb2 10.210.1.0/24: added\n", "server", "add", "/run/web1.json", "/run/web2.json")
	says(t, s, "web2 10.210.1.0/24: unchanged\n", "server", "add", "/run/web2.json")
	if out := s.Run("sh", "-c", "cat /run/web3.json /run/web4.json | jiji-node server add -"); out != "web3 10.210.2.0/24: added\nweb4 10.210.3.0/24: added\n" {
		t.Errorf("from standard input:\n%s", out)
	}
	var added []control.Added
	saysJSON(t, s, &added, "server", "add", "--json", "/run/web3.json")
	if len(added) != 1 || added[0].ID != "web3" || added[0].Note != "unchanged" {
		t.Errorf("server add --json: %+v", added)
	}
	// Ctrl-C ends one that waits for its input.
	waiting := s.Spawn("sh", "-c", "mkfifo /run/pipe; exec jiji-node server add - <>/run/pipe")
	lab.Eventually(t, 10*time.Second, "it is jiji-node that waits", func() error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", waiting.Pid()))
		if err == nil && string(comm) != "jiji-node\n" {
			err = fmt.Errorf("it is %s", comm)
		}
		return err
	})
	waiting.Signal(syscall.SIGINT)
	waiting.Wait(5 * time.Second)
	// All or none.
	s.WriteFile("/run/bad.json", strings.Replace(s.ReadFile("/run/web4.json"), "10.210.3.1", "10.210.3.2", 1))
	s.Run("sh", "-c", initAs("web5", "--index 4"))
	fails(t, s, typedWrong, `/run/bad.json:|"web4"|10.210.3.2|want 10.210.3.1`, "server", "add", "/run/web5.json", "/run/bad.json")

	says(t, s, "ID |SUBNET|web1  10.210.0.0/24  10.210.0.1 |web4  10.210.3.0/24", "server", "list")
	var servers []control.Server
	saysJSON(t, s, &servers, "server", "list", "--json")
	if len(servers) != 4 || servers[3].ID != "web4" || servers[3].RemovedAt != nil {
		t.Errorf("server list --json: %+v", servers)
	}
	fails(t, s, typedWrong, "web1 is this machine|--force", "server", "remove", "Web1")
	fails(t, s, typedWrong, `"web9"|jiji-node server list`, "server", "remove", "web9")
	says(t, s, "web4: removed", "server", "remove", "WEB4")
	var gone control.Server
	saysJSON(t, s, &gone, "server", "remove", "web4", "--json") // again: nothing changes
	if gone.ID != "web4" || gone.RemovedAt == nil {
		t.Errorf("remove --json: %+v", gone)
	}
	says(t, s, "web4|removed", "server", "list")
	// Its subnet rests; its own entry brings it back.
	s.Run("sh", "-c", `sed -i 's/"10.210.4[^"]*"/""/' /run/web5.json`)
	says(t, s, "web5 10.210.4.0/24: added; it came without a subnet: on it, run `jiji-node init --index 4`", "server", "add", "/run/web5.json")
	says(t, s, "web4 10.210.3.0/24: added", "server", "add", "/run/web4.json")
	says(t, s, "web1: removed", "server", "remove", "web1", "--force")
}

func commandsOfARunningNode(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	m.servers[0].Setenv("JIJI_MTU", "1380")
	m.startAll("--log-level", "debug")
	s := m.servers[0]

	m.step("Service", func() { serviceCommands(t, s) })
	m.step("Status", func() { statusCommands(t, s) })
	m.step("Watch", func() { watch(t, s) })
	m.step("Resolve", func() { resolveCommands(t, s) })
	m.step("Ping", func() { pingCommands(t, m) })
	m.step("Config", func() {
		var list []control.Setting
		saysJSON(t, s, &list, "config", "show", "--json", "--mtu", "1290") // what runs, not what would
		for _, want := range []control.Setting{
			{Name: "mtu", Value: "1380", Origin: "environment JIJI_MTU"},
			{Name: "log-level", Value: "debug", Origin: "flag"},
			{Name: "domain", Value: "jiji", Origin: "default"},
		} {
			if !slices.Contains(list, want) {
				t.Errorf("config show lacks %+v:\n%+v", want, list)
			}
		}
	})
	m.step("Init", func() {
		own := s.ReadFile("/run/web1.json")
		if got := s.Run("jiji-node", "init"); got != own {
			t.Errorf("while running:\n%s", difference(own, got))
		}
		says(t, s, `"endpoints": [`+"\n    \"203.0.113.77:51820\"", "init", "--endpoint", "203.0.113.77")
		if got := fmt.Sprint(status(t, s).Server.Endpoints); got != "[203.0.113.77:51820]" {
			t.Errorf("endpoints %s", got)
		}
	})
	m.step("Remove", func() {
		fails(t, s, typedWrong, "web1 is this machine|--force", "server", "remove", "web1")
		fails(t, s, typedWrong, "web1 is this machine|--force", "server", "remove", "WEB1")
		fails(t, s, typedWrong, "web2 is up|--force", "server", "remove", "Web2")
		says(t, s, "web2: removed", "server", "remove", "web2", "--force")
		if st := status(t, s); len(st.Peers) != 0 {
			t.Errorf("peers %+v", st.Peers)
		}
		says(t, s, "web2 10.210.1.0/24: added", "server", "add", "/run/web2.json")
		waitPeer(t, s, "web2", meshLimit, func(p control.Peer) bool { return p.State == "up" })
		says(t, s, "web1: removed", "server", "remove", "web1", "--force")
		if out := says(t, s, "removed|this server was removed from the mesh", "status"); strings.Contains(out, "no peers yet") {
			t.Errorf("status:\n%s", out)
		}
	})
	m.nodes[0].Stop()
	m.nodes[1].Stop()
}

func serviceCommands(t *testing.T, s *lab.Server) {
	says(t, s, "api 10.210.0.10 registered as ", "service", "register", "api", "--ip", "10.210.0.10")
	var c control.Container
	saysJSON(t, s, &c, "service", "register", "api", "--ip", "10.210.0.10", "--project", "shop", "--instance", "a", "--port", "8080", "--port", "53/udp", "--json")
	if c.Service != "api" || c.Project != "shop" || c.ServerID != "web1" || c.Health != "healthy" || fmt.Sprint(c.Ports) != "[53/udp 8080/tcp]" || len(c.ID) != 64 {
		t.Errorf("register --json: %+v", c)
	}
	says(t, s, "registered as abc1", "service", "register", "api", "--ip", "10.210.0.11", "--id", "abc1")
	says(t, s, "registered as abc2", "service", "register", "api", "--ip", "10.210.0.12", "--id", "abc2", "--health", "unhealthy")
	says(t, s, "registered as out1", "service", "register", "db", "--ip", "192.0.2.50", "--id", "out1", "--external")
	for _, bad := range []struct{ want, args string }{
		{`--ip: "ten"|want an IP address`, "register api --ip ten"},
		{"--ip is missing|service register api --ip ADDRESS", "register api"},
		{`"10.210.1.10"|10.210.0.1 to 10.210.0.254|web1`, "register api --ip 10.210.1.10"},
		{`"192.0.2.50"|10.210.0.1 to 10.210.0.254|external`, "register api --ip 192.0.2.50"},
		{`"127.0.0.1"|not loopback`, "register api --ip 127.0.0.1 --external"},
		{`"2001:db8::1"|IPv4`, "register api --ip 2001:db8::1"},
		{`service "a.b"|letters`, "register a.b --ip 10.210.0.13"},
		{`service "node"`, "register node --ip 10.210.0.13"},
		{`health "sick"|healthy, unhealthy`, "register api --ip 10.210.0.13 --health sick"},
		{`port "80/sctp"|NUMBER/tcp`, "register api --ip 10.210.0.13 --port 80/sctp"},
		{`port "0"|1 to 65535`, "register api --ip 10.210.0.13 --port 0"},
		{`id "a/b"`, "register api --ip 10.210.0.13 --id a/b"},
		{`container "xyz"|no such id|service list`, "health xyz healthy"},
		{`container "abc"|2 ids begin with it`, "health abc healthy"},
		{`health "fine"|healthy, unhealthy`, "health abc1 fine"},
		{`container "abc"|2 ids begin with it`, "deregister abc"},
		{`container "xyz"|no such id`, "deregister abc1 xyz"},
		{"--older-than: -1s", "cleanup --older-than -1s"},
		{"an argument is missing|ID healthy", "health abc1"},
	} {
		fails(t, s, typedWrong, bad.want, append([]string{"service"}, strings.Fields(bad.args)...)...)
	}

	says(t, s, "SERVICE |PROJECT|api      shop     10.210.0.10  healthy    web1|10.210.0.12  unhealthy  web1|db ", "service", "list")
	if out := says(t, s, "192.0.2.50|out1", "service", "list", "DB"); strings.Contains(out, "api") {
		t.Errorf("service list DB:\n%s", out)
	}
	var list []control.Container
	saysJSON(t, s, &list, "service", "list", "--json")
	if len(list) != 4 {
		t.Errorf("service list --json: %+v", list)
	}
	saysJSON(t, s, &list, "service", "list", "nothing", "--json")
	if list == nil || len(list) != 0 {
		t.Errorf("service list nothing --json: %#v", list)
	}
	answer := func(want string) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, "api.jiji is "+want, func() error {
			got := strings.Fields(s.Run("dig", "@10.210.0.1", "+short", "api.jiji"))
			if slices.Sort(got); strings.Join(got, " ") != want {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	answer("10.210.0.10 10.210.0.11")
	says(t, s, "", "service", "health", "abc2", "healthy")
	answer("10.210.0.10 10.210.0.11 10.210.0.12")
	says(t, s, "", "service", "health", c.ID[:10], "unhealthy")
	says(t, s, "", "service", "health", "abc2", "unhealthy")
	answer("10.210.0.11")
	if out := says(t, s, "SERVICE", "service", "cleanup"); strings.Contains(out, "api") { // not so for long enough
		t.Errorf("cleanup:\n%s", out)
	}
	says(t, s, "10.210.0.10|10.210.0.12", "service", "cleanup", "--older-than", "0s", "--dry-run")
	saysJSON(t, s, &list, "service", "cleanup", "api", "--older-than", "0s", "--dry-run", "--json")
	if len(list) != 2 {
		t.Errorf("cleanup --json: %+v", list)
	}
	says(t, s, "abc2", "service", "cleanup", "--older-than", "0s")
	var removed map[string]int
	saysJSON(t, s, &removed, "service", "deregister", "out1", "--json")
	if removed["removed"] != 1 {
		t.Errorf("deregister --json: %v", removed)
	}
	says(t, s, "10.210.0.11|abc1", "service", "list")
	// For what comes next: one healthy, one that is left out.
	says(t, s, "abc2", "service", "register", "api", "--ip", "10.210.0.12", "--id", "abc2", "--health", "starting")
}

func statusCommands(t *testing.T, s *lab.Server) {
	says(t, s, "web1  10.210.0.1  fdcc:|ready since|jiji0 mtu 1380, port 51820|public key|10.210.0.0/16, domain jiji, 2 servers|10.210.0.1:53|embedded, 2 containers|PEER |web2  up |10.210.1.0/24", "status")
	var st control.Status
	saysJSON(t, s, &st, "status", "--json")
	p, _ := peerOf(st, "web2")
	if st.State != "ready" || st.Mode != "tun" || st.PID == 0 || st.Interface != (control.Interface{Name: "jiji0", MTU: 1380, ListenPort: 51820}) ||
		st.DNS.Names == 0 || st.Registry.Containers != 2 || p.State != "up" || p.LastHandshake == nil || p.RxBytes == 0 || p.TxBytes == 0 || !p.Endpoint.IsValid() {
		t.Errorf("status --json: %+v", st)
	}
	if out := s.Run("jiji-node", "status", "--json"); strings.Contains(strings.Replace(out, `"lastHandshake": null`, "", 1), ": null") {
		t.Errorf("a list is null:\n%s", out)
	}
	// A reader that has seen enough ends it.
	out := s.Run("sh", "-c", "jiji-node status --watch --interval 100ms | head -n 1")
	if !strings.HasPrefix(out, "web1  10.210.0.1") {
		t.Errorf("status --watch | head: %q", out)
	}
	fails(t, s, typedWrong, "--interval: 1ms, want at least 100ms", "status", "--watch", "--interval", "1ms")
}

func resolveCommands(t *testing.T, s *lab.Server) {
	says(t, s, "api.jiji. A: NOERROR, from zone|api.jiji.\t5\tIN\tA\t10.210.0.11|left out: 10.210.0.12 (abc2): starting", "resolve", "api")
	says(t, s, "web2.node.jiji. A: NOERROR|A\t10.210.1.1", "resolve", "web2.node.jiji")
	says(t, s, "AAAA\tfdcc:", "resolve", "web2.node.jiji", "--type", "aaaa")
	says(t, s, "11.0.210.10.in-addr.arpa. PTR|abc1.api.jiji.", "resolve", "10.210.0.11")
	says(t, s, "PTR|web2.node.jiji.", "resolve", status(t, s).Peers[0].ManagementIP.String())
	says(t, s, "api.jiji. AAAA: NOERROR|has no AAAA record", "resolve", "api", "--type", "AAAA")
	says(t, s, "jiji. SOA: NOERROR, from zone|jiji.\t", "resolve", "jiji.", "--type", "SOA")
	says(t, s, "nothing.jiji. A: NXDOMAIN, from zone|no such name", "resolve", "nothing")
	var r control.Resolution
	saysJSON(t, s, &r, "resolve", "API.jiji.", "--json")
	if r.Rcode != "NOERROR" || r.Source != "zone" || len(r.Answers) != 1 || len(r.LeftOut) != 1 || r.Negative != "" {
		t.Errorf("resolve --json: %+v", r)
	}
	fails(t, s, typedWrong, `type "FOO"|A, AAAA or PTR`, "resolve", "api", "--type", "FOO")
	fails(t, s, typedWrong, `"a..b"`, "resolve", "a..b")
	fails(t, s, refused, "example.com|no upstream", "resolve", "example.com")
}

func pingCommands(t *testing.T, m *mesh) {
	s := m.servers[0]
	for _, target := range []string{"web2", "WEB2", "web2.node.jiji", "10.210.1.1", status(t, s).Peers[0].ManagementIP.String()} {
		says(t, s, target+"|seq 1 in |1 sent, 1 answered, min/avg/max ", "ping", target, "-c1")
	}
	says(t, s, "seq 2 in |2 sent, 2 answered", "ping", "web1", "-c2", "-i", "10ms", "-s", "1000")
	var last control.PingReply
	lines := strings.Split(strings.TrimSpace(s.Run("jiji-node", "ping", "web2", "-c2", "-i10ms", "--json")), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 3 || !last.Done || last.Sent != 2 || last.Recv != 2 || last.Avg == 0 {
		t.Errorf("ping --json: %v:\n%s", err, strings.Join(lines, "\n"))
	}
	for _, bad := range []struct{ want, args string }{
		{`"web9"|no server, mesh name or mesh address|web1, web2`, "web9"},
		{"192.0.2.9|not in the mesh|10.210.0.0/16", "192.0.2.9"},
		{"10.210.9.9|no server", "10.210.9.9"},
		{"count 0|1 to 1000", "web2 -c0"},
		{"size 70000|24 to 65000", "web2 -s70000"},
		{"interval 1ms|10ms", "web2 -i1ms"},
		{"timeout 0s|up to 1m", "web2 -W0s"},
		{`--timeout: "soon" is not a duration`, "web2 -Wsoon"},
	} {
		fails(t, s, typedWrong, bad.want, append([]string{"ping"}, strings.Fields(bad.args)...)...)
	}
	for target, want := range map[string]string{"10.210.1.77": "10.210.1.77 does not answer", "api": "api (10.210.0.11) does not answer"} {
		out, err := s.Try("jiji-node", "ping", target, "-c1", "-W200ms")
		failed, _ := err.(*lab.CommandError)
		if failed == nil || failed.Code != refused || failed.Stderr != "jiji-node: "+want+"\n" || !strings.Contains(out, "1 sent, 0 answered") {
			t.Errorf("ping %s: %v", target, err)
		}
	}
}

// On a terminal, status --watch draws in place and ends on Ctrl-C.
func watch(t *testing.T, s *lab.Server) {
	t.Helper()
	terminal, screen := openTerminal(t)
	cmd := exec.Command(lab.Binary(t), "status", "--watch", "--interval", "100ms", "--runtime-dir", s.Path("/run/jiji"))
	cmd.Env = []string{"TERM=xterm"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = screen, screen, screen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	screen.Close()
	var mu sync.Mutex
	var shown bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := terminal.Read(buf)
			mu.Lock()
			shown.Write(buf[:n])
			mu.Unlock()
			if err != nil { // EIO: the program is gone
				return
			}
		}
	}()
	pages := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Split(shown.String(), "\x1b[H")
	}
	lab.Eventually(t, 10*time.Second, "status draws three times", func() error {
		if n := len(pages()); n < 5 {
			return fmt.Errorf("%d pages", n-1)
		}
		return nil
	})
	page := pages()[2]
	for _, part := range []string{"web1  10.210.0.1", "web2  up", "\x1b[K\r\n", "\x1b[J"} {
		if !strings.Contains(page, part) {
			t.Errorf("a page lacks %q:\n%q", part, page)
		}
	}
	if strings.Contains(strings.ReplaceAll(page, "\x1b[K\r\n", ""), "\n") {
		t.Errorf("a line is not cleared behind its end:\n%q", page)
	}
	if _, err := terminal.Write([]byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after Ctrl-C: %v", err)
		}
	case <-time.After(5 * time.Second):
		cmd.Process.Kill()
		t.Error("Ctrl-C does not end it")
	}
	<-read
	if last := pages(); !strings.HasSuffix(last[len(last)-1], "\x1b[J") && !strings.HasSuffix(last[len(last)-1], "\x1b[J^C") {
		t.Errorf("it ends with %q", last[len(last)-1])
	}
}

// openTerminal returns the two ends of a pseudo terminal.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return user, program
}
