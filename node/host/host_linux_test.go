package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/node/host/journal"
)

func init() { runtime.LockOSThread() } // keeps tests, and their namespaces, off the main thread

func TestMain(m *testing.M) {
	if hold := os.Getenv("HOLD"); hold != "" { // this is a child of holdPorts
		for item := range strings.SplitSeq(hold, ",") {
			network, address, _ := strings.Cut(item, " ")
			var err error
			if strings.HasPrefix(network, "udp") {
				_, err = net.ListenPacket(network, address)
			} else {
				_, err = net.Listen(network, address)
			}
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println("ready")
		os.Stdin.Read(make([]byte, 1))
		return
	}
	os.Exit(m.Run())
}

// namespace puts the test's thread into a network of its own, with an empty
// /etc; the thread ends with the test.
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
	if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""); err != nil {
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

// newKeeper returns one with a journal of its own.
func newKeeper(t *testing.T) *Keeper {
	t.Helper()
	j, err := journal.Open(filepath.Join(t.TempDir(), journal.FileName))
	if err != nil {
		t.Fatal(err)
	}
	return NewKeeper(j)
}

func mustApply(t *testing.T, k *Keeper, w Wanted, want ...string) {
	t.Helper()
	got, err := k.Apply(w, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(words(got), want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(words(got), "\n"), strings.Join(want, "\n"))
	}
}

func TestApply(t *testing.T) {
	namespace(t)
	k := newKeeper(t)
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
	mustApply(t, k, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 added",
		"route 10.210.3.0/24 dev jiji0 src 10.210.1.1 mtu 1300 added",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 added",
		"net.ipv4.ip_forward set to 1, was 0",
		"/etc/sysctl.d/90-jiji.conf written",
		"net.ipv4.conf.jiji0.send_redirects set to 0, was 1",
	)
	mustApply(t, k, w)
	if got := ip(t, "route show proto 86"); strings.Count(got, "\n") != 2 {
		t.Errorf("ip route show proto 86:\n%s", got)
	}

	ip(t, "route del 10.210.2.0/24")
	ip(t, "-6 route del fdcc:2::2/128")
	mustApply(t, k, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 was gone, added again",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 was gone, added again",
	)
	ip(t, "route change 10.210.2.0/24 dev jiji0 proto static", "-6 route change fdcc:2::2/128 dev jiji0 proto 86 mtu 1400")
	mustApply(t, k, w,
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 put in place of 10.210.2.0/24 dev jiji0 proto static metric 0",
		"route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 put in place of fdcc:2::2/128 dev jiji0 mtu 1400",
	)
	mustApply(t, k, w)

	if err := os.WriteFile("/proc/sys/net/ipv4/conf/jiji0/forwarding", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	mustApply(t, k, w, "net.ipv4.conf.jiji0.forwarding set to 1, was 0")

	// What others have on our link or elsewhere stays, with one of ours taken back.
	ip(t, "route add 10.99.0.0/16 dev jiji0", "route add 10.98.0.0/16 dev eth1 proto 86")
	w.Routes = w.Routes[:2]
	mustApply(t, k, w, "route fdcc:2::2/128 dev jiji0 src fdcc:1::1 mtu 1300 removed")
	if got := ip(t, "route show"); !strings.Contains(got, "10.99.0.0/16 dev jiji0") || !strings.Contains(got, "10.98.0.0/16 dev eth1") {
		t.Errorf("ip route show:\n%s", got)
	}
	mustApply(t, k, Wanted{Link: "jiji0"},
		"route 10.210.2.0/24 dev jiji0 src 10.210.1.1 removed",
		"route 10.210.3.0/24 dev jiji0 src 10.210.1.1 mtu 1300 removed",
	)
}

// A rule of routing that leads packets for the mesh elsewhere is named; others are not.
func TestSteeredPackets(t *testing.T) {
	namespace(t)
	k := newKeeper(t)
	ip(t,
		"link add jiji0 type veth peer name far0", "link set far0 up", "link set jiji0 up", "addr add 10.210.1.1/32 dev jiji0", "addr add fdcc:1::1/128 dev jiji0 nodad",
		"link add eth1 type veth peer name far1", "link set far1 up", "link set eth1 up", "addr add 192.168.7.1/24 dev eth1", "addr add 2001:db8::1/64 dev eth1 nodad",
		"route add default via 192.168.7.9 table 100", "-6 route add default dev eth1 table 100",
		"rule add from 192.168.7.1 lookup 100", "rule add fwmark 7 lookup 100",
	)
	w := Wanted{Link: "jiji0", Routes: []Route{
		{Dst: netip.MustParsePrefix("10.210.2.0/24"), Src: netip.MustParseAddr("10.210.1.1")},
		{Dst: netip.MustParsePrefix("10.210.3.0/24"), Src: netip.MustParseAddr("10.210.1.1")},
		{Dst: netip.MustParsePrefix("fdcc:2::2/128"), Src: netip.MustParseAddr("fdcc:1::1")},
	}}
	mustApply(t, k, w, "route 10.210.2.0/24 dev jiji0 src 10.210.1.1 added", "route 10.210.3.0/24 dev jiji0 src 10.210.1.1 added", "route fdcc:2::2/128 dev jiji0 src fdcc:1::1 added")
	for rule, want := range map[string]string{
		"rule add to 10.210.2.0/24 lookup 100":   "packets for 10.210.2.0/24 leave by eth1 and not by jiji0, by table 100: take away the rule that leads there, which `ip rule` shows",
		"rule add to 10.210.0.0/16 lookup 100":   "packets for 10.210.2.0/24 leave by eth1 and not by jiji0, by table 100, and so do those for 1 other prefixes: ",
		"rule add from 10.210.1.0/24 lookup 100": "packets for 10.210.2.0/24 leave by eth1",
		"-6 rule add to fdcc::/16 lookup 100":    "packets for fdcc:2::2/128 leave by eth1",
	} {
		ip(t, rule)
		if _, err := k.Apply(w, false); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", rule, err, want)
		}
		ip(t, strings.Replace(rule, " add ", " del ", 1))
		mustApply(t, k, w)
	}
}

func TestApplyKeepsForeignRoutes(t *testing.T) {
	namespace(t)
	k := newKeeper(t)
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
	got, err := k.Apply(w, false)
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
	mustApply(t, k, w, "route 10.210.2.0/24 dev jiji0 added")
}

func TestApplyWhereNothingCanBeWritten(t *testing.T) {
	namespace(t)
	k := newKeeper(t)
	ip(t, "link add jiji0 type veth peer name far0")
	if err := os.Mkdir("/etc/sysctl.d", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/proc/sys", "/etc/sysctl.d"} {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
	w := Wanted{Link: "jiji0", Forwarding: true}
	want := "net.ipv4.ip_forward is 0, expected 1, and cannot be set here (run `sysctl -w net.ipv4.ip_forward=1` on the host): open /proc/sys/net/ipv4/ip_forward: read-only file system"
	if _, err := k.Apply(w, false); err == nil || err.Error() != want {
		t.Errorf("error %v\nwant %s", err, want)
	}
	if err := unix.Unmount("/proc/sys", 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(sysctlFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read %s: %v", sysctlFile, err)
	}
	mustApply(t, k, w, "net.ipv4.conf.jiji0.send_redirects set to 0, was 1")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	mustApply(t, k, w, "net.ipv4.ip_forward set to 1, was 0", "net.ipv4.ip_forward=1 lasts until the next boot: write /etc/sysctl.d/90-jiji.conf: open /etc/sysctl.d/.90-jiji.conf.jiji-tmp: read-only file system")
}

func TestObserveMachine(t *testing.T) {
	namespace(t)
	if f, err := os.OpenFile(tunDevice, os.O_RDWR, 0); err != nil {
		t.Skipf("needs a TUN device: %v", err)
	} else {
		f.Close()
	}
	ip(t, "tuntap add jiji0 mode tun")
	w := Want{Link: "jiji0"}
	f, err := Observe(w)
	if err != nil {
		t.Fatal(err)
	}
	if f.TUN != nil || !f.can(capNetAdmin) || f.IPv6Off != "" || len(f.TUNOwners) != 0 || f.Binds != nil || f.Sockets != nil {
		t.Errorf("facts %+v", f)
	}
	expect(t, Check(f, w), finding{KindInterface, "as a TUN device of an unknown process or of none"})

	tun, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	req, err := unix.NewIfreq("jiji0")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	// tunOwner leaves out processes of other namespaces, which this one's main thread is in.
	if got := tunOwner("jiji0"); got != "" {
		t.Errorf("tunOwner = %q for a process of another namespace", got)
	}
	child := exec.Command("sleep", "60") // is in this namespace, and inherits the device
	child.ExtraFiles = []*os.File{tun}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); child.Wait() }()
	if f, err = Observe(w); err != nil {
		t.Fatal(err)
	}
	expect(t, Check(f, w), finding{KindInterface, fmt.Sprintf("as a TUN device of sleep (pid %d", child.Process.Pid)})

	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if f, err = Observe(Want{Link: "jiji9"}); err != nil {
		t.Fatal(err)
	}
	expect(t, Check(f, Want{Link: "jiji9"}), finding{KindIPv6, "degraded|net.ipv6.conf.all.disable_ipv6=1"})
}

func TestSocketGroups(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := errors.Join(raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }), err); err != nil {
		t.Fatal(err)
	}
	groups := socketGroups()
	if len(groups) == 0 {
		t.Skip("needs a kernel that tells a socket's control group")
	}
	if groups[st.Ino] == 0 {
		t.Errorf("no group for inode %d in %v", st.Ino, groups)
	}

	root := t.TempDir()
	dir := root + "/system.slice/named.service"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if got := groupPath(root, st.Ino); got != dir {
		t.Errorf("groupPath = %q, want %q", got, dir)
	}
	if got := groupPath(root, 1<<60) + groupPath(root, 0); got != "" {
		t.Errorf("groupPath of none = %q", got)
	}
}

func TestApplyWithoutLink(t *testing.T) {
	namespace(t)
	_, err := newKeeper(t).Apply(Wanted{Link: "jiji0"}, false)
	if !errors.Is(err, ErrNoLink) || err.Error() != "set routes: jiji0: interface does not exist" {
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
	if err := Watch(ctx, nil, func() { fired <- struct{}{} }); err != nil {
		t.Error(err)
	}
	script.Process.Kill()
	script.Wait()
}

// Routes that others learn and forget are no news.
func TestWatchOfRoutes(t *testing.T) {
	namespace(t)
	ip(t, "link add eth0 type veth peer name far0", "link set eth0 up", "link set far0 up", "addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad")
	mesh := []netip.Prefix{netip.MustParsePrefix("10.210.0.0/16"), netip.MustParsePrefix("fdcc::/16")}
	for route, want := range map[string]bool{
		"10.210.3.0/24 via 192.0.2.9": true, "10.0.0.0/8 via 192.0.2.9": true, "unreachable 10.210.0.0/16 metric 7": true, "default via 192.0.2.9": true,
		"10.211.0.0/16 via 192.0.2.9": false, "198.51.100.0/24 via 192.0.2.9": false, "10.211.0.0/16 via 192.0.2.9 table 7": false,
		"fdcc:1::/64 dev eth0": true, "default dev eth0": true, "2001:db8:7::/48 dev eth0": false, "fd00::/16 dev eth0": false,
	} {
		family := "-4"
		if strings.Contains(route, "::") || route == "default dev eth0" {
			family = "-6"
		}
		for _, verb := range []string{"add", "del"} {
			s, err := subscribe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 5}); err != nil {
				t.Fatal(err)
			}
			ip(t, family+" route "+verb+" "+route)
			messages, _, err := s.Receive()
			s.Close()
			if err != nil || len(messages) != 1 {
				t.Fatalf("%s %s: %d messages, %v", verb, route, len(messages), err)
			}
			if got := matters(messages[0], mesh); got != want {
				t.Errorf("%s %s matters is %v, want %v", verb, route, got, want)
			}
		}
	}
}

func TestWatchSurvivesLostEvents(t *testing.T) {
	namespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	subscriptions := 0
	err := watch(ctx, func() (*nl.NetlinkSocket, error) {
		s, err := subscribe()
		if subscriptions++; subscriptions > 1 || err != nil {
			return s, err
		}
		if err := s.SetReceiveBufferSize(1, true); err != nil { // the kernel makes it the least it allows
			t.Error(err)
		}
		for range 20 { // more than it holds, before anyone reads
			ip(t, "link add d0 type bridge", "link del d0")
		}
		return s, nil // its first receive is ENOBUFS
	}, nil, cancel)
	if err != nil || subscriptions != 2 || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("error %v, %d subscriptions, want 2; %v", err, subscriptions, ctx.Err())
	}
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
	control, api := netip.MustParseAddrPort("[fdcc::1]:8786"), netip.MustParseAddrPort("127.0.0.1:8080")
	w := Want{
		Link: "jiji0", ListenPort: 51820, WireGuardIP: netip.MustParseAddr("10.210.1.1"), DNSPort: 53,
		Ports: []Port{{"tcp", control, "control", ""}, {"udp", control, "control", ""}, {"tcp", api, "API", ""}},
	}
	for _, c := range []struct {
		name, hold string
		want       []string
	}{
		{"nobody", "", nil},
		{"no obstacles", "udp4 127.0.0.53:53,udp6 [::]:53,tcp4 127.0.0.53:53,tcp4 0.0.0.0:51820,tcp6 [::1]:8080,udp4 127.0.0.1:8080,udp4 0.0.0.0:8786,tcp6 [fdcc::2]:8786", nil},
		{"a port of another list on every address", "tcp4 0.0.0.0:8080", []string{"port 8080/tcp on 127.0.0.1 (API) is taken by %s (0.0.0.0:8080)"}},
		{"a port on the address that is not there yet", "tcp6 [fdcc::1]:8786,udp6 [::]:8786", []string{"port 8786/tcp on fdcc::1 (control) is taken by %s ([fdcc::1]:8786)", "port 8786/udp on fdcc::1 (control) is taken by %s ([::]:8786)"}},
		{"the listen port", "udp4 0.0.0.0:51820", []string{"port 51820/udp is taken by %s (0.0.0.0:51820)"}},
		{"the listen port on one address", "udp6 [::1]:51820", []string{"port 51820/udp is taken by %s ([::1]:51820)"}},
		{"DNS on every address", "udp4 0.0.0.0:53,tcp4 0.0.0.0:53", []string{"port 53/udp on 10.210.1.1 is taken by %s (0.0.0.0:53)", "port 53/tcp on 10.210.1.1 is taken by %s (0.0.0.0:53)"}},
		{"DNS on every address of both families", "udp [::]:53", []string{"port 53/udp on 10.210.1.1 is taken by %s ([::]:53)"}},
		{"DNS on the address", "tcp4 10.210.1.1:53", []string{"port 53/tcp on 10.210.1.1 is taken by %s (10.210.1.1:53)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			namespace(t)
			if strings.Contains(c.hold, "10.210.1.1") {
				ip(t, "addr add 10.210.1.1/32 dev lo")
			}
			if strings.Contains(c.hold, "fdcc") {
				ip(t, "addr add fdcc::1/128 dev lo")
				ip(t, "addr add fdcc::2/128 dev lo")
			}
			pid := holdPorts(t, c.hold)
			f, err := Observe(w)
			if err != nil {
				t.Fatal(err)
			}
			ports := Facts{Capabilities: f.Capabilities, Binds: f.Binds, Sockets: f.Sockets}
			got := Check(ports, Want{Ports: w.Ports})
			for i := range c.want {
				c.want[i] = strings.Replace(c.want[i], "%s", fmt.Sprintf("host.test (pid %d", pid), 1)
			}
			if len(got) != len(c.want) {
				t.Fatalf("problems %q, want %q", got, c.want)
			}
			for i, p := range got {
				before, after, _ := strings.Cut(c.want[i], fmt.Sprint("pid ", pid))
				if p.Kind != KindPort || !strings.HasPrefix(p.Text, before) || !strings.Contains(p.Text, after+", expected free") {
					t.Errorf("problem %q, want %q", p.Text, c.want[i])
				}
			}

			// This process may be the node, and who holds the ports its agent.
			w.Own = os.Getpid()
			f, err = Observe(w)
			if err != nil {
				t.Fatal(err)
			}
			ports.Own, ports.OwnChildren = f.Own, f.OwnChildren
			expect(t, Check(ports, Want{Ports: w.Ports}))
			w.Own = 0
		})
	}
}

// holdPorts has a child process hold these ports until the test ends.
func holdPorts(t *testing.T, hold string) (pid int) {
	t.Helper()
	if hold == "" {
		return 0
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "HOLD="+hold, "GORACE=atexit_sleep_ms=0")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); child.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	return child.Process.Pid
}
