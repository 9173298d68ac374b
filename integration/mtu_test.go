//go:build linux

package integration_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

const (
	bulk      = 20 << 20         // bytes
	bulkLimit = 90 * time.Second // for those; without what is tested here it takes for ever
)

// ends are what sends and receives on each server: a container, in IPv4, and the
// server's own management address, in IPv6.
func (m *mesh) ends() (ends [][2]*lab.Container) {
	m.t.Helper()
	for i, s := range m.servers {
		ends = append(ends, [2]*lab.Container{
			s.Container(fmt.Sprintf("c%d", i+1), fmt.Sprintf("10.210.%d.10", i)),
			{Host: s.Host, Server: s, Addr: status(m.t, s).Server.ManagementIP},
		})
	}
	return ends
}

// bothWays sends bytes between two servers in both directions and families.
func (m *mesh) bothWays(a, b [2]*lab.Container) {
	m.t.Helper()
	for family := range a {
		for _, way := range [][2]*lab.Container{{a[family], b[family]}, {b[family], a[family]}} {
			m.step(fmt.Sprintf("%v to %v", way[0].Addr, way[1].Addr), func() { transfer(m.t, way[0], way[1], bulk, bulkLimit) })
		}
	}
}

func TestShow6FullSizeTCP(t *testing.T) {
	t.Parallel()
	for _, family := range []struct{ name, prefix, fragments string }{
		{"IPv4", "192.0.2.0/24", "ip[6:2] & 0x3fff != 0"},
		{"IPv6", "2001:db8:1::/64", "ip6[6] == 44"},
	} {
		for _, mtus := range [][2]int{{1500, 1500}, {1420, 1420}, {1300, 1300}, {1280, 1280}, {9000, 9000}, {1500, 1420}, {1300, 1500}, {9000, 1300}, {1420, 9000}} {
			t.Run(fmt.Sprintf("%s %d and %d", family.name, mtus[0], mtus[1]), func(t *testing.T) {
				t.Parallel()
				m := newMeshOn(t, 2, family.prefix)
				m.Plain() // with the race detector, 1.4 GB take minutes
				for i, s := range m.servers {
					s.Link(m.lan).SetMTU(mtus[i])
				}
				fragments := m.servers[0].Link(m.lan).Capture(family.fragments)
				m.startAll()
				ends := m.ends()
				m.bothWays(ends[0], ends[1])
				if n := fragments.Count(); n > 0 {
					t.Errorf("%d packets were fragments, want none of TCP:\n%s", n, fragments)
				}
			})
		}
	}
}

// Servers that have both families and different MTUs, and one whose only family is IPv6.
func TestShow6MixedMTUs(t *testing.T) {
	t.Parallel()
	m := newMeshOn(t, 0, "192.0.2.0/24", "2001:db8:1::/64")
	m.Plain()
	both := m.nets
	m.addServer()
	m.addServer()
	m.nets = both[1:]
	m.addServer()
	for i, mtu := range []int{1500, 1300, 9000} {
		m.addEntries(m.servers[i])
		for _, k := range m.servers[i].Links() {
			k.SetMTU(mtu)
		}
	}
	m.startAll()
	ends := m.ends()
	m.bothWays(ends[0], ends[1])
	m.bothWays(ends[1], ends[2])
	m.bothWays(ends[2], ends[0])
}

// Two servers with uplinks of 1500, between them two routers with a network that
// carries less.
func TestShow6RouterHop(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		nets [3]string
		mtu  int
		icmp string // what routers must not say, in the language of nft; "": they may say all
	}{
		{"IPv4", [3]string{"192.0.2.0/24", "192.0.3.0/24", "192.0.4.0/24"}, 1300, ""},
		{"IPv4 without ICMP", [3]string{"192.0.2.0/24", "192.0.3.0/24", "192.0.4.0/24"}, 1300, "meta l4proto icmp"},
		{"IPv4 1420 without ICMP", [3]string{"192.0.2.0/24", "192.0.3.0/24", "192.0.4.0/24"}, 1420, "meta l4proto icmp"},
		{"IPv6", [3]string{"2001:db8:1::/64", "2001:db8:2::/64", "2001:db8:3::/64"}, 1300, ""},
		{"IPv6 1420", [3]string{"2001:db8:1::/64", "2001:db8:2::/64", "2001:db8:3::/64"}, 1420, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMeshOn(t, 0, c.nets[0])
			m.Plain()
			middle, far := m.Network("middle", c.nets[1]), m.Network("far", c.nets[2])
			m.addServer()
			m.nets = []*lab.Network{far}
			m.addServer()
			m.addEntries(m.servers[0])
			m.addEntries(m.servers[1])
			r1, r2 := m.Server("r1").On(m.lan, middle), m.Server("r2").On(middle, far)
			for _, r := range []*lab.Server{r1, r2} {
				r.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
				r.Link(middle).SetMTU(c.mtu)
				if c.icmp != "" {
					r.RunInput("add table inet quiet\nadd chain inet quiet output { type filter hook output priority 0; }\nadd rule inet quiet output "+c.icmp+" drop\n", "nft", "-f", "-")
				}
			}
			m.servers[0].Run("ip", "route", "add", c.nets[2], "via", r1.Addr(m.lan).String())
			r1.Run("ip", "route", "add", c.nets[2], "via", r2.Addr(middle).String())
			r2.Run("ip", "route", "add", c.nets[0], "via", r1.Addr(middle).String())
			m.servers[1].Run("ip", "route", "add", c.nets[0], "via", r2.Addr(far).String())
			m.startAll()
			ends := m.ends()
			m.bothWays(ends[0], ends[1])
			m.servers[0].Run("ping", "-n", "-c3", "-i0.2", "-W2", "-s1400", wireGuardIP(1)) // lone packets, of which batches say nothing
		})
	}
}

// The tunnel follows its uplink, also under a connection, and says when it cannot.
func TestShow6FollowsUplink(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	m.startAll()
	a := m.servers[0]
	mtu := func(want int) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, fmt.Sprintf("mtu %d", want), func() error {
			st, err := tryStatus(t, a)
			link := a.Run("cat", "/sys/class/net/jiji0/mtu")
			if err == nil && (st.Interface.MTU != want || strings.TrimSpace(link) != fmt.Sprint(want)) {
				err = fmt.Errorf("status says %d, the interface has %s", st.Interface.MTU, link)
			}
			return err
		})
	}
	both := func(bytes int) {
		for _, s := range m.servers {
			s.Link(m.lan).SetMTU(bytes)
		}
	}
	mtu(1440)
	ends := m.ends()
	l := listenTCP(t, ends[1][0].Host, ends[1][0].Addr)
	out := dialTCP(t, ends[0][0].Host, l.Addr().(*net.TCPAddr).AddrPort(), 3*bulkLimit)
	in, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	changed := make(chan struct{})
	result := make(chan error, 1)
	go func() { // sends all the time, and much more after the change
		defer out.CloseWrite()
		zero := make([]byte, 64<<10)
		for after := 0; after < bulk; {
			if _, err := out.Write(zero); err != nil {
				return
			}
			select {
			case <-changed:
				after += len(zero)
			default:
			}
		}
	}()
	go func() {
		_, err := io.Copy(io.Discard, in)
		result <- err
	}()
	both(1400)
	mtu(1340)
	m.nodes[0].WaitLog("mtu changed", time.Second)
	since := time.Now()
	close(changed)
	if err := <-result; err != nil {
		t.Error("the connection under which the MTU changed:", err)
	}
	t.Logf("the connection under which the MTU changed carried %d bytes after it in %v", bulk, time.Since(since))
	both(9000)
	mtu(8921)
	m.bothWays(ends[0], ends[1])

	a.Link(m.lan).SetMTU(1279)
	warned := func(want bool) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, "the warning in status", func() error {
			st, err := tryStatus(t, a)
			if err == nil && strings.Contains(strings.Join(st.Warnings, "\n"), "mtu of uplink eth0 is 1279") != want {
				err = fmt.Errorf("warnings are %q, want ours in them: %v", st.Warnings, want)
			}
			return err
		})
	}
	warned(true)
	mtu(8921)
	both(1500)
	warned(false)
	mtu(1440)
	m.bothWays(ends[0], ends[1])
	if n := strings.Count(m.nodes[0].Log(), "mtu kept"); n != 1 {
		t.Errorf("the small uplink was logged %d times, want once", n)
	}
}

func TestShow6TooSmallUplinkIsRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	a := m.servers[0]
	a.Link(m.lan).SetMTU(1279)
	out, err := a.Try("jiji-node", "run")
	if err == nil {
		t.Fatalf("it ran:\n%s", out)
	}
	for _, want := range []string{"mtu of uplink eth0 is 1279: expected at least 1280", "ip link set eth0 mtu 1280"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %q in it", err, want)
		}
	}
	if _, err := a.Try("ip", "link", "show", "jiji0"); err == nil {
		t.Error("the interface was made")
	}
}
