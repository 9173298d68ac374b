package engine

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func netConfig() NetworkConfig {
	return NetworkConfig{Name: "jiji-mesh", Domain: "jiji", ServerID: "web1", Subnet: netip.MustParsePrefix("10.210.0.0/24"), Bridge: "jiji-br0", Link: "jiji0",
		MTU: func() int { return 1420 }, Here: func(string) bool { return true }}
}

func TestJudge(t *testing.T) {
	good := Network{Name: "jiji-mesh", Subnets: []netip.Prefix{netip.MustParsePrefix("10.210.0.0/24")}, Gateway: netip.MustParseAddr("10.210.0.1"), Bridge: "jiji-br0", MTU: 1420, Own: true}
	other := Network{Name: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}, Bridge: "docker0"}
	with := func(n Network, f func(*Network)) Network { f(&n); return n }
	old := with(good, func(n *Network) { n.Name, n.Bridge, n.MTU = "jiji", "br-0123456789ab", 0 })
	for _, tc := range []struct {
		name     string
		kind     Kind
		nft      bool
		all      []Network
		change   func(*NetworkConfig)
		attached []string
		use      string
		create   bool
		problem  string
	}{
		{name: "none", kind: Docker, all: []Network{other}, use: "jiji-mesh", create: true},
		{name: "as it is to be", kind: Docker, all: []Network{other, good}, use: "jiji-mesh"},
		{name: "another subnet", kind: Docker, all: []Network{with(good, func(n *Network) { n.Subnets = []netip.Prefix{netip.MustParsePrefix("10.210.5.0/24")} })}, attached: []string{"api", "db"}, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" has 10.210.5.0/24, and this server's subnet is 10.210.0.0/24: containers on it are not in the mesh: docker network rm jiji-mesh, once these containers are gone from it: api, db; then it is made anew`},
		{name: "no subnet", kind: Docker, all: []Network{with(good, func(n *Network) { n.Subnets = nil })}, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" has no subnet, and this server's subnet is 10.210.0.0/24: containers on it are not in the mesh: docker network rm jiji-mesh; then it is made anew`},
		{name: "somebody else's", kind: Podman, all: []Network{with(good, func(n *Network) { n.Name = "shop" })}, use: "jiji-mesh",
			problem: `podman network "shop" has 10.210.0.0/24, and this server's subnet is 10.210.0.0/24: no container gets into the mesh: podman network rm shop`},
		{name: "somebody else's larger one", kind: Docker, all: []Network{with(good, func(n *Network) { n.Name, n.Subnets = "shop", []netip.Prefix{netip.MustParsePrefix("10.208.0.0/12")} })}, use: "jiji-mesh",
			problem: `docker network "shop" has 10.208.0.0/12, and this server's subnet is 10.210.0.0/24: no container gets into the mesh: docker network rm shop`},
		{name: "the predecessor's", kind: Docker, all: []Network{old}, use: "jiji",
			problem: `docker network "jiji" is called like the domain of the mesh's names, so that Docker answers <name>.jiji itself, with this server's containers only: docker network rm jiji; then jiji-mesh is made in its place`},
		{name: "the predecessor's in another domain", kind: Docker, all: []Network{old}, change: func(c *NetworkConfig) { c.Domain = "mesh" }, use: "jiji",
			problem: `docker network "jiji" is used, which has this server's subnet; jiji-mesh is made in its place after: docker network rm jiji`},
		{name: "the predecessor's, of another subnet", kind: Docker, all: []Network{with(old, func(n *Network) { n.Subnets = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")} })}, use: "jiji-mesh", create: true},
		{name: "called like the domain", kind: Docker, change: func(c *NetworkConfig) { c.Name = "JIJI" }, use: "JIJI",
			problem: `--engine-network JIJI: is the domain of the mesh's names, too, so that Docker would answer <name>.JIJI itself and nobody else's: want another name`},
		{name: "called like the domain, in Podman", kind: Podman, change: func(c *NetworkConfig) { c.Name = "jiji" }, use: "jiji", create: true},
		{name: "gateway", kind: Docker, all: []Network{with(good, func(n *Network) { n.Gateway = netip.MustParseAddr("10.210.0.254") })}, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" has gateway 10.210.0.254, want 10.210.0.1: what its containers send to the mesh is lost: docker network rm jiji-mesh; then it is made anew`},
		{name: "resolver", kind: Podman, all: []Network{with(good, func(n *Network) { n.Resolver = true })}, use: "jiji-mesh",
			problem: `podman network "jiji-mesh" has its own name server on 10.210.0.1, which is the node's: podman network rm jiji-mesh; then it is made anew, without`},
		{name: "internal", kind: Podman, all: []Network{with(good, func(n *Network) { n.Internal = true })}, use: "jiji-mesh",
			problem: `podman network "jiji-mesh" is internal, so that its containers reach nothing beyond it: podman network rm jiji-mesh; then it is made anew`},
		{name: "mtu", kind: Docker, all: []Network{with(good, func(n *Network) { n.MTU = 1500 })}, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" has MTU 1500, more than the tunnel's 1420: large packets are lost where ICMP is: docker network rm jiji-mesh; then it is made anew`},
		{name: "not trusted", kind: Docker, nft: true, all: []Network{good}, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" does not trust jiji0, so that Docker's nftables drop what comes from the mesh: docker network rm jiji-mesh; then it is made anew, with com.docker.network.bridge.trusted_host_interfaces`},
		{name: "trusted", kind: Docker, nft: true, all: []Network{with(good, func(n *Network) { n.Trusted = []string{"eth1", "jiji0"} })}, use: "jiji-mesh"},
		{name: "no interface", kind: Docker, all: []Network{good}, change: func(c *NetworkConfig) { c.Here = func(string) bool { return false } }, use: "jiji-mesh",
			problem: `docker network "jiji-mesh" has lost its interface jiji-br0: systemctl restart docker makes it again`},
		{name: "no interface yet, in Podman", kind: Podman, all: []Network{good}, change: func(c *NetworkConfig) { c.Here = func(string) bool { return false } }, use: "jiji-mesh"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := netConfig()
			if tc.change != nil {
				tc.change(&cfg)
			}
			v := judge(tc.kind, tc.nft, tc.all, cfg, func(string) []string { return tc.attached })
			if v.use != tc.use || v.create != tc.create || strings.Join(v.problems, "\n") != tc.problem {
				t.Errorf("got  %s %t\n%s\nwant %s %t\n%s", v.use, v.create, strings.Join(v.problems, "\n"), tc.use, tc.create, tc.problem)
			}
		})
	}
}

// The network is made once, with a note before, and for Podman while the address is lifted.
func TestKeepMakesTheNetwork(t *testing.T) {
	for _, tc := range []struct {
		kind Kind
		want string // request
	}{
		{Docker, `/networks/create {"Attachable":false,"ConfigFrom":null,"ConfigOnly":false,"Driver":"bridge","IPAM":{"Config":[{"Gateway":"10.210.0.1","Subnet":"10.210.0.0/24"}],"Driver":"default","Options":null},"Ingress":false,"Internal":false,"Labels":{"jiji.network":"web1"},"Name":"jiji-mesh","Options":{"com.docker.network.bridge.name":"jiji-br0","com.docker.network.driver.mtu":"1420"},"Scope":""}`},
		{Podman, `/libpod/networks/create {"dns_enabled":false,"driver":"bridge","internal":false,"ipv6_enabled":false,"labels":{"jiji.network":"web1"},"name":"jiji-mesh","network_interface":"jiji-br0","options":{"mtu":"1420"},"subnets":[{"gateway":"10.210.0.1","subnet":"10.210.0.0/24"}]}`},
	} {
		e := newWire(t, tc.kind)
		c, err := Dial(t.Context(), Socket{tc.kind, e.path})
		if err != nil {
			t.Fatal(err)
		}
		var did []string
		cfg := netConfig()
		cfg.Note = func(k Kind, name string) error { did = append(did, "note "+string(k)+" "+name); return nil }
		cfg.Lift = func(_ context.Context, do func() error) error { did = append(did, "lift"); return do() }
		if name, problems, err := c.Keep(t.Context(), cfg); name != "jiji-mesh" || len(problems) != 0 || err != nil {
			t.Errorf("%s: %s, %v, %v", tc.kind, name, problems, err)
		}
		if want := []string{"note docker jiji-mesh", "note podman jiji-mesh lift"}; !slices.Contains(want, strings.Join(did, " ")) || (tc.kind == Podman) != slices.Contains(did, "lift") {
			t.Errorf("%s: %v", tc.kind, did)
		}
		if len(e.created) != 1 || sorted(t, e.created[0]) != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.kind, sorted(t, e.created[0]), tc.want)
		}
		e.mu.Lock()
		e.refuse = "Pool overlaps with other one on this address space"
		e.mu.Unlock()
		if _, problems, _ := c.Keep(t.Context(), cfg); len(problems) != 1 || !strings.HasPrefix(problems[0], `make network "jiji-mesh": `+string(tc.kind)+": ") || !strings.HasSuffix(problems[0], "Pool overlaps with other one on this address space") {
			t.Errorf("%s: %q", tc.kind, problems)
		}
		cfg.Note = func(Kind, string) error { return errors.New("disk full") }
		if _, problems, _ := c.Keep(t.Context(), cfg); len(problems) != 1 || problems[0] != `make network "jiji-mesh": disk full` || len(e.created) != 2 {
			t.Errorf("%s: %q", tc.kind, problems)
		}
	}
}

// sorted is a request with the fields of its body in order.
func sorted(t *testing.T, request string) string {
	path, body, _ := strings.Cut(request, " ")
	var v map[string]any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	text, _ := json.Marshal(v)
	return path + " " + string(text)
}

// Docker trusts the tunnel's packets from 28.2 on, if it is told to.
func TestTrustedInterface(t *testing.T) {
	e := newWire(t, Docker)
	c, err := Dial(t.Context(), Socket{Docker, e.path})
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]bool{"20.10.24": false, "28.1.1": false, "28.2.0": true, "29.0.0": true} {
		c.Version = version
		if err := c.create(t.Context(), netConfig()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(e.created[len(e.created)-1], `"com.docker.network.bridge.trusted_host_interfaces":"jiji0"`); got != want {
			t.Errorf("%s: %t", version, got)
		}
	}
}

func TestDialTellsOfNFTables(t *testing.T) {
	e := newWire(t, Docker)
	for info, want := range map[string]bool{`{}`: false, `{"FirewallBackend":{"Driver":"iptables"}}`: false, `{"FirewallBackend":{"Driver":"nftables"}}`: true, `{"FirewallBackend":{"Driver":"nftables+firewalld"}}`: true} {
		e.mu.Lock()
		e.info = info
		e.mu.Unlock()
		if c, err := Dial(t.Context(), Socket{Docker, e.path}); err != nil || c.NFT != want {
			t.Errorf("%s: %+v, %v", info, c, err)
		}
	}
}

// What is not as wanted is told, and everything else goes on.
func TestWatchTellsOfTheNetwork(t *testing.T) {
	e := newWire(t, Docker)
	e.networks = `[{"Name":"jiji-mesh","Id":"0123456789abcdef","Driver":"bridge","IPAM":{"Config":[{"Subnet":"10.210.0.0/24","Gateway":"10.210.0.1"}]},"Options":{"com.docker.network.driver.mtu":"9000"}}]`
	e.set(on(1, "a", "10.210.0.2"), "")
	w := run(t, Config{Engine: "auto", Sockets: []Socket{{Docker, e.path}}, Rules: func() Rules { return rules }, Network: netConfig(), Log: slog.New(slog.DiscardHandler)})
	s := await(t, w, "first", is("a 10.210.0.2 healthy"))
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "has MTU 9000") {
		t.Errorf("%q", s.Notes)
	}
}

func TestIsNetworkName(t *testing.T) {
	for name, want := range map[string]bool{"jiji-mesh": true, "a": true, "A.b_c-1": true, "": false, "-a": false, "a b": false, "é": false, strings.Repeat("a", 129): false} {
		if IsNetworkName(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}
