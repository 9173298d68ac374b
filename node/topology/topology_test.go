package topology

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var (
	noon    = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	cluster = netip.MustParsePrefix("10.210.0.0/16")
)

// server returns a valid server number n, with its subnet.
func server(n int) Server {
	subnet, err := ipplan.Subnet(netip.MustParsePrefix("10.0.0.0/8"), 210*256+n)
	if err != nil {
		panic(err)
	}
	return derive(Server{
		ID: fmt.Sprintf("s%d", n), Hostname: fmt.Sprintf("s%d.example.com", n), Subnet: subnet,
		Key: wgkey.Public{1, byte(n), byte(n >> 8), byte(n >> 16)}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:51820")},
	})
}

func mesh(servers ...Server) Topology {
	return Topology{Cluster: cluster, Domain: "jiji", Discovery: "static", Servers: servers, CreatedAt: noon, UpdatedAt: noon}
}

func TestCheck(t *testing.T) {
	change := func(f func(s *Server)) Topology {
		m := mesh(server(0), server(1), server(2))
		f(&m.Servers[2])
		return m
	}
	endpoint := func(text string) Topology {
		return change(func(s *Server) { s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(text)} })
	}
	removed := func(s Server) Server { s.RemovedAt = noon; return s }
	rename := func(s Server, id string) Server { s.ID = id; return s }
	tests := []struct {
		name string
		m    Topology
		want string // the error; "" for none
	}{
		{"fine", mesh(server(0), server(1)), ""},
		{"empty", mesh(), ""},
		{"no topology", Topology{}, "cluster CIDR is missing\nservice domain \"\": want labels of 1 to 63 letters, digits and inner hyphens, such as jiji or mesh.example"},
		{"domain in capitals", Topology{Cluster: cluster, Domain: "Jiji"}, `service domain "Jiji": want "jiji"`},
		{"no subnet", mesh(derive(Server{ID: "a", Key: wgkey.Public{1}}), derive(Server{ID: "b", Key: wgkey.Public{2}})), ""},
		{"no subnet, but an address", change(func(s *Server) { s.Subnet = netip.Prefix{} }), `server "s2": WireGuard address 10.210.2.1: there is no subnet that it belongs to`},
		{"no management address", change(func(s *Server) { s.ManagementIP = netip.Addr{} }), `server "s2": management address invalid IP does not follow from its public key, want ` + server(2).ManagementIP.String()},
		{"same id", mesh(server(0), rename(server(1), "S0")), `server id "S0": is the id of two servers, number 1 (s0.example.com) and number 2 (s1.example.com)`},
		{"same id as a removed one", mesh(removed(server(0)), rename(server(1), "s0")), `server id "s0": is the id of two servers, number 1 (s0.example.com) and number 2 (s1.example.com)`},
		{"same subnet", change(func(s *Server) { s.Subnet, s.WireGuardIP = server(1).Subnet, server(1).WireGuardIP }), `server "s2" has the subnet of server "s1": 10.210.1.0/24`},
		{"subnet of a removed one", mesh(removed(server(0)), func() Server {
			s := server(1)
			s.Subnet, s.WireGuardIP = server(0).Subnet, server(0).WireGuardIP
			return s
		}()), ""},
		{"key of a removed one", mesh(removed(server(0)), rename(server(0), "new")), ""},
		{"same key", mesh(server(0), func() Server {
			s := rename(server(0), "b")
			s.Subnet, s.WireGuardIP = server(1).Subnet, server(1).WireGuardIP
			return s
		}()),
			`server "b" has the public key of server "s0": ` + server(0).Key.String()},
		{"endpoint, nothing", change(func(s *Server) { s.Endpoints = make([]netip.AddrPort, 1) }), `server "s2": endpoint invalid AddrPort: want an address and a port`},
		{"endpoint port 0", endpoint("203.0.113.1:0"), `server "s2": endpoint 203.0.113.1:0: port is 0`},
		{"endpoint unspecified", endpoint("0.0.0.0:1"), `server "s2": endpoint 0.0.0.0:1: want an address and a port`},
		{"endpoint unspecified, v6", endpoint("[::]:1"), `server "s2": endpoint [::]:1: want an address and a port`},
		{"endpoint this network", endpoint("0.1.2.3:1"), `server "s2": endpoint 0.1.2.3:1: is not a unicast address`},
		{"endpoint loopback", endpoint("127.9.9.9:1"), `server "s2": endpoint 127.9.9.9:1: is a loopback address`},
		{"endpoint loopback, mapped", endpoint("[::ffff:127.0.0.1]:1"), `server "s2": endpoint [::ffff:127.0.0.1]:1: is a loopback address`},
		{"endpoint loopback, v6", endpoint("[::1]:1"), `server "s2": endpoint [::1]:1: is a loopback address`},
		{"endpoint multicast", endpoint("224.0.0.1:1"), `server "s2": endpoint 224.0.0.1:1: is not a unicast address`},
		{"endpoint multicast, v6", endpoint("[ff02::1]:1"), `server "s2": endpoint [ff02::1]:1: is not a unicast address`},
		{"endpoint broadcast", endpoint("255.255.255.255:1"), `server "s2": endpoint 255.255.255.255:1: is not a unicast address`},
		{"endpoint link-local, v6", endpoint("[fe80::1]:1"), `server "s2": endpoint [fe80::1]:1: is link-local: its interface means nothing on another server`},
		{"endpoint with a zone", endpoint("[fe80::1%eth0]:1"), `server "s2": endpoint [fe80::1%eth0]:1: is link-local: its interface means nothing on another server`},
		{"endpoint in the cluster", endpoint("10.210.1.1:1"), `server "s2": endpoint 10.210.1.1:1: lies inside the mesh that is to be reached through it`},
		{"endpoint in the cluster, mapped", endpoint("[::ffff:10.210.1.1]:1"), `server "s2": endpoint [::ffff:10.210.1.1]:1: lies inside the mesh that is to be reached through it`},
		{"endpoint is a management address", endpoint("[fdcc::1]:1"), `server "s2": endpoint [fdcc::1]:1: lies inside the mesh that is to be reached through it`},
		{"private endpoints", change(func(s *Server) {
			s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("192.168.0.1:1"), netip.MustParseAddrPort("10.211.0.1:65535"), netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("169.254.1.1:1")}
		}), ""},
	}
	for _, tt := range tests {
		got := ""
		if err := Check(tt.m); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestParseDomain(t *testing.T) {
	long := strings.Repeat("a", 63)
	for text, want := range map[string]string{
		"jiji": "jiji", "Mesh.Example.": "mesh.example", "a-1.b": "a-1.b", "1": "1", long: long, long + "." + long[:61]: long + "." + long[:61],
		"": "", ".": "", "a..b": "", ".a": "", "-a": "", "a-": "", "a_b": "", "a b": "", "ü": "", long + "a": "", long + "." + long[:62]: "",
	} {
		got, err := ParseDomain(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseDomain(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestSelf(t *testing.T) {
	old := server(0)
	old.RemovedAt = noon
	again := server(0)
	again.ID = "again"
	m := mesh(old, server(1), again)
	if s, ok := m.Self(old.Key); !ok || s.ID != "again" {
		t.Errorf("Self is %+v, %v, want the member", s, ok)
	}
	if s, ok := mesh(old).Self(old.Key); !ok || !s.RemovedAt.Equal(noon) {
		t.Errorf("Self is %+v, %v, want the removed one", s, ok)
	}
	if s, ok := m.Self(wgkey.Public{7}); ok {
		t.Errorf("Self is %+v for a key that nobody has", s)
	}
}

func TestWithChangesNothing(t *testing.T) {
	m := mesh(server(0))
	changed := server(0)
	changed.Hostname = "other"
	if next := m.With(changed); next.Servers[0].Hostname != "other" || len(next.Servers) != 1 || m.Servers[0].Hostname == "other" {
		t.Errorf("replaced: %+v, before: %+v", next, m)
	}
	m.Servers = append(make([]Server, 0, 8), m.Servers...)
	one, two := m.With(server(1)), m.With(server(2))
	if one.Servers[1].ID != "s1" || two.Servers[1].ID != "s2" || len(m.Servers) != 1 {
		t.Errorf("added: %+v, %+v", one, two)
	}
}
