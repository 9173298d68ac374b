//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// Three servers by the README's commands, with containers that are there before their
// node or come later.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 3)
	leaks := underlayLeaks(m)
	a := m.servers[0].Container("a", "10.210.0.10") // before its node
	m.startAll()
	b := m.servers[1].Container("b", "10.210.1.10")
	c := m.servers[2].Container("c", "10.210.2.254")
	containers := []*lab.Container{a, b, c}

	m.step("ContainersPingEachOther", func() {
		for _, from := range containers {
			for _, to := range containers {
				from.Run("ping", "-n", "-c1", "-W2", to.Addr.String())
			}
		}
	})
	m.step("ServersPingEachOther", func() {
		for _, from := range m.servers {
			for i := range m.servers {
				from.Run("ping", "-n", "-c1", "-W2", wireGuardIP(i))
			}
			for _, to := range containers {
				from.Run("ping", "-n", "-c1", "-W2", to.Addr.String())
			}
		}
	})
	m.step("ContainersResolveServersByGlibc", func() {
		for _, from := range containers {
			for i, s := range m.servers {
				out := from.Run("getent", "ahostsv4", s.Name+".node.jiji")
				if got := strings.Fields(out)[0]; got != wireGuardIP(i) {
					t.Errorf("%s: %s.node.jiji is %s, want %s", from.Name, s.Name, got, wireGuardIP(i))
				}
				from.Run("ping", "-c1", "-W2", s.Name+".node.jiji")
				from.Run("ping", "-c1", "-W2", s.Name+".node") // by the search list
			}
		}
	})
	m.step("ContainersResolveServersByMusl", func() {
		if _, err := exec.LookPath("musl-gcc"); err != nil {
			missing := "musl-gcc is not installed (apt-get install musl-tools)"
			if os.Getenv("CI") == "true" {
				t.Error(missing)
			}
			t.Log(missing + ": not proved")
			return
		}
		resolve := compile(t, "musl-gcc", "testdata/resolve.c")
		for _, from := range containers {
			for i, s := range m.servers {
				name := s.Name + ".node.jiji" // musl does not search a name that has ndots dots
				if got := strings.TrimSpace(from.Run(resolve, name)); got != wireGuardIP(i) {
					t.Errorf("%s: %s is %s, want %s", from.Name, name, got, wireGuardIP(i))
				}
			}
		}
	})
	m.step("ContainersResolveServersByDig", func() {
		for _, from := range containers {
			for i, s := range m.servers {
				for _, transport := range []string{"+notcp", "+tcp"} {
					out := from.Run("dig", "+short", "+tries=1", transport, s.Name+".node.jiji")
					if got := strings.TrimSpace(out); got != wireGuardIP(i) {
						t.Errorf("%s: %s.node.jiji is %s, want %s", from.Name, s.Name, got, wireGuardIP(i))
					}
				}
				out := from.Run("dig", "+short", "+tries=1", "-t", "AAAA", s.Name+".node.jiji")
				if got, want := strings.TrimSpace(out), status(t, s).Server.ManagementIP.String(); got != want {
					t.Errorf("%s: AAAA of %s.node.jiji is %s, want %s", from.Name, s.Name, got, want)
				}
			}
		}
	})
	m.step("OneRouteForEachPeerSubnet", func() {
		for i, s := range m.servers {
			var got, want []string
			for line := range strings.Lines(sh(s, "ip route show | grep jiji0")) {
				f := strings.Fields(line)
				at := slices.Index(f, "src")
				if at < 0 || at+1 == len(f) {
					t.Errorf("%s: route without source: %s", s.Name, line)
					continue
				}
				got = append(got, fmt.Sprint(f[:3], f[at:at+2]))
			}
			for j := range m.servers {
				if j != i {
					want = append(want, fmt.Sprintf("[10.210.%d.0/24 dev jiji0] [src %s]", j, wireGuardIP(i)))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s has the routes %q, want %q", s.Name, got, want)
			}
		}
	})
	m.step("SourceAddressesAreTheContainersOwn", func() {
		for _, from := range containers {
			for _, to := range containers {
				if from == to {
					continue
				}
				seen := to.Capture("eth0", "icmp[icmptype]==icmp-echo")
				from.Run("ping", "-n", "-c1", "-W2", to.Addr.String())
				if text := seen.String(); seen.Count() != 1 || !strings.Contains(text, fmt.Sprintf("IP %s > %s:", from.Addr, to.Addr)) {
					t.Errorf("%s pinged %s, which saw\n%s", from.Name, to.Name, text)
				}
				seen.Stop()
				if got := transfer(t, from, to, 1000, 10*time.Second); got != from.Addr {
					t.Errorf("%s connected to %s, which saw %s, want %s", from.Name, to.Name, got, from.Addr)
				}
			}
		}
	})
	m.step("FullMTUArrives", func() {
		mtu := status(t, m.servers[0]).Interface.MTU
		if mtu != 1440 {
			t.Errorf("the MTU is %d on an underlay of 1500 with IPv4 only, want 1440", mtu)
		}
		ping := func(h *lab.Host, to string, size int) error {
			_, err := h.Try("ping", "-n", "-c1", "-W2", "-Mdo", "-s", fmt.Sprint(size-28), to)
			return err
		}
		for _, from := range containers {
			for _, to := range containers {
				if from == to {
					continue
				}
				if err := ping(from.Host, to.Addr.String(), mtu); err != nil {
					t.Errorf("%d bytes: %v", mtu, err)
				}
				if ping(from.Host, to.Addr.String(), mtu+1) == nil {
					t.Errorf("%s got %d bytes to %s unfragmented", from.Name, mtu+1, to.Name)
				}
				from.Run("ping", "-n", "-c1", "-W2", "-Mdont", "-s", "9000", to.Addr.String())
			}
		}
	})
	m.step("ManagementAddressesPing", func() {
		for _, from := range m.servers {
			for _, to := range m.servers {
				from.Run("ping", "-n", "-c1", "-W2", status(t, to).Server.ManagementIP.String())
			}
		}
	})
	m.step("PingCommand", func() {
		for _, target := range []string{"web2", "web2.node.jiji", "10.210.1.1", b.Addr.String(), status(t, m.servers[1]).Server.ManagementIP.String()} {
			m.servers[0].Run("jiji-node", "ping", target, "--count", "1")
		}
	})
	m.step("TracerouteShowsTheHops", func() {
		for _, from := range containers {
			for i, to := range containers {
				if from == to {
					continue
				}
				var got []string
				out := from.Run("traceroute", "-n", "-q1", "-w2", "-m5", to.Addr.String())
				for line := range strings.Lines(out) {
					if f := strings.Fields(line); f[0] != "traceroute" {
						got = append(got, f[1])
					}
				}
				own := wireGuardIP(slices.Index(containers, from))
				if want := []string{own, wireGuardIP(i), to.Addr.String()}; !slices.Equal(got, want) {
					t.Errorf("%s to %s goes by %v, want %v\n%s", from.Name, to.Name, got, want, out)
				}
			}
		}
	})
	m.step("NoPayloadInTheClear", func() {
		const marker, size = "6d61726b6572", 1000 // "marker", the pattern that ping repeats
		var seen []*lab.Capture
		for _, s := range m.servers {
			seen = append(seen, s.Link(m.lan).Capture("udp port 51820"))
		}
		a.Run("ping", "-n", "-c5", "-i0.01", fmt.Sprint("-s", size), "-p", marker, "-W2", b.Addr.String())
		for _, capture := range seen[:2] {
			bytes := 0
			for _, p := range capture.Packets() { // two that leave together may be one here
				bytes += p.Size
			}
			if bytes < 10*size {
				t.Errorf("the underlay saw %d bytes of 5 requests and answers of %d", bytes, size)
			}
		}
		for _, capture := range seen {
			for _, p := range capture.Packets() {
				if bytes.Contains(p.Data, []byte("marker")) {
					t.Fatalf("the payload is in a packet on the underlay:\n%q", p.Data)
				}
			}
			capture.Stop()
		}
	})
	m.step("100MBArrive", func() {
		const size = 100 << 20
		start := time.Now()
		transfer(t, a, b, size, 60*time.Second)
		t.Logf("%d MB in %v", size>>20, time.Since(start).Round(time.Millisecond))
	})
	for s, capture := range leaks { // of all of the above
		if n := capture.Count(); n > 0 {
			t.Errorf("%d packets other than WireGuard's and neighbour discovery left %s or reached it:\n%s", n, s.Name, capture)
		}
	}
	for _, p := range m.nodes {
		p.Stop()
	}
}

// underlayLeaks captures what should not be on the underlay: all but WireGuard, the
// word of a host whose node does not run yet, and neighbour discovery.
func underlayLeaks(m *mesh) map[*lab.Server]*lab.Capture {
	captures := map[*lab.Server]*lab.Capture{}
	for _, s := range m.servers {
		captures[s] = s.Link(m.lan).Capture("not (udp port 51820 or icmp[icmptype]==icmp-unreach or arp or (ip6 and (src net fe80::/10 or src host ::)))")
	}
	return captures
}
