//go:build linux

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// childEnv makes this test program run one of the tests that TestMain names, as a
// child of a test that watches what becomes of it.
const childEnv = "JIJI_LAB_TEST_CHILD"

func skipUnlessChild(t *testing.T, name string) {
	if os.Getenv(childEnv) != name {
		t.Skip("only runs as a child of another test")
	}
}

func child(t *testing.T, test string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), childEnv+"="+test), env...)
	return cmd
}

func TestThreeServersPingEachOther(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24", "2001:db8::/64")
	a, b, c := l.Server("a").On(lan), l.Server("b").On(lan), l.Server("c").On(lan)
	for _, from := range []*Server{a, b, c} {
		for _, to := range []*Server{a, b, c} {
			for _, addr := range to.Link(lan).Addrs() {
				from.Run("ping", "-c1", "-W5", addr.String())
			}
		}
	}
}

// Three servers with a container each take about 0.13 s on an idle machine. The best of
// three tells, since the machine may be busy.
func TestLabIsMadeQuickly(t *testing.T) {
	best := time.Hour
	for range 3 {
		start := time.Now()
		l := New(t)
		lan := l.Network("lan", "192.0.2.0/24")
		for i := range 3 {
			name := string(rune('a' + i))
			l.Server(name).On(lan).Container("web-"+name, fmt.Sprintf("10.210.%d.10", i))
		}
		best = min(best, time.Since(start))
	}
	t.Logf("made in %v", best)
	if best > 2*time.Second {
		t.Errorf("made in %v, want less than 2s", best)
	}
}

func TestHostsHaveTheirOwnFiles(t *testing.T) {
	t.Parallel()
	before, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Skipf("no /etc/hostname to compare: %v", err)
	}
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	a, b := l.Server("a").On(lan), l.Server("b").On(lan)

	if got := a.Run("uname", "-n"); got != "a\n" {
		t.Errorf("the host name of a is %q", got)
	}
	a.Run("sh", "-c", "echo other >/etc/hostname; mkdir /run/jiji /var/lib/jiji; echo x >/run/jiji/x; echo x >/var/lib/jiji/x")
	if out, err := b.Try("ls", "/run/jiji", "/var/lib/jiji"); err == nil {
		t.Errorf("b sees files of a: %s", out)
	}
	if got := a.ReadFile("/var/run/jiji/x"); got != "x\n" {
		t.Errorf("/var/run/jiji/x of a has %q", got)
	}
	if after, _ := os.ReadFile("/etc/hostname"); string(after) != string(before) {
		t.Errorf("/etc/hostname of this machine was %q and is %q", before, after)
	}
	if out := a.Run("ls", "/sys/class/net"); strings.Join(strings.Fields(out), " ") != "eth0 lo" {
		t.Errorf("/sys/class/net of a has %q, want eth0 and lo", out)
	}
	if out := a.Run("sh", "-c", "ls -d /proc/[0-9]* | wc -l"); strings.TrimSpace(out) == "" || len(out) > 2 {
		t.Errorf("a sees %s processes, want its own", out)
	}
	a.Setenv("JIJI_NAME", "first")
	if got := a.Run("sh", "-c", "echo $JIJI_NAME"); got != "first\n" {
		t.Errorf("JIJI_NAME is %q on a, want first", got)
	}
	if got := b.RunInput("text", "cat"); got != "text" {
		t.Errorf("cat on b returned %q, want its input", got)
	}
	a.SetResolvers(b.Addr(lan))
	if got := a.ReadFile("/etc/resolv.conf"); got != "nameserver 192.0.2.2\n" {
		t.Errorf("/etc/resolv.conf of a has %q", got)
	}
}

func TestCommandErrorTellsWhatHappened(t *testing.T) {
	t.Parallel()
	l := New(t)
	a := l.Server("a")
	_, err := a.Try("sh", "-c", "echo out; echo err >&2; exit 7")
	var failed *CommandError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, want a CommandError", err)
	}
	if failed.Code != 7 || failed.Stdout != "out\n" || failed.Stderr != "err\n" {
		t.Errorf("got %+v, want exit code 7 and both outputs", failed)
	}
	want := "a: sh -c echo out; echo err >&2; exit 7: exit status 7\n\tout\n\terr"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if _, err := a.Try("no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestServerWithTwoLinks(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	dsl := l.Network("dsl", "198.51.100.0/24")
	a, b := l.Server("a").On(lan, dsl), l.Server("b").On(lan, dsl)
	far := l.Server("far").On(l.Network("far-net", "203.0.113.0/24"))

	a.Run("ping", "-c1", "-W5", b.Addr(lan).String())
	a.Run("ping", "-c1", "-W5", b.Addr(dsl).String())
	a.Run("ping", "-c1", "-W5", far.Links()[0].Addr().String()) // through the world
	if got := b.Endpoint(dsl).String(); got != "198.51.100.2:51820" {
		t.Errorf("the endpoint of b is %s", got)
	}

	b.Link(lan).Down()
	mustNot(t, a, "ping", "-c1", "-W1", b.Addr(lan).String())
	b.Run("ping", "-c1", "-W5", far.Links()[0].Addr().String()) // by its other link
	b.Link(lan).Up()
	Eventually(t, 10*time.Second, "a reaches the link that came up", func() error { // its neighbour entry has to be made anew
		_, err := a.Try("ping", "-c1", "-W1", b.Addr(lan).String())
		return err
	})

	b.Link(dsl).Unplug()
	mustNot(t, a, "ping", "-c1", "-W1", b.Addr(dsl).String())
	b.Link(dsl).Plug()
	Eventually(t, 5*time.Second, "ping after plugging in", func() error {
		_, err := a.Try("ping", "-c1", "-W1", b.Addr(dsl).String())
		return err
	})

	b.Link(dsl).Renumber("198.51.100.77")
	a.Run("ping", "-c1", "-W5", "198.51.100.77")
	mustNot(t, a, "ping", "-c1", "-W1", "198.51.100.2")

	b.Link(dsl).SetMTU(1400)
	far.Run("ping", "-c1", "-W5", "-Mdo", "-s1372", "198.51.100.77")
	out, err := far.Try("ping", "-c1", "-W1", "-Mdo", "-s1373", "198.51.100.77")
	if err == nil || !strings.Contains(out, "1400") {
		t.Errorf("a packet of 1401 bytes through MTU 1400: got %v and %q, want the world's answer with the MTU", err, out)
	}
}

func mustNot(t *testing.T, s *Server, name string, args ...string) {
	t.Helper()
	if out, err := s.Try(name, args...); err == nil {
		t.Errorf("%s %s on %s worked: %s", name, strings.Join(args, " "), s.Name, out)
	}
}

func TestContainerReachesItsServer(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	a := l.Server("a").On(lan)
	web := a.Container("web", "10.210.0.10")
	db := a.Container("db", "10.210.0.11")
	other := a.ContainerOn("docker0", "other", "172.17.0.2")

	web.Run("ping", "-c1", "-W5", "10.210.0.1")
	web.Run("ping", "-c1", "-W5", a.Addr(lan).String())
	web.Run("ping", "-c1", "-W5", db.Addr.String())
	a.Run("ping", "-c1", "-W5", web.Addr.String())
	a.Run("ping", "-c1", "-W5", other.Addr.String())
	if out, err := web.Try("ping", "-c1", "-W1", other.Addr.String()); err == nil {
		t.Errorf("a server that does not forward lets containers of two bridges meet: %s", out)
	}
	want := "nameserver 10.210.0.1\nsearch jiji\noptions ndots:1\n"
	if got := web.ReadFile("/etc/resolv.conf"); got != want {
		t.Errorf("/etc/resolv.conf of web has %q, want %q", got, want)
	}
	if got := a.Run("ip", "-br", "-4", "addr", "show", "jiji-br0"); !strings.Contains(got, "10.210.0.1/24") {
		t.Errorf("jiji-br0 of a has %q, want 10.210.0.1/24", got)
	}
}

func TestCutWorksPerDirection(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24", "2001:db8::/64")
	a, b, c := l.Server("a").On(lan), l.Server("b").On(lan), l.Server("c").On(lan)
	ping := func(from, to *Server) error {
		_, err := from.Try("ping", "-c1", "-W0.3", to.Addr(lan).String())
		return err
	}
	requests := b.Link(lan).Capture("icmp[icmptype] == icmp-echo and src host " + a.Addr(lan).String())

	if err := ping(a, b); err != nil {
		t.Fatal(err)
	}
	lan.CutOneWay(b, a) // questions arrive, answers do not
	if ping(a, b) == nil {
		t.Error("a has an answer of b through the cut")
	}
	if n := requests.Count(); n != 2 {
		t.Errorf("%d echo requests of a arrived at b, want 2:\n%v", n, requests)
	}
	lan.Heal(a, b)

	lan.Cut(a, b)
	if ping(a, b) == nil || ping(b, a) == nil {
		t.Error("a and b reach each other through the cut")
	}
	if n := requests.Count(); n != 2 {
		t.Errorf("%d echo requests of a arrived at b, want still 2:\n%v", n, requests)
	}
	if _, err := a.Try("ping", "-c1", "-W0.3", b.Link(lan).Addrs()[1].String()); err == nil {
		t.Error("a and b reach each other by IPv6 through the cut")
	}
	if err := errors.Join(ping(a, c), ping(c, b)); err != nil {
		t.Errorf("the cut between a and b concerns c: %v", err)
	}
	lan.Heal(a, b)
	if err := errors.Join(ping(a, b), ping(b, a)); err != nil {
		t.Errorf("after healing: %v", err)
	}

	block := lan.Block(a, b, "ip protocol icmp ip length 128")
	if err := ping(a, b); err != nil {
		t.Errorf("a block of other packets: %v", err)
	}
	if _, err := a.Try("ping", "-c2", "-i0.01", "-W0.3", "-s100", b.Addr(lan).String()); err == nil {
		t.Error("blocked packets arrive")
	}
	if n := block.Packets(); n != 2 {
		t.Errorf("the block counts %d packets, want 2", n)
	}
	block.Lift()
	a.Run("ping", "-c1", "-W5", "-s100", b.Addr(lan).String())
}

func TestCaptureCountsAndPrints(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	a, b := l.Server("a").On(lan), l.Server("b").On(lan)
	all := a.Link(lan).Capture("")
	none := a.Link(lan).Capture("tcp")
	inside := b.Capture("eth0", "icmp")
	a.Run("ping", "-c5", "-i0.01", "-W5", b.Addr(lan).String())
	if all.Count() < 10 || none.Count() != 0 || inside.Count() != 10 {
		t.Errorf("captured %d, %d and %d packets, want 10 or more, 0 and 10", all.Count(), none.Count(), inside.Count())
	}
	inside.Stop()
	a.Run("ping", "-c1", "-W5", b.Addr(lan).String())
	if n := len(inside.Packets()); n != 10 {
		t.Errorf("a stopped capture has %d packets, want 10", n)
	}
	if got := inside.String(); strings.Count(got, "192.0.2.1 > 192.0.2.2: ICMP echo request") != 5 {
		t.Errorf("printed:\n%s\nwant 5 echo requests", got)
	}
	if c := a.Link(lan).Counters(); c.TxPackets < 6 || c.RxPackets < 6 || c.TxBytes < 6*98 {
		t.Errorf("the link has counted %+v, want 6 packets or more each way", c)
	}
}

func TestPathFaults(t *testing.T) {
	t.Parallel()
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	dsl := l.Network("dsl", "198.51.100.0/24")
	a, b := l.Server("a").On(lan), l.Server("b").On(lan)
	far := l.Server("far").On(dsl)

	for _, to := range []*Server{b, far} {
		path := l.Path(a, to)
		echo(t, to, wireGuardPort)
		var conn net.Conn
		err := a.Do(func() (err error) {
			conn, err = net.Dial("udp", path.Addr().String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ask := func(timeout time.Duration) error {
			buf := make([]byte, 100)
			conn.SetDeadline(time.Now().Add(timeout))
			if _, err := conn.Write([]byte("question")); err != nil {
				return err
			}
			n, err := conn.Read(buf)
			if err == nil && string(buf[:n]) != "question" {
				err = fmt.Errorf("the answer is %q", buf[:n])
			}
			return err
		}
		if err := ask(2 * time.Second); err != nil {
			t.Errorf("%s: %v", to.Name, err)
		}
		path.Back.Set(Faults{BlackHole: true})
		if ask(50*time.Millisecond) == nil {
			t.Errorf("%s: an answer came out of the black hole", to.Name)
		}
		path.Set(Faults{Delay: 30 * time.Millisecond})
		start := time.Now()
		if err := ask(2 * time.Second); err != nil || time.Since(start) < 60*time.Millisecond {
			t.Errorf("%s: %v after %v, want an answer after 60ms or more", to.Name, err, time.Since(start))
		}
		if f, b := path.Forward.Counts(), path.Back.Counts(); f.Out != 3 || b.In != 3 || b.Lost != 1 || b.Out != 2 {
			t.Errorf("%s: counted %+v and %+v, want 3 there and 2 of 3 back", to.Name, f, b)
		}
	}
}

// echo answers datagrams on a host until the test ends.
func echo(t *testing.T, s *Server, port int) {
	var conn *net.UDPConn
	err := s.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

func TestProcessLife(t *testing.T) {
	t.Parallel()
	l := New(t)
	a := l.Server("a")
	a.Setenv(childEnv, "TestChildNotifies")
	spawn := func(code string) *Process {
		a.Setenv("CHILD_EXIT_CODE", code)
		return a.Spawn(os.Args[0], "-test.run=^TestChildNotifies$")
	}
	p := spawn("0")
	p.WaitReady()
	p.WaitNotify("STATUS=fine", time.Second)
	p.WaitLog("up", time.Second)
	p.Stop()
	p.WaitNotify("STOPPING=1", time.Second)
	if !p.Ended() {
		t.Error("runs on after Stop")
	}

	p = spawn("3")
	p.WaitReady()
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(10 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}

	p = spawn("0")
	p.WaitReady()
	p.Kill9()
	if out := a.Run("ps", "-eo", "args"); strings.Contains(out, "TestChildNotifies") {
		t.Errorf("after Kill9 there is still:\n%s", out)
	}
}

// TestChildNotifies is a program that speaks sd_notify(3).
func TestChildNotifies(t *testing.T) {
	skipUnlessChild(t, "TestChildNotifies")
	tell := func(text string) {
		conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			_, err = conn.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	fmt.Println("up")
	tell("READY=1\nSTATUS=fine")
	<-terminated
	tell("STOPPING=1")
	code, err := strconv.Atoi(os.Getenv("CHILD_EXIT_CODE"))
	if err != nil {
		t.Fatal(err)
	}
	os.Exit(code)
}

func TestStockWireGuardsMeet(t *testing.T) {
	t.Parallel()
	l := New(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices: %v", err)
	}
	lan := l.Network("lan", "192.0.2.0/24")
	a, b := l.Server("a").On(lan), l.Server("b").On(lan)
	keyA, keyB := wgkey.NewPrivate(), wgkey.NewPrivate()
	path := l.Path(a, b)
	a.StartStockWireGuard(StockConfig{
		Key:       keyA,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.210.0.1/32")},
		Peers: []StockPeer{{
			Key: keyB.Public(), Endpoint: path.Addr(),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.210.1.0/24")},
		}},
	})
	node := b.StartStockWireGuard(StockConfig{
		Key:       keyB,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.210.1.1/32")},
		Peers:     []StockPeer{{Key: keyA.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.210.0.0/24")}}},
	})
	capture := a.Capture("wg0", "icmp and dst host 10.210.1.1")
	a.Run("ping", "-c1", "-W5", "10.210.1.1")
	b.Run("ping", "-c1", "-W5", "10.210.0.1")
	if n := capture.Count(); n != 2 {
		t.Errorf("captured %d packets on wg0, want 2:\n%v", n, capture)
	}
	if out := b.Run("wg", "show", "wg0", "endpoints"); !strings.Contains(out, path.Addr().Addr().String()) {
		t.Errorf("b sees a at %q, want an address of the path %v", out, path.Addr())
	}
	node.Stop()
}

// A lab in a process that is killed leaves nothing behind.
func TestNothingIsLeftOfAKilledTest(t *testing.T) {
	t.Parallel()
	New(t) // skips where labs cannot be
	cmd := child(t, "TestChildHangs", "JIJI_LAB_DIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var pids []string
	var dir string
	scanner := bufio.NewScanner(out)
	for dir == "" && scanner.Scan() {
		switch kind, value, _ := strings.Cut(scanner.Text(), " "); kind {
		case "pid":
			pids = append(pids, value)
		case "dir":
			dir = value
		}
	}
	if len(pids) < 4 || dir == "" {
		t.Fatalf("the child said pids %v and directory %q, want 4 or more and its directory", pids, dir)
	}
	// The namespaces' own identities tell whether something still holds them.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	Eventually(t, 5*time.Second, "everything of the killed test goes", func() error {
		var err error
		for _, pid := range pids {
			if _, there := os.Stat("/proc/" + pid); there == nil {
				err = errors.Join(err, fmt.Errorf("process %s is there", pid))
			}
		}
		if _, there := os.Stat(dir); there == nil {
			err = errors.Join(err, fmt.Errorf("%s is there", dir))
		}
		return err
	})
}

func TestChildHangs(t *testing.T) {
	skipUnlessChild(t, "TestChildHangs")
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	a := l.Server("a").On(lan)
	web := a.Container("web", "10.210.0.10")
	sleeper := a.Spawn("sleep", "1000")
	dir, err := workdir()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("pid %d\npid %d\npid %d\npid %d\ndir %s\n", a.Pid(), web.Pid(), l.world.Pid(), sleeper.Pid(), dir)
	sleeper.Wait(time.Hour)
}

func TestFailureShowsLinksAndKeepsLogs(t *testing.T) {
	t.Parallel()
	New(t)
	dir := t.TempDir()
	out, err := child(t, "TestChildFails", "JIJI_LAB_DIR="+dir).CombinedOutput()
	if err == nil {
		t.Fatalf("the child passed:\n%s", out)
	}
	for _, want := range []string{
		"sh on a: ended by itself: exit status 4",
		"last words",
		"packets of each link",
		filepath.Join(dir, "TestChildFails"),
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the child's output lacks %q", want)
		}
	}
	if !regexp.MustCompile(`a +eth0 +up +[1-9]\d* +[1-9]`).Match(out) {
		t.Error("the child's output lacks the packets of eth0 of a")
	}
	dir = filepath.Join(dir, "TestChildFails")
	for file, want := range map[string]string{
		"a-sh-1.log":  "last words",
		"a.state":     "default via 192.0.2.254",
		"world.state": "192.0.2.254",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v, has %q, want %q in it", file, err, b, want)
		}
	}
	captures, _ := filepath.Glob(filepath.Join(dir, "a-eth0-*.pcap"))
	if len(captures) != 1 {
		t.Errorf("captures %v, want one", captures)
	}
	if t.Failed() {
		t.Logf("the child printed:\n%s", out)
	}
}

func TestChildFails(t *testing.T) {
	skipUnlessChild(t, "TestChildFails")
	l := New(t)
	lan := l.Network("lan", "192.0.2.0/24")
	a := l.Server("a").On(lan)
	a.Link(lan).Capture("icmp")
	a.Run("ping", "-c1", "-W5", lan.Gateway().String())
	p := a.Spawn("sh", "-c", "echo last words; exit 4")
	<-p.ended
}

func TestPassedLabLeavesNoArtifacts(t *testing.T) {
	t.Parallel()
	New(t)
	dir := t.TempDir()
	if out, err := child(t, "TestChildPasses", "JIJI_LAB_DIR="+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left in the directory: %v", left)
	}
}

func TestChildPasses(t *testing.T) {
	skipUnlessChild(t, "TestChildPasses")
	l := New(t)
	p := l.Server("a").Spawn("sleep", "1000")
	if p.Ended() {
		t.Error("sleep ended")
	}
}

// The lab changes nothing of the network that it is made in: here one of the test's own,
// since other programs change this machine's.
func TestMachineIsUntouched(t *testing.T) {
	t.Parallel()
	New(t)
	const script = `
state() {
	ip link; ip addr; ip route show table all; nft list ruleset; cat /proc/self/mountinfo
	grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward 2>/dev/null || true # some cannot be read
}
state >"$1/before"
"$2" -test.run='^TestServerWithTwoLinks$' -test.v
state >"$1/after"
diff "$1/before" "$1/after"`
	dir := t.TempDir()
	cmd := exec.Command("unshare", "--net", "--mount", "--propagation", "shared", "sh", "-ec", script, "sh", dir, os.Args[0])
	cmd.Env = append(os.Environ(), "JIJI_LAB_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A verdict is a TB that notes how it was ended.
type verdict struct {
	TB
	skipped, failed string
}

func (v *verdict) Helper()                           {}
func (v *verdict) Skipf(format string, args ...any)  { v.skipped = fmt.Sprintf(format, args...) }
func (v *verdict) Fatalf(format string, args ...any) { v.failed = fmt.Sprintf(format, args...) }

func TestMissingToolsSkipButFailInCI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("without root that is the reason")
	}
	t.Setenv("PATH", t.TempDir())
	const want = "not installed: dig, ip, mount, nft, ping, ss, tcpdump, traceroute, wg (apt-get install bind9-dnsutils iproute2 mount " +
		"nftables iputils-ping tcpdump traceroute wireguard-tools)"
	for _, ci := range []string{"", "true"} {
		t.Setenv("CI", ci)
		var v verdict
		New(&v)
		said, other := v.skipped, v.failed
		if ci == "true" {
			said, other = other, said
		}
		if !strings.Contains(said, want) || other != "" {
			t.Errorf("CI=%q: skipped %q, failed %q, want %q", ci, v.skipped, v.failed, want)
		}
	}
}

func TestEventuallySaysWhatItWaitedFor(t *testing.T) {
	var v verdict
	tries := 0
	Eventually(&v, time.Second, "the third try", func() error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if tries != 3 || v.failed != "" {
		t.Errorf("tried %d times, failed %q, want 3 and none", tries, v.failed)
	}
	Eventually(&v, time.Millisecond, "the end", func() error { return errors.New("never comes") })
	if want := "the end: not within 1ms: never comes"; v.failed != want {
		t.Errorf("failed with %q, want %q", v.failed, want)
	}
}

func TestSweep(t *testing.T) {
	tmp := t.TempDir()
	mine, err := ownerOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{workPrefix + mine, workPrefix + "1-0", workPrefix + "4194305-7", workPrefix + "junk", "other"} {
		if err := os.MkdirAll(filepath.Join(tmp, name, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(tmp); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := fmt.Sprint([]string{workPrefix + mine, "other"}); fmt.Sprint(left) != want {
		t.Errorf("left %v, want %v", left, want)
	}
}

func TestNth(t *testing.T) {
	for _, c := range []struct {
		prefix string
		i      int
		want   string
	}{
		{"192.0.2.0/24", 1, "192.0.2.1"},
		{"192.0.2.0/24", 254, "192.0.2.254"},
		{"10.0.0.0/16", 256, "10.0.1.0"},
		{"10.0.0.0/16", 65534, "10.0.255.254"},
		{"2001:db8::/64", 1, "2001:db8::1"},
		{"2001:db8::/64", 65534, "2001:db8::fffe"},
	} {
		p := netip.MustParsePrefix(c.prefix)
		if got := nth(p, c.i); got.String() != c.want {
			t.Errorf("address %d of %s is %v, want %s", c.i, c.prefix, got, c.want)
		}
	}
	if got := top(netip.MustParsePrefix("192.0.2.0/28")); got != 14 {
		t.Errorf("the top of a /28 is %d, want 14", got)
	}
}

// A server that is booted has a systemd, programs and files of its own, and the network
// that it had. Of the outer machine nothing is touched, and nothing stays.
func TestBoot(t *testing.T) {
	groups := func() int {
		root, err := cgroupRoot()
		if err != nil {
			t.Skip(err)
		}
		owner, err := ownerOf(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		dirs, err := filepath.Glob(filepath.Join(root, groupPrefix+owner+".*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(dirs)
	}
	outside := func() (text string) {
		for _, file := range []string{"/proc/sys/kernel/hostname", "/proc/sys/kernel/printk", "/proc/sys/fs/nr_open", "/proc/sys/vm/max_map_count", "/proc/sys/net/ipv4/ip_forward"} {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text += string(b)
		}
		return text
	}
	before := outside()
	t.Run("boot", func(t *testing.T) {
		l := New(t)
		lan := l.Network("lan", "192.0.2.0/24")
		a, b := l.Server("a").On(lan), l.Server("b").On(lan)
		a.WriteFile("/var/lib/was", "here")
		a.Boot("echo prepared >/etc/prepared")
		if got := a.Run("cat", "/proc/1/comm", "/etc/prepared", "/etc/hostname"); got != "systemd\nprepared\na\n" {
			t.Errorf("it is %q", got)
		}
		if _, err := a.Try("test", "-e", "/var/lib/was"); err == nil {
			t.Error("it has the server's files")
		}
		a.WriteFile("/run/file", "text")
		if got := a.Run("cat", "/run/file"); got != "text" || a.ReadFile("/run/file") != "text" {
			t.Errorf("a file has %q, read from outside %q", got, a.ReadFile("/run/file"))
		}
		a.Run("ping", "-c1", "-W5", b.Addr(lan).String())
		if n := groups(); n != 1 {
			t.Errorf("%d cgroups, want 1", n)
		}
	})
	if n := groups(); n != 0 {
		t.Errorf("%d cgroups stay", n)
	}
	if after := outside(); after != before {
		t.Errorf("outside it was\n%s\nand is\n%s", before, after)
	}
}
