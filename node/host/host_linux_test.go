package host

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace puts the test's thread into a network of its own, with an empty
// /etc/sysctl.d; the thread ends with the test.
func namespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Skipf("needs leave to make namespaces: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/etc/sysctl.d", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	ip(t, "link set lo up")
}

// ip runs each line as a command of ip(8), in the thread's namespace.
func ip(t *testing.T, lines ...string) string {
	t.Helper()
	var all bytes.Buffer
	for _, line := range lines {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

func words(changes []Change) (out []string) {
	for _, c := range changes {
		out = append(out, c.What)
	}
	return out
}

func mustApply(t *testing.T, w Wanted, want ...string) {
	t.Helper()
	got, err := Apply(w)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(words(got), want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(words(got), "\n"), strings.Join(want, "\n"))
	}
}

func TestApply(t *testing.T) {
	namespace(t)
	ip(t,
		"link add jiji0 type veth peer name far0", "link set far0 up", "link set jiji0 up mtu 1440",
		"addr add 10.210.1.1/32 dev jiji0", "addr add fdcc:1::1/128 dev jiji0 nodad",
		"link add eth1 type veth peer name far1", "link set far1 up", "link set eth1 up", "addr add 192.168.7.1/24 dev eth1",
	)
	w := Wanted{Link: "jiji0", Forwarding: true, Routes: []Route{
		{Dst: netip.MustParsePrefix("10.210.2.0/24"), Src: netip.MustParseAddr("10.210.1.1")},
		{Dst: netip.MustParsePrefix("10.210.3.0/24"), Src: netip.MustParseAddr("10.210.1.1"), MTU: 1300},
		{Dst: netip.MustParsePrefix("fdcc:2::2/128"), Src: netip.MustParseAddr("fdcc:1::1"), MTU: 1300},
	}}
	mustApply(t, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 added",
		"route 10.210.3.0/24 dev jiji0 src 10.210.1.1 mtu 1300 added",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 added",
		"net.ipv4.ip_forward set to 1, was 0",
		"/etc/sysctl.d/90-jiji.conf written: net.ipv4.ip_forward=1 after a boot",
		"net.ipv4.conf.jiji0.send_redirects set to 0, was 1",
	)
	mustApply(t, w)
	if got := ip(t, "route show proto 86"); strings.Count(got, "\n") != 2 {
		t.Errorf("ip route show proto 86:\n%s", got)
	}

	ip(t, "route del 10.210.2.0/24")
	ip(t, "-6 route del fdcc:2::2/128")
	mustApply(t, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 added",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 added",
	)
	ip(t, "route change 10.210.2.0/24 dev jiji0 proto static", "-6 route change fdcc:2::2/128 dev jiji0 proto 86 mtu 1400")
	mustApply(t, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 put in place of 10.210.2.0/24 dev jiji0 proto static metric 0",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 put in place of fdcc:2::2/128 dev jiji0 mtu 1400",
	)
	mustApply(t, w)

	// What others have on our link or elsewhere stays, with one of ours taken back.
	ip(t, "route add 10.99.0.0/16 dev jiji0", "route add 10.98.0.0/16 dev eth1 proto 86")
	w.Routes = w.Routes[:2]
	mustApply(t, w, "route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 removed")
	if got := ip(t, "route show"); !strings.Contains(got, "10.99.0.0/16 dev jiji0") || !strings.Contains(got, "10.98.0.0/16 dev eth1") {
		t.Errorf("ip route show:\n%s", got)
	}
	mustApply(t, Wanted{Link: "jiji0"},
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 removed",
		"route 10.210.3.0/24 dev jiji0 src 10.210.1.1 mtu 1300 removed",
	)
}

func TestApplyKeepsForeignRoutes(t *testing.T) {
	namespace(t)
	ip(t,
		"link add jiji0 type veth peer name far0", "link set far0 up", "link set jiji0 up",
		"link add eth1 type veth peer name far1", "link set far1 up", "link set eth1 up", "addr add 192.168.7.1/24 dev eth1",
		"route add 10.210.2.0/24 via 192.168.7.9",
		"route add 10.210.3.0/24 via 192.168.7.9 metric 50",
		"-6 route add fdcc:2::2/128 dev eth1 metric 10",
	)
	w := Wanted{Link: "jiji0", Routes: []Route{
		{Dst: netip.MustParsePrefix("10.210.2.0/24")},
		{Dst: netip.MustParsePrefix("10.210.3.0/24")},
		{Dst: netip.MustParsePrefix("fdcc:2::2/128")},
	}}
	got, err := Apply(w)
	want := []string{
		"route 10.210.3.0/24 dev jiji0 added, ahead of 10.210.3.0/24 via 192.168.7.9 dev eth1 proto boot metric 50",
		"route fdcc:2::2/128 dev jiji0 added",
	}
	if !slices.Equal(words(got), want) {
		t.Errorf("changes %q, want %q", words(got), want)
	}
	for _, part := range []string{
		"route 10.210.2.0/24 dev jiji0: a route that is not ours has this prefix: 10.210.2.0/24 via 192.168.7.9 dev eth1 proto boot metric 0",
		"route fdcc:2::2/128 dev jiji0: a route that is not ours has this prefix: fdcc:2::2/128 dev eth1 proto boot metric 10",
	} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v\nwant %s", err, part)
		}
	}
	if got := ip(t, "route show 10.210.2.0/24", "route show 10.210.3.0/24"); strings.Count(got, "eth1") != 2 {
		t.Errorf("foreign routes are gone:\n%s", got)
	}
	ip(t, "route del 10.210.2.0/24", "-6 route del fdcc:2::2/128 dev eth1")
	mustApply(t, w, "route 10.210.2.0/24 dev jiji0 added")
}

func TestApplyWithoutLink(t *testing.T) {
	namespace(t)
	_, err := Apply(Wanted{Link: "jiji0"})
	if err == nil || err.Error() != "set routes: interface jiji0 does not exist" {
		t.Errorf("error %v", err)
	}
}

func TestWatch(t *testing.T) {
	namespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	fired := make(chan struct{}, 100)
	// The thread that watches must be this one, so what happens comes from a child.
	script := exec.Command("sh", "-c", "while :; do ip link add d0 type bridge; ip link del d0; sleep 0.3; done")
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 2 {
			select {
			case <-fired:
			case <-time.After(20 * time.Second):
				t.Error("no event in 20 s")
			}
		}
		cancel()
	}()
	if err := Watch(ctx, func() { fired <- struct{}{} }); err != nil {
		t.Error(err)
	}
	script.Process.Kill()
	script.Wait()
}

func TestReadNetwork(t *testing.T) {
	namespace(t)
	ip(t,
		"link add eth0 type veth peer name far0", "link set eth0 up mtu 1400", "link set far0 up",
		"addr add 203.0.113.5/24 dev eth0", "addr add 2001:db8::5/64 dev eth0 nodad",
		"addr add 2001:db8::6/64 dev eth0 nodad preferred_lft 0",
		"route add default via 203.0.113.1",
		"link add jiji-br0 type bridge", "link set jiji-br0 up", "addr add 10.210.1.1/24 dev jiji-br0",
		"link add c1 type veth peer name c1in", "link set c1 master jiji-br0 up",
		"route add table 77 10.0.0.0/8 via 203.0.113.9", "rule add to 10.0.0.0/8 lookup 77",
		"route add table 78 10.0.0.0/8 via 203.0.113.9",
		"route add unreachable 10.210.0.0/16 metric 9999",
	)
	n, err := ReadNetwork()
	if err != nil {
		t.Fatal(err)
	}
	ups := n.Uplinks()
	if len(ups) != 1 || ups[0].Name != "eth0" || ups[0].MTU != 1400 || !ups[0].Default || len(ups[0].Addrs) != 4 {
		t.Errorf("uplinks %+v", ups)
	}
	if got, want := fmt.Sprint(Endpoints(51820, n.Links)), "[203.0.113.5:51820 [2001:db8::5]:51820]"; got != want {
		t.Errorf("endpoints %s, want %s", got, want)
	}
	tables := map[int]int{}
	for _, r := range n.Routes {
		tables[r.Table]++
	}
	if tables[77] != 1 || tables[78] != 0 || tables[unix.RT_TABLE_LOCAL] != 0 {
		t.Errorf("routes by table: %v", tables)
	}

	c := NewClasses("jiji0")
	if c.Answer(1) {
		t.Error("answers before the first Refresh")
	}
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	for _, l := range n.Links {
		if got, want := c.Answer(l.Index), l.Name == "lo" || l.Name == "jiji-br0"; got != want {
			t.Errorf("Answer(%s) = %v", l.Name, got)
		}
	}
}

func TestObserveNamesOwners(t *testing.T) {
	namespace(t)
	ip(t, "addr add 10.210.1.1/32 dev lo") // so that the child may listen there
	child := exec.Command(os.Args[0], "-test.run=^TestHoldPorts$")
	child.Env = append(os.Environ(), "HOLD=udp4 0.0.0.0:51820,udp6 [::]:53,tcp4 10.210.1.1:53")
	stdin, _ := child.StdinPipe()
	stdout, _ := child.StdoutPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer stdin.Close()
	ready := make([]byte, 6)
	if _, err := stdout.Read(ready); err != nil {
		t.Fatal(err)
	}
	w := Want{Link: "jiji0", ListenPort: 51820, WireGuardIP: netip.MustParseAddr("10.210.1.1"), DNSPort: 53}
	f, err := Observe(w)
	if err != nil {
		t.Fatal(err)
	}
	f.TUN, f.IPv6Off = nil, ""
	owner := fmt.Sprintf("host.test (pid %d", child.Process.Pid)
	var got []string
	for _, p := range Check(f, w) {
		got = append(got, p.Text)
		if p.Kind != KindPort || !strings.Contains(p.Text, owner) {
			t.Errorf("problem %q, want owner %s", p.Text, owner)
		}
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "port 51820/udp is taken by ") || !strings.HasPrefix(got[1], "port 53/tcp on 10.210.1.1 is taken by ") {
		t.Errorf("problems %q; an IPv6-only wildcard on port 53 is none", got)
	}
}

// TestHoldPorts is the child of TestObserveNamesOwners.
func TestHoldPorts(t *testing.T) {
	hold := os.Getenv("HOLD")
	if hold == "" {
		t.Skip("is run by TestObserveNamesOwners")
	}
	for item := range strings.SplitSeq(hold, ",") {
		network, address, _ := strings.Cut(item, " ")
		var err error
		if strings.HasPrefix(network, "udp") {
			_, err = net.ListenPacket(network, address)
		} else {
			_, err = net.Listen(network, address)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}
