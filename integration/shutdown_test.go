//go:build linux

package integration_test

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// Clients that hang do not keep a node from ending.
func TestSigtermWhileClientsHang(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	a := web1.Container("a", "10.210.0.10")
	silent := m.Server("silent").On(m.lan) // an upstream that takes queries and never answers
	web1.SetResolvers(silent.Addr(m.lan))
	hole := listenUDP(t, silent.Host, netip.AddrPortFrom(silent.Addr(m.lan), 53))
	m.startAll()

	dns := netip.MustParseAddrPort("10.210.0.1:53")
	idle := dialTCP(t, a.Host, dns, time.Minute)
	half := dialTCP(t, a.Host, dns, time.Minute)
	write(t, half, "\x00\x40\x12\x34") // a message of 64 bytes, of which two came
	pending := dialTCP(t, a.Host, dns, time.Minute)
	write(t, pending, "\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01")
	lab.Eventually(t, 5*time.Second, "the query is forwarded", func() error {
		hole.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _, err := hole.ReadFrom(make([]byte, 512))
		return err
	})
	api := dialUnix(t, web1, "/run/jiji/node.sock")
	write(t, api, "POST /v1/services HTTP/1.1\r\nHost: jiji\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
	wg := dialUnix(t, web1, "/var/run/wireguard/jiji0.sock")
	write(t, wg, "set=1\n")
	watch := web1.Spawn("jiji-node", "status", "--watch")
	watch.WaitLog("web2", 5*time.Second)
	ping := web1.Spawn("jiji-node", "ping", "web2", "--count", "1000", "--interval", "50ms")
	ping.WaitLog("seq 3", 5*time.Second)
	defer watch.Stop()
	defer ping.Wait(5 * time.Second) // it says why and fails: its node is gone

	start := time.Now()
	m.nodes[0].Signal(syscall.SIGTERM)
	if code := m.nodes[0].Wait(5 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0\n%s", code, m.nodes[0].Log())
	}
	t.Logf("ended after %v", time.Since(start).Round(time.Millisecond))
	for name, c := range map[string]net.Conn{"an idle DNS connection": idle, "half a DNS query": half, "a request to the control socket": api, "a request to the wg socket": wg} {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 4096)); isTimeout(err) {
			t.Errorf("%s is still open", name)
		}
	}
	checkNothingLeft(t, web1)
	m.start(0)
	m.waitUp(m.servers...)
}

// A terminal that goes away ends a node in order, unless nohup keeps it.
func TestSighup(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	p := m.servers[0].Spawn("env", "--default-signal=HUP", "jiji-node", "run") // the tests may run under nohup
	p.WaitLog("msg=ready", 20*time.Second)
	p.Signal(syscall.SIGHUP)
	if code := p.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0\n%s", code, p.Log())
	}
	checkNothingLeft(t, m.servers[0])

	p = m.servers[0].Spawn("sh", "-c", "trap '' HUP; exec jiji-node run")
	p.WaitLog("msg=ready", 20*time.Second)
	p.Signal(syscall.SIGHUP)
	time.Sleep(200 * time.Millisecond)
	if p.Ended() {
		t.Errorf("ended, though SIGHUP was ignored when it began\n%s", p.Log())
	}
	p.Stop()
}

// A node that is told to end while it starts does so, and takes back what it did.
func TestSigtermDuringStart(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	for delay := time.Duration(0); delay < 140*time.Millisecond; delay += 7 * time.Millisecond {
		p := m.launch(0)
		time.Sleep(delay)
		p.Signal(syscall.SIGTERM)
		if code := p.Wait(5 * time.Second); code != 0 && code != -1 { // -1: before the program handles signals
			t.Errorf("SIGTERM %v after the start: exit code %d\n%s", delay, code, p.Log())
		}
		checkNothingLeft(t, m.servers[0])
	}
	m.start(0)
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func dialUnix(t *testing.T, s *lab.Server, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", s.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listenUDP(t *testing.T, h *lab.Host, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatalf("listen on %v of %s: %v", at, h.Name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
