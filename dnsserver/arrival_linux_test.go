package dnsserver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// A namespace is a network namespace of this test, by name.
type namespace string

func newNamespace(t *testing.T, name string) namespace {
	t.Helper()
	ns := namespace(fmt.Sprintf("jijidns-%d-%s", os.Getpid(), name))
	run(t, "ip", "netns", "add", string(ns))
	t.Cleanup(func() { run(t, "ip", "netns", "del", string(ns)) })
	ns.ip(t, "link set lo up")
	return ns
}

func (ns namespace) ip(t *testing.T, args string) {
	t.Helper()
	run(t, "ip", append([]string{"-n", string(ns)}, strings.Fields(args)...)...)
}

// do runs f on a thread inside ns. Sockets that f opens stay there.
func (ns namespace) do(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := os.Open("/run/netns/" + string(ns))
		if err == nil {
			defer fd.Close()
			err = unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// ask sends a question from one of ns's addresses and returns the answer.
func (ns namespace) ask(t *testing.T, network string, from netip.Addr, to netip.AddrPort, question *dns.Msg) (*dns.Msg, error) {
	t.Helper()
	var reply *dns.Msg
	err := ns.do(t, func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		if network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		nc, err := d.Dial(network, to.String()) // UDP is connected: only an answer from the address that was asked counts
		if err != nil {
			return err
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(3 * time.Second))
		c := &dns.Conn{Conn: nc}
		if err := c.WriteMsg(question); err != nil {
			return err
		}
		reply, err = c.ReadMsg()
		return err
	})
	return reply, err
}

// TestOnlyInsideIsAnswered has a server with an uplink, a mesh interface and
// loopback, and asks it for the same address from everywhere. The uplink asks
// for the mesh address (weak host model), from its own address and from a
// stolen one of the mesh to which the way back leads over the uplink.
func TestOnlyInsideIsAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	if out, err := exec.Command("ip", "netns", "list").CombinedOutput(); err != nil {
		t.Skipf("needs ip(8) and network namespaces: %v: %s", err, out)
	}
	server, outside, mesh := newNamespace(t, "server"), newNamespace(t, "outside"), newNamespace(t, "mesh")
	for _, ns := range []namespace{server, outside, mesh} {
		run(t, "ip", "netns", "exec", string(ns), "sh", "-c", `for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done`)
	}
	ipv6 := true
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		ipv6 = false
	}
	server.ip(t, "link add uplink type veth peer name uplink netns "+string(outside))
	server.ip(t, "link add jiji0 type veth peer name jiji0 netns "+string(mesh))
	for _, l := range []struct {
		ns          namespace
		dev         string
		addr4, addr string
	}{
		{server, "uplink", "192.0.2.1/24", "2001:db8::1/64"},
		{server, "jiji0", "10.210.0.1/32", "fdcc::1/128"},
		{outside, "uplink", "192.0.2.2/24", "2001:db8::2/64"},
		{outside, "lo", "10.210.1.15/32", "fdcc::15/128"}, // stolen
		{mesh, "jiji0", "10.210.1.1/32", "fdcc::11/128"},
	} {
		l.ns.ip(t, "link set "+l.dev+" up")
		l.ns.ip(t, "addr add "+l.addr4+" dev "+l.dev)
		if ipv6 {
			l.ns.ip(t, "addr add "+l.addr+" dev "+l.dev+" nodad")
		}
	}
	server.ip(t, "route add 10.210.1.0/24 dev jiji0")
	server.ip(t, "route add 10.210.1.15/32 via 192.0.2.2")
	outside.ip(t, "route add 10.210.0.1/32 via 192.0.2.1")
	mesh.ip(t, "route add 10.210.0.0/24 dev jiji0")
	listen := []netip.AddrPort{netip.MustParseAddrPort("10.210.0.1:53"), netip.MustParseAddrPort("0.0.0.0:5353")}
	if ipv6 {
		server.ip(t, "-6 route add fdcc::11/128 dev jiji0")
		server.ip(t, "-6 route add fdcc::15/128 via 2001:db8::2")
		outside.ip(t, "-6 route add fdcc::1/128 via 2001:db8::1")
		mesh.ip(t, "-6 route add fdcc::1/128 dev jiji0")
		listen = append(listen, netip.MustParseAddrPort("[fdcc::1]:53"), netip.MustParseAddrPort("[::]:5353"))
	}

	var s *Server
	err := server.do(t, func() error {
		uplink, err := net.InterfaceByName("uplink")
		if err != nil {
			return err
		}
		s, err = Listen(Config{Listen: listen, Apex: "jiji", Answer: func(ifindex int) bool { return ifindex > 0 && ifindex != uplink.Index }})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.SetZone(newTestZone(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	for _, c := range []struct {
		name     string
		ns       namespace
		from, to string
		want     int
	}{
		{"own address", server, "10.210.0.1", "10.210.0.1:53", dns.RcodeSuccess},
		{"own address of the uplink", server, "192.0.2.1", "192.0.2.1:5353", dns.RcodeRefused}, // as Linux sees it
		{"loopback", server, "127.0.0.1", "127.0.0.1:5353", dns.RcodeSuccess},
		{"mesh", mesh, "10.210.1.1", "10.210.0.1:53", dns.RcodeSuccess},
		{"mesh to the wildcard", mesh, "10.210.1.1", "10.210.0.1:5353", dns.RcodeSuccess},
		{"uplink", outside, "192.0.2.2", "192.0.2.1:5353", dns.RcodeRefused},
		{"uplink to the mesh address", outside, "192.0.2.2", "10.210.0.1:53", dns.RcodeRefused},
		{"uplink with a stolen address", outside, "10.210.1.15", "10.210.0.1:53", dns.RcodeRefused},
		{"uplink with a stolen address to the wildcard", outside, "10.210.1.15", "10.210.0.1:5353", dns.RcodeRefused},
		{"IPv6 loopback", server, "::1", "[::1]:5353", dns.RcodeSuccess},
		{"IPv6 own address", server, "fdcc::1", "[fdcc::1]:53", dns.RcodeSuccess},
		{"IPv6 mesh", mesh, "fdcc::11", "[fdcc::1]:53", dns.RcodeSuccess},
		{"IPv6 mesh to the wildcard", mesh, "fdcc::11", "[fdcc::1]:5353", dns.RcodeSuccess},
		{"IPv6 uplink", outside, "2001:db8::2", "[2001:db8::1]:5353", dns.RcodeRefused},
		{"IPv6 uplink to the mesh address", outside, "2001:db8::2", "[fdcc::1]:53", dns.RcodeRefused},
		{"IPv6 uplink with a stolen address", outside, "fdcc::15", "[fdcc::1]:53", dns.RcodeRefused},
		{"IPv6 uplink with a stolen address to the wildcard", outside, "fdcc::15", "[fdcc::1]:5353", dns.RcodeRefused},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(c.name+" "+network, func(t *testing.T) {
				from, to := netip.MustParseAddr(c.from), netip.MustParseAddrPort(c.to)
				if from.Is6() && !ipv6 {
					t.Skip("this kernel is without IPv6")
				}
				for _, name := range []string{"one.jiji. IN A", "example.com. IN A"} {
					m, err := c.ns.ask(t, network, from, to, asking(t, name))
					if err != nil {
						t.Fatal(err)
					}
					want := c.want
					if want == dns.RcodeSuccess && name == "example.com. IN A" {
						want = dns.RcodeServerFailure // for there is no upstream
					}
					if m.Rcode != want {
						t.Errorf("%s: %s, want %s", name, dns.RcodeToString[m.Rcode], dns.RcodeToString[want])
					}
				}
			})
		}
	}
	waitFor(t, "both kinds to be counted", func() bool { return s.Stats().Refused > 0 && s.Stats().Zone > 0 })
}
