package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// newcomer returns a server without a subnet.
func newcomer(id string, key byte) Server {
	return derive(Server{ID: id, Hostname: id + ".example.com", Key: wgkey.Public{0xff, key}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:51820")}})
}

func with(s Server, changes ...func(*Server)) Server {
	for _, change := range changes {
		change(&s)
	}
	return s
}

func on(subnet string) func(*Server) {
	return func(s *Server) {
		s.Subnet = netip.MustParsePrefix(subnet)
		s.WireGuardIP = ipplan.WireGuardIP(s.Subnet)
	}
}

func removed(ago time.Duration) func(*Server) {
	return func(s *Server) { s.RemovedAt = noon.Add(-ago) }
}

func id(id string) func(*Server)     { return func(s *Server) { s.ID = id } }
func host(name string) func(*Server) { return func(s *Server) { s.Hostname = name } }
func noSubnet(s *Server)             { s.Subnet, s.WireGuardIP = netip.Prefix{}, netip.Addr{} }

func full(but ...Server) Topology {
	m := mesh(but...)
	m.Cluster = netip.MustParsePrefix("10.210.0.0/22")
	for n := range 4 {
		if !slices.ContainsFunc(but, func(s Server) bool { return s.Subnet == server(n).Subnet }) {
			m.Servers = append(m.Servers, server(n))
		}
	}
	return m
}

func TestAdd(t *testing.T) {
	tests := []struct {
		name  string
		known Topology
		entry Server
		want  string // id and subnet of the outcome, or the error
		same  bool   // nothing changes
	}{
		{"the first", mesh(), newcomer("a", 1), "a 10.210.0.0/24", false},
		{"lowest free number, not the count", mesh(server(0), server(2)), newcomer("a", 1), "a 10.210.1.0/24", false},
		{"its own number", mesh(server(0)), with(newcomer("a", 1), on("10.210.9.0/24")), "a 10.210.9.0/24", false},
		{"known, nothing new", mesh(server(0), server(1)), server(1), "s1 10.210.1.0/24", true},
		{"known, without its subnet", mesh(server(0), server(1)), with(server(1), noSubnet), "s1 10.210.1.0/24", true},
		{"known, under another id", mesh(server(0), server(1)), with(server(1), id("other")), "s1 10.210.1.0/24", true},
		{"known, without a host name", mesh(server(0), server(1)), with(server(1), host("")), "s1 10.210.1.0/24", true},
		{"known, other host name", mesh(server(0), server(1)), with(server(1), host("new")), "s1 10.210.1.0/24", false},
		{"known, other endpoints", mesh(server(0), server(1)), with(server(1), func(s *Server) { s.Endpoints = newcomer("a", 1).Endpoints }), "s1 10.210.1.0/24", false},
		{"known, no endpoints", mesh(server(0), server(1)), with(server(1), func(s *Server) { s.Endpoints = nil }), "s1 10.210.1.0/24", false},
		{"known, other subnet", mesh(server(0), server(1)), with(server(1), on("10.210.7.0/24")),
			"server \"s1\" has subnet 10.210.1.0/24 in this topology, its entry says 10.210.7.0/24: on it, run `jiji-node init --index 1`", false},
		{"known without subnet, still none", mesh(server(0), with(server(1), noSubnet)), with(server(1), noSubnet), "s1 10.210.1.0/24", false},
		{"known without subnet, now with", mesh(server(0), with(server(1), noSubnet)), with(server(1), on("10.210.7.0/24")), "s1 10.210.7.0/24", false},
		{"subnet of another", mesh(server(0), server(1), server(3)), with(newcomer("a", 1), on("10.210.1.0/24")),
			"subnet 10.210.1.0/24 of server \"a\" belongs to server \"s1\": on server \"a\", run `jiji-node init --index 2`", false},
		{"set up anew", mesh(server(0), server(1)), with(newcomer("S1", 1), on("10.210.1.0/24")),
			"subnet 10.210.1.0/24 belongs to server \"s1\" with another key: if it was set up anew, run `jiji-node server remove s1` and add it again; if both are there, run `jiji-node init --index 2` on the new one", false},
		{"subnet of another, full", full(), with(newcomer("a", 1), on("10.210.1.0/24")),
			`subnet 10.210.1.0/24 of server "a" belongs to server "s1": cluster 10.210.0.0/22: no server subnet is free: all 4 are taken`, false},
		{"full", full(), newcomer("a", 1), "cluster 10.210.0.0/22: no server subnet is free: all 4 are taken", false},
		{"full of members and resting numbers", full(with(server(2), removed(time.Hour))), newcomer("a", 1), "cluster 10.210.0.0/22: no server subnet is free: all 4 are taken", false},
		{"a number rests for a day", mesh(server(0), with(server(1), removed(24*time.Hour-time.Second))), newcomer("a", 1), "a 10.210.2.0/24", false},
		{"and not longer", mesh(server(0), with(server(1), removed(24*time.Hour))), newcomer("a", 1), "a 10.210.1.0/24", false},
		{"rests when clocks differ", mesh(server(0), with(server(1), removed(-time.Hour))), newcomer("a", 1), "a 10.210.2.0/24", false},
		{"a resting number by name", mesh(server(0), with(server(1), removed(time.Hour))), with(newcomer("a", 1), on("10.210.1.0/24")), "a 10.210.1.0/24", false},
		{"a removed one comes back to its number", mesh(server(0), with(server(1), removed(time.Hour))), with(server(1), noSubnet), "s1 10.210.1.0/24", false},
		{"comes back, number kept by itself", mesh(server(0), with(server(1), removed(time.Hour))), server(1), "s1 10.210.1.0/24", false},
		{"comes back, number given away", mesh(with(newcomer("a", 1), on("10.210.1.0/24")), with(server(1), removed(48*time.Hour))), with(server(1), noSubnet), "s1 10.210.0.0/24", false},
		{"comes back, claims what was given away", mesh(with(newcomer("a", 1), on("10.210.1.0/24")), with(server(1), removed(48*time.Hour))), server(1),
			"subnet 10.210.1.0/24 of server \"s1\" belongs to server \"a\": on server \"s1\", run `jiji-node init --index 0`", false},
		{"comes back elsewhere", mesh(server(0), with(server(1), removed(time.Hour))), with(server(1), on("10.210.7.0/24")), "s1 10.210.7.0/24", false},
		{"id of another", mesh(server(0), server(1)), newcomer("s1", 1), "s1-1 10.210.2.0/24", false},
		{"id of two others", mesh(server(0), with(server(1), id("s0-1"))), newcomer("s0", 1), "s0-2 10.210.2.0/24", false},
		{"id of another in capitals", mesh(server(0)), newcomer("S0", 1), "S0-1 10.210.1.0/24", false},
		{"id of a removed one", mesh(server(0), with(server(1), removed(48*time.Hour))), newcomer("s1", 1), "s1-1 10.210.1.0/24", false},
		{"no id", mesh(server(0)), with(newcomer("", 1), id(""), host("web_1")), "web-1 10.210.1.0/24", false},
		{"no id, no host name", mesh(server(0)), Server{Key: wgkey.Public{1}}, "server number 1: server id is missing", false},
		{"removed entry", mesh(server(0)), with(newcomer("a", 1), removed(0)), `server "a" was removed at 2026-01-31T12:00:00Z, only a member can be added`, false},
		{"outside", mesh(server(0)), with(newcomer("a", 1), on("10.211.0.0/24")), `server "a": server subnet "10.211.0.0/24": lies outside cluster 10.210.0.0/16`, false},
		{"not a /24", mesh(server(0)), with(newcomer("a", 1), on("10.210.0.0/23")), `server "a": server subnet "10.210.0.0/23": want an IPv4 /24 of cluster 10.210.0.0/16`, false},
		{"endpoint in the mesh", mesh(server(0)), with(newcomer("a", 1), func(s *Server) { s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("10.210.0.1:1")} }),
			`server "a": endpoint 10.210.0.1:1: lies inside the mesh that is to be reached through it`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := Check(tt.known); err != nil {
				t.Fatal(err)
			}
			before := string(tt.known.Marshal())
			later := noon.Add(time.Minute)
			next, s, err := Add(tt.known, EntryDoc{Server: tt.entry}, noon)
			got := fmt.Sprint(s.ID, " ", s.Subnet)
			if err != nil {
				got = err.Error()
				if strings.Contains(got, "no server subnet is free") != errors.Is(err, ipplan.ErrFull) {
					t.Errorf("error wraps ErrFull: %v", errors.Is(err, ipplan.ErrFull))
				}
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if after := string(tt.known.Marshal()); after != before {
				t.Errorf("Add changed its argument:\n%s\n%s", before, after)
			}
			if same := next.Equal(tt.known); same != (tt.same || err != nil) {
				t.Errorf("unchanged: %v", same)
			}
			if err != nil {
				return
			}
			if err := Check(next); err != nil {
				t.Errorf("outcome: %v", err)
			}
			if member, ok := next.Self(tt.entry.Key); !ok || !member.Equal(s) || !s.RemovedAt.IsZero() {
				t.Errorf("the topology has %+v, Add returned %+v", member, s)
			}
			again, s2, err := Add(next, EntryDoc{Server: s}, later)
			if err != nil || !again.Equal(next) || !again.UpdatedAt.Equal(next.UpdatedAt) || !s2.Equal(s) {
				t.Errorf("added again: %+v, %v", s2, err)
			}
		})
	}
}

func TestAddAgreesOnTheCluster(t *testing.T) {
	m := mesh(server(0))
	for _, tt := range []struct {
		cluster, domain, want string
	}{
		{"10.210.0.0/16", "jiji", ""},
		{"10.99.0.0/16", "jiji", `server "a" is of cluster 10.99.0.0/16, this topology of 10.210.0.0/16`},
		{"10.210.0.0/20", "jiji", `server "a" is of cluster 10.210.0.0/20, this topology of 10.210.0.0/16`},
		{"10.210.0.0/16", "mesh", `server "a" is of service domain "mesh", this topology of "jiji"`},
	} {
		_, _, err := Add(m, EntryDoc{newcomer("a", 1), netip.MustParsePrefix(tt.cluster), tt.domain}, noon)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want %s", tt.cluster, tt.domain, err, tt.want)
		}
	}
}

func TestAddStamps(t *testing.T) {
	m := mesh(server(0))
	later := noon.Add(90*time.Minute + 123456789).In(time.FixedZone("", 3600))
	next, _, err := Add(m, EntryDoc{Server: newcomer("a", 1)}, later)
	if err != nil || next.UpdatedAt != noon.Add(90*time.Minute) || next.CreatedAt != noon {
		t.Errorf("updated %v, created %v, %v", next.UpdatedAt, next.CreatedAt, err)
	}
	m.CreatedAt = time.Time{}
	if next, _, err = Add(m, EntryDoc{Server: newcomer("a", 1)}, later); err != nil || next.CreatedAt != next.UpdatedAt {
		t.Errorf("updated %v, created %v, %v", next.UpdatedAt, next.CreatedAt, err)
	}
}

func TestRemove(t *testing.T) {
	m := mesh(server(0), server(1))
	later := noon.Add(time.Hour + time.Millisecond)
	next, err := Remove(m, "S1", later)
	if err != nil {
		t.Fatal(err)
	}
	if got := next.Servers[1]; got.ID != "s1" || got.RemovedAt != noon.Add(time.Hour) || next.UpdatedAt != noon.Add(time.Hour) || len(next.Servers) != 2 {
		t.Errorf("removed: %+v, updated %v", got, next.UpdatedAt)
	}
	if !m.Servers[1].RemovedAt.IsZero() {
		t.Error("Remove changed its argument")
	}
	if again, err := Remove(next, "s1", later.Add(time.Hour)); err != nil || !again.Equal(next) || again.UpdatedAt != next.UpdatedAt {
		t.Errorf("removed again: %+v, %v; want the first time kept", again.Servers[1], err)
	}
	if _, err := Remove(m, "s9", later); err == nil || !strings.Contains(err.Error(), `server "s9"`) {
		t.Errorf("unknown: %v", err)
	}

	// One whose key is in use again: the member goes, and the first row stays.
	m = mesh(with(server(0), removed(time.Hour)), with(server(0), id("again")))
	if next, err = Remove(m, "again", later); err != nil || next.Servers[0].ID != "s0" || next.Servers[1].RemovedAt.IsZero() {
		t.Errorf("%+v, %v", next.Servers, err)
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.json")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Load of nothing: %v", err)
	}
	m := mesh(server(0), with(server(1), removed(time.Hour)))
	if err := Save(path, m); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || !got.Equal(m) {
		t.Errorf("loaded %+v, %v", got, err)
	}
	bad := mesh(server(0), with(server(1), on("10.210.0.0/24")))
	if err := Save(path, bad); err == nil || !strings.Contains(err.Error(), `server "s1" has the subnet of server "s0": 10.210.0.0/24`) {
		t.Errorf("Save of nonsense: %v", err)
	}
	if got, err := Load(path); err != nil || !got.Equal(m) {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
}
