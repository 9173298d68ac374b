package node

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// server is number n of the tests' cluster, with n+1 in its key.
func server(n int) topology.Server {
	s := topology.Server{ID: fmt.Sprintf("web%d", n), Hostname: fmt.Sprintf("web%d", n), Key: wgkey.Public{byte(n + 1)}}
	s.Subnet = netip.MustParsePrefix(fmt.Sprintf("10.210.%d.0/24", n))
	s.WireGuardIP = ipplan.WireGuardIP(s.Subnet)
	s.ManagementIP = ipplan.Management(s.Key)
	s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:51820", n+1))}
	return s
}

func mesh(servers ...topology.Server) topology.Topology {
	return topology.Topology{Cluster: netip.MustParsePrefix(ipplan.DefaultCluster), Domain: "jiji", Servers: servers}
}

func TestPlanPeersAndRoutes(t *testing.T) {
	gone, unallocated := server(3), server(4)
	gone.RemovedAt = time.Now()
	unallocated.Subnet, unallocated.WireGuardIP = netip.Prefix{}, netip.Addr{}
	p := makePlan(mesh(server(0), server(1), server(2), gone, unallocated), server(0).Key, true, false, nobody, unlimited)
	var got []string
	for _, peer := range p.peers {
		got = append(got, fmt.Sprint(peer.Key[0], peer.AllowedIPs, peer.Keepalive, p.candidates[peer.Key]))
	}
	for _, r := range p.routes {
		got = append(got, fmt.Sprint(r.Dst, " src ", r.Src))
	}
	m1, m2, me := server(1).ManagementIP, server(2).ManagementIP, server(0).ManagementIP
	want := []string{
		fmt.Sprintf("2 [10.210.1.0/24 %v/128] 25s [192.0.2.2:51820]", m1),
		fmt.Sprintf("3 [10.210.2.0/24 %v/128] 25s [192.0.2.3:51820]", m2),
		"10.210.1.0/24 src 10.210.0.1", fmt.Sprintf("%v/128 src %v", m1, me),
		"10.210.2.0/24 src 10.210.0.1", fmt.Sprintf("%v/128 src %v", m2, me),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(p.candidates) != 2 {
		t.Errorf("%d peers have candidates, want 2", len(p.candidates))
	}
}

func unlimited(wgkey.Public) int { return 0 }

func TestPlanLimitsPeers(t *testing.T) {
	limit := map[wgkey.Public]int{server(1).Key: 1232, server(2).Key: 1360}
	p := makePlan(mesh(server(0), server(1), server(2), server(3)), server(0).Key, true, false, nobody, func(k wgkey.Public) int { return limit[k] })
	var got []int
	for _, peer := range p.peers {
		got = append(got, peer.MTU)
	}
	for _, r := range p.routes {
		got = append(got, r.MTU)
	}
	if want := []int{1232, 1360, 0, 1232, 1280, 1360, 1360, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("MTUs of peers and of their two routes are %v, want %v", got, want)
	}
}

func TestPlanWithoutIPv6HasNoManagementRoutes(t *testing.T) {
	for _, r := range makePlan(mesh(server(0), server(1)), server(0).Key, false, false, nobody, unlimited).routes {
		if r.Dst.Addr().Is6() {
			t.Errorf("route %v", r.Dst)
		}
	}
}

func TestPlanOfARemovedServerHasNoPeers(t *testing.T) {
	me := server(0)
	me.RemovedAt = time.Now()
	if p := makePlan(mesh(me, server(1)), me.Key, true, false, nobody, unlimited); len(p.peers)+len(p.routes)+len(p.candidates) != 0 {
		t.Errorf("got %+v", p)
	}
}

func TestStaleContainers(t *testing.T) {
	now := time.Now()
	c := func(id, server string, h registry.Health, started, checked time.Duration) registry.Container {
		v := registry.Container{ID: id, Service: "api", ServerID: server, Health: h, StartedAt: now.Add(-started)}
		if checked != 0 {
			v.LastCheck = now.Add(-checked)
		}
		return v
	}
	all := []registry.Container{
		c("healthy", "web0", registry.Healthy, time.Hour, 0),
		c("old", "web0", registry.Unhealthy, time.Hour, time.Hour),
		c("never-checked", "web0", registry.Starting, time.Hour, 0),
		c("just-turned", "web0", registry.Unhealthy, time.Hour, time.Second),
		c("another's", "web1", registry.Unhealthy, time.Hour, time.Hour),
	}
	for service, want := range map[string]string{"": "old never-checked", "API": "old never-checked", "db": ""} {
		var got []string
		for _, v := range staleContainers(seq(all...), "web0", control.CleanupRequest{Service: service, OlderThan: control.Duration(time.Minute)}, now) {
			got = append(got, v.ID)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("service %q: %v, want %s", service, got, want)
		}
	}
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]string{"80": "80/tcp", "53/udp": "53/udp", "443/tcp": "443/tcp", "0": "", "65536": "", "-1": "", "80/sctp": "", "/tcp": "", "": "", "80/": ""} {
		p, err := parsePort(text)
		got := ""
		if err == nil {
			got = p.String()
		}
		if got != want {
			t.Errorf("parsePort(%q) = %q, want %q", text, got, want)
		}
	}
}

// The parts know nothing of one another; only node joins them (CONTRIBUTING.md).
func TestPartsDoNotImportOneAnother(t *testing.T) {
	const module = "github.com/acidtib/jiji-node/"
	allowed := map[string][]string{
		"tunnel":             {"tunnel/wgkey"},
		"tunnel/wgkey":       nil,
		"dnsserver":          nil,
		"registry":           {"tunnel/wgkey"},
		"monitor":            {"tunnel/wgkey"},
		"node/peerlink":      nil,
		"node/host":          {"node/ipplan", "node/statefile", "tunnel/wgkey"},
		"node/topology":      {"node/ipplan", "node/statefile", "tunnel/wgkey"},
		"registry/agent":     {"node/statefile"},
		"registry/changes":   nil,
		"registry/cluster":   {"registry", "registry/changes", "registry/corrosion", "registry/embedded", "tunnel/wgkey"},
		"registry/corrosion": nil,
		"registry/embedded":  {"registry", "tunnel/wgkey"},
		"node/membership":    {"node/identity", "node/ipplan", "node/statefile", "node/topology", "node/usage", "tunnel/wgkey"},
	}
	for part, may := range allowed {
		out, err := exec.Command("go", "list", "-deps", module+part).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", part, err)
		}
		for _, dep := range strings.Fields(string(out)) {
			own, ok := strings.CutPrefix(dep, module)
			if ok && own != part && !slices.Contains(may, own) && !strings.HasPrefix(own, part+"/") {
				t.Errorf("%s imports %s", part, own)
			}
		}
	}
}

// seq are containers as a snapshot has them.
func seq(list ...registry.Container) iter.Seq[*registry.Container] {
	return func(yield func(*registry.Container) bool) {
		for i := range list {
			if !yield(&list[i]) {
				return
			}
		}
	}
}

func nobody(wgkey.Public) bool { return false }

// A server that was removed just now, or lost its subnet, is told so through the
// mesh, and is nothing else in it.
func TestPlanTellsWhoLeaves(t *testing.T) {
	gone, lost := server(1), server(2)
	gone.RemovedAt = time.Now()
	lost.Subnet, lost.WireGuardIP = netip.Prefix{}, netip.Addr{}
	for _, registered := range []bool{false, true} {
		p := makePlan(mesh(server(0), gone, lost, server(3)), server(0).Key, true, registered, func(k wgkey.Public) bool { return k == gone.Key }, unlimited)
		got := map[wgkey.Public]int{}
		for _, peer := range p.peers {
			got[peer.Key] = len(peer.AllowedIPs)
		}
		want := map[wgkey.Public]int{server(3).Key: 2}
		if registered {
			want[gone.Key], want[lost.Key] = 1, 1
		}
		if !maps.Equal(got, want) {
			t.Errorf("registered %v: allowed IPs of peers %v, want %v", registered, got, want)
		}
		for _, r := range p.routes {
			if r.Dst == gone.Subnet {
				t.Errorf("registered %v: a route to the removed server: %v", registered, r)
			}
		}
	}
}
