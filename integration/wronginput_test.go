//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

const (
	typedWrong = 2 // exit codes of docs/commands.md
	refused    = 1

	stateFile = "/var/lib/jiji/network.json"
	keyFile   = "/var/lib/jiji/private.key"
)

// Wrong input gets one clear line and the exit code that says whose fault it is, and
// changes nothing on the host.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare string // a script, before
		command string // another one: its last command is the one that is refused
		code    int
		want    string // parts of the line, separated by |
	}{
		{"HostBits", "", "jiji-node run --cluster-cidr 10.210.7.0/16", typedWrong, `--cluster-cidr|"10.210.7.0/16"|host bits|want 10.210.0.0/16`},
		{"PrefixTooShort", "", "jiji-node run --cluster-cidr 10.0.0.0/7", typedWrong, "10.0.0.0/7|want 8 to 24"},
		{"PrefixTooLong", "", "jiji-node run --cluster-cidr 10.0.0.0/25", typedWrong, "10.0.0.0/25|want 8 to 24"},
		{"NotACIDR", "", "jiji-node run --cluster-cidr lan", typedWrong, `"lan"|want an IPv4 network such as 10.210.0.0/16`},
		{"UnknownFlag", "", "jiji-node run --cluster-cdir 10.210.0.0/16", typedWrong, "--cluster-cdir|did you mean --cluster-cidr?|jiji-node run --help"},
		{"UnknownCommand", "", "jiji-node rum", typedWrong, `"rum"|did you mean run?|jiji-node --help`},
		{"BadValueOfFlag", "", "jiji-node run --mtu 900", typedWrong, "--mtu: 900, want 1280 to 8921"},
		{"BadValueOfEnvironment", "", "JIJI_MTU=900 jiji-node run", typedWrong, "environment JIJI_MTU: 900, want 1280 to 8921"},
		{"BadValueOfFile", "", `echo "mtu: 900" >/run/n.yaml; jiji-node run --config /run/n.yaml`, typedWrong, "/run/n.yaml:1: mtu: 900, want 1280 to 8921"},
		{"BadTypeOfEnvironment", "", "JIJI_LISTEN_PORT=wg jiji-node run", typedWrong, `environment JIJI_LISTEN_PORT: "wg" is not a number from 0 to 65535`},
		{"BadTypeOfFile", "", `printf "name: web1\n\nlisten-port: wg\n" >/run/n.yaml; jiji-node run --config /run/n.yaml`, typedWrong, `/run/n.yaml:3: listen-port: "wg" is not a number from 0 to 65535`},
		{"UnknownKeyOfFile", "", `printf "# x\nstatedir: /x\n" >/run/n.yaml; jiji-node run --config /run/n.yaml`, typedWrong, `/run/n.yaml:2: no setting is called "statedir"|did you mean state-dir?`},
		{"NoYAML", "", `echo "name: [web1" >/run/n.yaml; jiji-node run --config /run/n.yaml`, typedWrong, "/run/n.yaml:1:"},
		{"NoConfigurationFile", "", "JIJI_CONFIG=/run/n.yaml jiji-node run", typedWrong, "/run/n.yaml|no such file|named by environment JIJI_CONFIG"},
		{"BadDomain", "", "jiji-node run --domain my..mesh", typedWrong, `--domain|"my..mesh"|want labels`},
		{"BadName", "", "jiji-node run --name ...", typedWrong, `"..."|letter or digit`},
		{"NoHostName", "echo >/proc/sys/kernel/hostname", "jiji-node run", typedWrong, "no host name|--name"},
		{"HostNameWithoutLetters", "echo 服务器 >/proc/sys/kernel/hostname", "jiji-node run", typedWrong, `"服务器"|letter or digit|this machine's host name|--name`},
		{"BadEndpoint", "", "jiji-node run --endpoint web1:51820", typedWrong, `--endpoint: "web1:51820"|want IP or IP:PORT`},
		{"EndpointInTheMesh", "", "jiji-node run --endpoint 10.210.0.9", typedWrong, "10.210.0.9:51820|lies inside the mesh"},

		{"KeyFileMode", "jiji-node init; chmod 640 " + keyFile, "jiji-node run", typedWrong, keyFile + " has mode 0640|chmod 600 " + keyFile},
		{"CorruptKey", "jiji-node init; echo c2hvcnQ= >" + keyFile, "jiji-node run", typedWrong, keyFile + "|want 44 of base64"},
		{"EmptyKey", "jiji-node init; : >" + keyFile, "jiji-node run", typedWrong, keyFile + " is empty|backup"},
		{"KeyIsADirectory", "jiji-node init; rm " + keyFile + "; mkdir " + keyFile, "jiji-node run", typedWrong, keyFile + " is a directory, want a regular file"},

		{"BadJSON", `jiji-node init; sed -i '4s/,$//' ` + stateFile, "jiji-node run", typedWrong, stateFile + ":5:5: invalid character"},
		{"EmptyTopology", "jiji-node init; : >" + stateFile, "jiji-node run", typedWrong, stateFile + ":1:1: unexpected end"},
		{"BadJSONInListing", `jiji-node init; sed -i '4s/,$//' ` + stateFile, "jiji-node server list", typedWrong, stateFile + ":5:5: invalid character"},
		{"BadJSONInEntry", "jiji-node init", `echo '{"id": "web2",}' >/run/e.json; jiji-node server add /run/e.json`, typedWrong, "/run/e.json:1:15: invalid character '}'"},
		{"BadJSONInSecondEntry", "jiji-node init >/run/own.json", `echo '{"id": 2}' >/run/e.json; jiji-node server add /run/own.json /run/e.json`, typedWrong, `/run/e.json:1:8: |"id": want a string, have a number`},
		{"BadJSONOnStandardInput", "jiji-node init", `echo '{"id": "web2"' | jiji-node server add -`, typedWrong, "standard input:1:14: unexpected end"},
		{"NoEntry", "jiji-node init", "jiji-node server add /run/e.json", typedWrong, "/run/e.json: no such file"},
		{"EntryOfAnotherCluster", "jiji-node init; " + initAs("web2", "--index 1 --cluster-cidr 10.211.0.0/16"), "jiji-node server add /run/web2.json", typedWrong, `"web2"|10.211.0.0/16|10.210.0.0/16|--cluster-cidr`},
		{"DuplicateSubnet", "jiji-node init; " + initAs("web2", "--index 0"), "jiji-node server add /run/web2.json", typedWrong, "subnet 10.210.0.0/24|\"web2\"|\"web1\"|on server \"web2\", run `jiji-node init --index 1`"},
		{"DuplicateKey", "jiji-node init; " + initAs("web2", "--index 1") + "; jiji-node server add /run/web2.json",
			`sed -i 's/10\.210\.1\./10.210.2./; s/"web2"/"web3"/' /run/web2.json; jiji-node server add /run/web2.json`, typedWrong, "\"web2\"|10.210.1.0/24|10.210.2.0/24|`jiji-node init --index 1`"},
		{"FullCluster", "jiji-node init --cluster-cidr 10.77.3.0/24; " + initAs("web2", "--cluster-cidr 10.77.3.0/24"), "jiji-node server add /run/web2.json", refused, "10.77.3.0/24|\"web2\"|\"web1\"|no server subnet is free|all 1 are taken"},
		{"FullClusterByLowestFree", "jiji-node init --cluster-cidr 10.77.3.0/24; " + initAs("web2", "--cluster-cidr 10.77.3.0/24") + `; sed -i 's/"10.77[^"]*"/""/; s/"clusterCidr": ""/"clusterCidr": "10.77.3.0\/24"/' /run/web2.json`,
			"jiji-node server add /run/web2.json", refused, "10.77.3.0/24|no server subnet is free|all 1 are taken"},
		{"IndexOutsideTheCluster", "jiji-node init", "jiji-node init --index 256", typedWrong, "subnet number 256|10.210.0.0/16|0 to 255"},

		{"NetworkFileMissing", "", "jiji-node run --network /run/network.json", typedWrong, "/run/network.json: no such file|--network"},
		{"NetworkFileBadJSON", "jiji-node init; cp " + stateFile + " /run/network.json; sed -i '4s/,$//' /run/network.json", "jiji-node run --network /run/network.json", typedWrong, "/run/network.json:5:5: invalid character"},
		{"NetworkFileWithoutThisMachine", "jiji-node init; mv " + stateFile + " /run/network.json; rm " + keyFile, "jiji-node run --network /run/network.json", typedWrong, "/run/network.json|public key|`jiji-node init`"},
		{"NetworkFileWithDuplicates", "jiji-node init; " + initAs("web2", "--index 1") + "; jiji-node server add /run/web2.json; sed 's/10\\.210\\.1\\./10.210.0./' " + stateFile + " >/run/network.json",
			"jiji-node run --network /run/network.json", typedWrong, "/run/network.json:21:19:|\"web2\"|\"web1\"|10.210.0.0/24"},
		{"NetworkFileIsAnEntry", "jiji-node init >/run/web1.json", "jiji-node run --network /run/web1.json", typedWrong, "/run/web1.json:1:1:|server's entry|`jiji-node server add`"},
		{"NetworkFileOfAnotherCluster", "jiji-node init; sed 's/10\\.210/10.211/' " + stateFile + " >/run/network.json", "jiji-node run --network /run/network.json", typedWrong, "/run/network.json|10.211.0.0/16|10.210.0.0/16|" + stateFile},
		{"ClusterOfAnotherNetwork", "jiji-node init", "jiji-node run --cluster-cidr 10.99.0.0/16", typedWrong, "10.99.0.0/16|10.210.0.0/16|" + stateFile},
		{"DomainOfAnotherNetwork", "jiji-node init", "jiji-node run --domain mesh", typedWrong, `"mesh"|"jiji"|` + stateFile},

		{"NoTUN", "mount -t tmpfs none /dev/net", "jiji-node run", refused, "/dev/net/tun: no such file|`modprobe tun`|--device /dev/net/tun"},
		{"NoCapability", "", "setpriv --bounding-set -net_admin --inh-caps -net_admin jiji-node run", refused, "CAP_NET_ADMIN is missing|run as root|--cap-add NET_ADMIN"},
		{"NotRoot", "", "setpriv --reuid 65534 --clear-groups jiji-node run", refused, "/var/lib/jiji: permission denied|run as root"},
		{"StateOfRoot", "jiji-node init", "setpriv --reuid 65534 --clear-groups jiji-node run", refused, "/var/lib/jiji/lock: permission denied|run as root"},
		{"InterfaceIsABridge", "ip link add jiji0 type bridge", "jiji-node run", refused, "interface jiji0 exists already, of type bridge|`ip link delete jiji0`|--interface"},
		{"InterfaceIsAPersistentTUN", "ip tuntap add mode tun name jiji0", "jiji-node run", refused, "interface jiji0 exists already, as a TUN device|`ip link delete jiji0`|--interface"},
		{"UnderlayTooNarrow", "ip link set eth0 mtu 1279", "jiji-node run", refused, "1279|eth0|1280|--mtu"},
		{"CorruptRegistry", "jiji-node init; head -c 20000 /dev/urandom >/var/lib/jiji/registry.db", "jiji-node run", refused, "/var/lib/jiji/registry.db|damaged|move it away"},
		{"StateIsReadOnly", "jiji-node init; mount --bind /var/lib/jiji /var/lib/jiji; mount -o remount,bind,ro /var/lib/jiji", "jiji-node run", refused, "/var/lib/jiji/lock: read-only file system"},
		{"RuntimeDirectoryIsReadOnly", "mkdir /run/jiji; mount -t tmpfs -o ro none /run/jiji", "jiji-node run", refused, "/run/jiji/node.sock|read-only file system"},
		{"DiskIsFull", "mkdir -m 700 /var/lib/jiji; mount -t tmpfs -o mode=700,size=1m none /var/lib/jiji; jiji-node init; cat /dev/zero >/var/lib/jiji/fill", "jiji-node run", refused, "/var/lib/jiji/|no space left on device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			if c.prepare != "" {
				s.Try("sh", "-c", c.prepare) // a command of it may have to fail: cat to a full disk
			}
			isRefused(t, s, c.code, c.want, "sh", "-c", c.command)
		})
	}

	t.Run("OverlapWithTheLAN", overlapWithTheLAN)
	t.Run("TakenPorts", takenPorts)
	t.Run("InterfaceOfAnotherProcess", interfaceOfAnotherProcess)
	t.Run("SecondInstance", secondInstance)
	t.Run("DiskFillsUp", diskFillsUp)
	t.Run("DiskIsFullOfAKnownNode", diskIsFullOfAKnownNode)
	t.Run("StateDirectoryOfAll", stateDirectoryOfAll)
	t.Run("NoIPv6", noIPv6)
	t.Run("UnknownVariable", unknownVariable)
	t.Run("NetworkDisabled", networkDisabled)
	t.Run("WhileRunning", wrongWhileRunning)
}

// newServer makes a server, alone on a network.
func newServer(t *testing.T) *lab.Server {
	t.Helper()
	l := lab.New(t)
	lab.Binary(t) // for the commands that a shell runs
	s := l.Server("web1").On(l.Network("lan", "192.0.2.0/24"))
	state := ""
	lab.Eventually(t, 10*time.Second, "the kernel is done with eth0", func() error {
		was := state
		if state = hostState(s); state != was || !strings.Contains(state, "inet6 fe80:") {
			return errors.New(difference(was, state))
		}
		return nil
	})
	return s
}

// initAs is a command that makes the entry of another server, /run/NAME.json.
func initAs(name, flags string) string {
	return fmt.Sprintf("jiji-node init --state-dir /run/%[1]s --runtime-dir /run/%[1]s --name %[1]s --endpoint 192.0.2.99 %[2]s >/run/%[1]s.json", name, flags)
}

// isRefused runs a command that has to be refused with an exit code and one line, which
// has all parts of want, and to change nothing on the host.
func isRefused(t *testing.T, s *lab.Server, code int, want, name string, args ...string) {
	t.Helper()
	host, state := hostState(s), stateFiles(s)
	line := oneLine(t, code, func() (string, error) { return s.Try(name, args...) })
	for part := range strings.SplitSeq(want, "|") {
		if !strings.Contains(line, part) {
			t.Errorf("the error is\n\t%s\nand lacks %s", line, part)
		}
	}
	if diff := difference(host, hostState(s)); diff != "" {
		t.Errorf("changed on the host:\n%s", diff)
	}
	if diff := difference(state, stateFiles(s)); diff != "" {
		t.Errorf("changed of the state:\n%s", diff)
	}
}

// oneLine returns the error that a command ends with: one line, with nothing else said
// but what it logged as it went.
func oneLine(t *testing.T, code int, run func() (string, error)) string {
	t.Helper()
	out, err := run()
	var failed *lab.CommandError
	if !errors.As(err, &failed) {
		t.Fatalf("it succeeded: %s", out)
	}
	if failed.Code != code {
		t.Errorf("exit code %d, want %d: %v", failed.Code, code, err)
	}
	if failed.Stdout != "" {
		t.Errorf("on standard output: %s", failed.Stdout)
	}
	var lines []string
	for line := range strings.Lines(failed.Stderr) {
		if !strings.HasPrefix(line, "time=") || !strings.Contains(line, " level=INFO ") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "jiji-node: ") {
		t.Fatalf("want one line, have %d: %v", len(lines), err)
	}
	return strings.TrimPrefix(lines[0], "jiji-node: ")
}

// hostState is what a node changes on its host, and all of /etc.
func hostState(s *lab.Server) string {
	return s.Run("sh", "-c", `ip -o addr; ip rule; ip route show table all; ip -6 route show table all
		grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf
		nft -s list ruleset; find /etc -xdev -printf '%p %M %s %T@\n'; find /run -type s`)
}

// stateFiles is what nodes keep on their host, and where.
func stateFiles(s *lab.Server) string {
	return s.Run("sh", "-c", `find /var/lib -printf '%p %y %m\n'; find /var/lib -type f ! -name fill -exec sha256sum {} +`)
}

func networkFile(s *lab.Server) string {
	b, err := os.ReadFile(s.Path(stateFile))
	if err != nil {
		return "none\n"
	}
	return string(b)
}

// difference shows the lines that only one of two texts has.
func difference(was, is string) (text string) {
	lines := map[string]int{}
	for line := range strings.Lines(was) {
		lines[line]--
	}
	for line := range strings.Lines(is) {
		lines[line]++
	}
	for line, n := range lines {
		if n != 0 {
			text += fmt.Sprintf("%+d %s", n, line)
		}
	}
	return text
}

// The cluster CIDR that is refused does not stick: another one is fine at once.
func overlapWithTheLAN(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.9")
	for range 2 {
		isRefused(t, s, refused, "cluster CIDR 10.210.0.0/16|route 10.0.0.0/8 via 192.0.2.9 dev eth0|--cluster-cidr or JIJI_CLUSTER_CIDR, such as 172.16.0.0/16", "jiji-node", "run")
	}
	isRefused(t, s, refused, "cluster CIDR 10.77.0.0/16|10.0.0.0/8", "jiji-node", "run", "--cluster-cidr", "10.77.0.0/16")
	isRefused(t, s, refused, "cluster CIDR 192.0.0.0/16|address 192.0.2.1/24 of eth0", "jiji-node", "run", "--cluster-cidr", "192.0.0.0/16")
	node := s.Start("run", "--cluster-cidr", "172.16.0.0/16")
	node.WaitReady()
	if st := status(t, s); st.Cluster.String() != "172.16.0.0/16" || st.Server.WireGuardIP.String() != "172.16.0.1" {
		t.Errorf("cluster %s, address %s", st.Cluster, st.Server.WireGuardIP)
	}
	node.Stop()
	node = s.Start("run") // it has become the machine's
	node.WaitReady()
	node.Stop()
}

// holdPorts is a program that takes ports, each "udp 0.0.0.0 53", until it is ended.
const holdPorts = `
import os, socket, sys, time
held = []
for arg in sys.argv[1:]:
    kind, address, port = arg.split()
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    s.bind((address, int(port)))
    if kind == "tcp": s.listen()
    held.append(s)
print("holds as", os.getpid(), flush=True)
time.sleep(600)
`

// spawnHolder runs a Python program that says "holds as PID", and returns what a node
// on the server calls it.
func spawnHolder(s *lab.Server, program string, args ...string) (*lab.Process, string) {
	p := s.Spawn("python3", append([]string{"-c", program}, args...)...)
	p.WaitLog("\n", 20*time.Second)
	return p, fmt.Sprintf("python3 (pid %s", strings.TrimSpace(strings.TrimPrefix(p.Log(), "holds as ")))
}

func takenPorts(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, c := range []struct{ hold, want string }{
		{"udp 0.0.0.0 51820", "port 51820/udp|expected free|--listen-port"},
		{"udp :: 51820", "port 51820/udp|expected free|--listen-port"},
		{"udp 192.0.2.1 51820", "port 51820/udp|(192.0.2.1:51820)|--listen-port"},
		{"udp 0.0.0.0 53", "port 53/udp on 10.210.0.1|(0.0.0.0:53)|expected free|--dns-port"},
		{"tcp 0.0.0.0 53", "port 53/tcp on 10.210.0.1|(0.0.0.0:53)|expected free|--dns-port"},
		{"tcp :: 53", "port 53/tcp on 10.210.0.1|([::]:53)|expected free|--dns-port"},
	} {
		holder, name := spawnHolder(s, holdPorts, c.hold)
		isRefused(t, s, refused, "is taken by "+name+"|"+c.want, "jiji-node", "run")
		holder.Kill9()
	}
	// A stub resolver on a loopback address is no obstacle.
	holder, _ := spawnHolder(s, holdPorts, "udp 127.0.0.53 53", "tcp 127.0.0.53 53")
	node := s.Start("run")
	node.WaitReady()
	node.Stop()
	holder.Kill9()
}

const holdTUN = `
import fcntl, os, struct, time
tun = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH22x", b"jiji0", 0x1001)) # TUNSETIFF: IFF_TUN | IFF_NO_PI
print("holds as", os.getpid(), flush=True)
time.sleep(600)
`

func interfaceOfAnotherProcess(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	holder, name := spawnHolder(s, holdTUN)
	isRefused(t, s, refused, "interface jiji0 exists already, as a TUN device of "+name+"|expected none|--interface", "jiji-node", "run")
	holder.Kill9()
	node := s.Start("run")
	node.WaitReady()
	node.Stop()
}

// There is one node on a machine, whatever directories and ports a second one is given.
func secondInstance(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	first := s.Start("run")
	first.WaitReady()
	pid := fmt.Sprint(status(t, s).PID)
	other := []string{"run", "--state-dir", "/var/lib/other", "--runtime-dir", "/run/other", "--listen-port", "51821", "--dns-port", "5353"}
	isRefused(t, s, refused, "state directory /var/lib/jiji is in use by process "+pid+"|--state-dir", "jiji-node", "run")
	isRefused(t, s, refused, "state directory /var/lib/jiji is in use by process "+pid, "jiji-node", "run", "--runtime-dir", "/run/other")
	another := "jiji-node (pid " + pid + ") is another node on this machine|expected none beside this one|stop that process|holds "
	isRefused(t, s, refused, another+"interface jiji0", "jiji-node", other...)
	isRefused(t, s, refused, another+"interface jiji0", "jiji-node", append(other, "--interface", "jiji1", "--cluster-cidr", "10.211.0.0/16")...)
	isRefused(t, s, refused, another+"|interface jiji0|port 51820/udp|port 53/tcp on 10.210.0.1", "jiji-node", "run", "--state-dir", "/var/lib/other", "--runtime-dir", "/run/other")
	if first.Ended() {
		t.Error("the first node ended")
	}
	first.Stop()

	socket, err := net.Listen("unix", s.Path("/run/jiji/node.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	isRefused(t, s, refused, "is another node on this machine|control socket /run/jiji/node.sock", "jiji-node", "run")
}

// A disk that is full sooner or later is named, and with more room the same start goes on
// with the same key.
func diskFillsUp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("mkdir", "-m", "700", "/var/lib/jiji")
	s.Run("mount", "-t", "tmpfs", "-o", "mode=700,size=4k", "none", "/var/lib/jiji")
	key := ""
	for _, size := range []string{"4k", "8k", "12k", "16k", "24k", "40k", "64k"} {
		s.Run("mount", "-o", "remount,size="+size, "/var/lib/jiji")
		before := hostState(s)
		line := oneLine(t, refused, func() (string, error) { return s.Try("jiji-node", "run") })
		if !strings.Contains(line, "/var/lib/jiji/") || !strings.Contains(line, "full") && !strings.Contains(line, "no space left on device") {
			t.Errorf("with %s: %s", size, line)
		}
		if diff := difference(before, hostState(s)); diff != "" {
			t.Errorf("with %s, changed on the host:\n%s", size, diff)
		}
		if b, err := os.ReadFile(s.Path(keyFile)); err == nil {
			if key == "" {
				key = string(b)
			}
			if string(b) != key {
				t.Errorf("with %s, the key was replaced", size)
			}
		}
	}
	s.Run("mount", "-o", "remount,size=2m", "/var/lib/jiji")
	node := s.Start("run")
	node.WaitReady()
	if key == "" || s.ReadFile(keyFile) != key {
		t.Error("with room, the key is not the one that was stored first")
	}
	node.Stop()
}

// A machine that ran before runs on a full disk, whatever way it was stopped; it says
// so, and refuses what it could not keep. Down takes all of it off the host.
func diskIsFullOfAKnownNode(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("mkdir", "-m", "700", "/var/lib/jiji")
	s.Run("mount", "-t", "tmpfs", "-o", "mode=700,size=2m", "none", "/var/lib/jiji")
	before := wholeState(s)
	s.Run("sh", "-c", initAs("web2", "--index 1")+"; jiji-node init; jiji-node server add /run/web2.json")
	node := s.Start("run")
	node.WaitReady()
	s.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
	for _, end := range []func(){node.Stop, func() { node.Kill9() }} {
		end()
		s.Try("sh", "-c", "cat /dev/zero >/var/lib/jiji/fill")
		state := stateFiles(s)
		node = s.Start("run")
		node.WaitReady()
		const full = "the disk of /var/lib/jiji is full: services stay as they were registered; free space there and restart jiji-node"
		st := status(t, s)
		if len(st.Warnings) != 1 || st.Warnings[0] != full || len(st.Peers) != 1 || st.State != "ready" {
			t.Errorf("state %s, warnings %q, peers %v", st.State, st.Warnings, st.Peers)
		}
		if got := strings.TrimSpace(s.Run("dig", "@10.210.0.1", "+short", "api.jiji")); got != "10.210.0.10" {
			t.Errorf("api.jiji is %q", got)
		}
		isRefused(t, s, refused, "register container: "+full, "jiji-node", "service", "register", "db", "--ip", "10.210.0.11")
		s.Run("sh", "-c", initAs("web3", "--index 2"))
		isRefused(t, s, refused, stateFile+"|no space left on device", "jiji-node", "server", "add", "/run/web3.json")
		if log := node.Log(); strings.Contains(log, "level=ERROR") {
			t.Errorf("it logged\n%s", log)
		}
		for line := range strings.Lines(state) { // the lock names another process
			if !strings.HasSuffix(line, "/lock\n") && !strings.Contains(stateFiles(s), line) {
				t.Errorf("changed of the state: %s", line)
			}
		}
	}
	node.Kill9()
	s.Run("jiji-node", "down")
	sameState(t, "down on a full disk", before, wholeState(s))
	s.Run("rm", "/var/lib/jiji/fill")
	node = s.Start("run")
	node.WaitReady()
	s.Run("jiji-node", "service", "register", "db", "--ip", "10.210.0.11")
	if st := status(t, s); len(st.Warnings) != 0 {
		t.Errorf("warnings %q", st.Warnings)
	}
	node.Stop()
}

// A volume of an orchestrator may be open to all: the node runs, and says so.
func stateDirectoryOfAll(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("sh", "-c", "mkdir /var/lib/jiji; chmod 777 /var/lib/jiji")
	const want = "state directory /var/lib/jiji has mode 0777, so others than its owner can replace what is in it, the private key too: chmod go-w /var/lib/jiji"
	if out := s.Run("jiji-node", "run", "--check"); !strings.Contains(out, want) {
		t.Errorf("run --check:\n%s", out)
	}
	s.Setenv("WATCHDOG_USEC", "often")
	node := s.Start("run")
	node.WaitReady()
	if st := status(t, s); len(st.Warnings) != 1 || st.Warnings[0] != want {
		t.Errorf("warnings %q", st.Warnings)
	}
	node.WaitLog("watchdog's interval cannot be read", 5*time.Second)
	s.Run("chmod", "700", "/var/lib/jiji")
	node.Stop()
}

// Without IPv6 the node runs, and says what is missing.
func noIPv6(t *testing.T) {
	t.Parallel()
	for _, scope := range []string{"all", "default"} {
		t.Run(scope, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			sysctl := "net.ipv6.conf." + scope + ".disable_ipv6=1"
			s.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6")
			s.Run("sh", "-c", initAs("web2", "--index 1")+"; jiji-node init; jiji-node server add /run/web2.json")
			node := s.Start("run")
			node.WaitReady()
			if log := node.Log(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, sysctl) || strings.Contains(log, "level=ERROR") {
				t.Errorf("want one warning, about %s:\n%s", sysctl, log)
			}
			st := status(t, s)
			if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], sysctl) || !strings.Contains(st.Warnings[0], "without a management address") {
				t.Errorf("warnings %q", st.Warnings)
			}
			if out := s.Run("jiji-node", "status"); !strings.Contains(out, "warning    IPv6 is off") {
				t.Errorf("status:\n%s", out)
			}
			s.Run("ping", "-n", "-c1", "-W2", "10.210.0.1")
			if got := strings.TrimSpace(s.Run("dig", "@10.210.0.1", "+short", "web1.node.jiji")); got != "10.210.0.1" {
				t.Errorf("web1.node.jiji is %q", got)
			}
			node.Stop()
		})
	}
}

// What orchestrators put into the environment stops nobody.
func unknownVariable(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Setenv("JIJI_CLUSTER_CDIR", "10.77.0.0/16")
	s.Setenv("JIJI_SERVICE_HOST", "10.0.0.1")
	node := s.Start("run")
	node.WaitReady()
	for _, want := range []string{
		"environment JIJI_CLUSTER_CDIR: no such setting, ignored (did you mean JIJI_CLUSTER_CIDR?)",
		"environment JIJI_SERVICE_HOST: no such setting, ignored",
	} {
		if !strings.Contains(node.Log(), "level=WARN msg=\""+want) {
			t.Errorf("the log lacks %s:\n%s", want, node.Log())
		}
	}
	if got := status(t, s).Cluster.String(); got != "10.210.0.0/16" {
		t.Errorf("cluster %s", got)
	}
	node.Stop()
}

// JIJI_NETWORK_ENABLED=false: ready, said so, done; and nothing is touched.
func networkDisabled(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Setenv("JIJI_NETWORK_ENABLED", "false")
	before := hostState(s)
	node := s.Start("run")
	node.WaitReady()
	if code := node.Wait(5 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if log := node.Log(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "network disabled") || !strings.Contains(log, "environment JIJI_NETWORK_ENABLED") {
		t.Errorf("it logged\n%s", log)
	}
	if diff := difference(before, hostState(s)); diff != "" {
		t.Errorf("changed on the host:\n%s", diff)
	}
	if _, err := os.Stat(s.Path("/var/lib/jiji")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory was made (%v)", err)
	}
}

// A running node refuses the same input by the same words, and goes on.
func wrongWhileRunning(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Run("sh", "-c", initAs("web2", "--index 1")+";"+initAs("web3", "--index 0")+"; jiji-node init")
	node := s.Start("run")
	node.WaitReady()
	s.Run("jiji-node", "server", "add", "/run/web2.json")
	good := networkFile(s)
	lab.Eventually(t, 10*time.Second, "web2 has its routes", func() error {
		if routes := s.Run("sh", "-c", "ip route show dev jiji0 proto 86; ip -6 route show dev jiji0 proto 86"); strings.Count(routes, "\n") != 2 {
			return errors.New(routes)
		}
		return nil
	})

	isRefused(t, s, typedWrong, "subnet 10.210.0.0/24|\"web3\"|\"web1\"|--index 2", "jiji-node", "server", "add", "/run/web3.json")
	isRefused(t, s, typedWrong, "--import|stop it first", "jiji-node", "init", "--import", "/run/wg.conf")
	isRefused(t, s, typedWrong, "10.210.7.0/24|10.210.0.0/24|stop it first", "jiji-node", "init", "--index", "7")
	isRefused(t, s, typedWrong, "--cluster-cidr: 10.99.0.0/16|10.210.0.0/16", "jiji-node", "init", "--cluster-cidr", "10.99.0.0/16")
	isRefused(t, s, typedWrong, `--domain: "mesh"|"jiji"`, "jiji-node", "init", "--domain", "mesh")
	isRefused(t, s, typedWrong, "--cluster-cidr|host bits", "jiji-node", "init", "--cluster-cidr", "10.210.0.1/16")

	// The file on the disk is edited, and wrong: named, and the last good one stays in force.
	for _, c := range []struct{ text, want string }{
		{strings.Replace(good, `"discovery"`, `discovery`, 1), stateFile + ":5:5: invalid character"},
		{strings.ReplaceAll(good, "10.210.1.", "10.210.0."), "\"web2\" has the subnet of server \"web1\": 10.210.0.0/24"},
		{"", stateFile + ":1:1: unexpected end"},
	} {
		replaceFile(t, s, stateFile, c.text)
		lab.Eventually(t, 5*time.Second, "a warning in status", func() error {
			st, err := tryStatus(t, s)
			if err == nil && (len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], c.want) || len(st.Peers) != 1) {
				err = fmt.Errorf("warnings %q, %d peers, want %s", st.Warnings, len(st.Peers), c.want)
			}
			return err
		})
	}
	replaceFile(t, s, stateFile, good)
	lab.Eventually(t, 5*time.Second, "the warning ends", func() error {
		if st, err := tryStatus(t, s); err != nil || len(st.Warnings) != 0 {
			return fmt.Errorf("warnings %q, %v", st.Warnings, err)
		}
		return nil
	})
	if got := networkFile(s); got != good {
		t.Errorf("%s:\n%s", stateFile, difference(good, got))
	}
	node.Stop()
}
