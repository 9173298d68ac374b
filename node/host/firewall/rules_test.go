package firewall

import (
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// wanted is a server with one uplink.
func wanted() Wanted {
	return Wanted{
		Link: "jiji0", Bridge: "jiji-br0", Uplinks: []string{"eth0"},
		Cluster: netip.MustParsePrefix("10.210.0.0/16"), Management: netip.MustParsePrefix("fdcc::/16"),
		Subnet: netip.MustParsePrefix("10.210.1.0/24"), WireGuardIP: netip.MustParseAddr("10.210.1.1"),
		ListenPort: 51820, DNSPort: 53, Control: []uint16{8786, 8787},
	}
}

// A packet is what a rule looks at.
type packet struct {
	hook     hook
	in, out  string
	src, dst string
	proto    string
	port     uint16
	state    state
}

// verdictOf runs a packet through the rules, as a chain of nftables.
func verdictOf(rules []rule, p packet) verdict {
	src, dst := netip.MustParseAddr(p.src), netip.MustParseAddr(p.dst)
	for _, r := range rules {
		if r.hook == p.hook && (r.v4 && src.Is4() || r.v6 && src.Is6()) &&
			(r.in == "" || r.in == p.in) && (r.out == "" || r.out == p.out) &&
			(!r.src.IsValid() || r.src.Contains(src)) && (!r.dst.IsValid() || r.dst.Contains(dst)) &&
			(r.proto == "" || r.proto == p.proto && r.port == p.port) &&
			(r.state == anyState || r.state == p.state) {
			return r.do
		}
	}
	return leave
}

func TestPlan(t *testing.T) {
	plain, from, uplink, hidden, bare := wanted(), wanted(), wanted(), wanted(), wanted()
	from.ForwardFrom = []string{"virbr0"}
	uplink.ForwardFrom = []string{"eth0"}
	hidden.Masquerade = true
	bare.Bridge, bare.DNSPort, bare.ListenPort, bare.Control, bare.Uplinks = "", 0, 0, nil, nil
	const (
		lan, own, gateway, remote = "203.0.113.9", "10.210.1.5", "10.210.1.1", "10.210.2.5"
		peer, self                = "fdcc::2", "fdcc::1"
	)
	for _, c := range []struct {
		name string
		w    Wanted
		p    packet
		want verdict
	}{
		{"mesh to container", plain, packet{hook: forward, in: "jiji0", out: "jiji-br0", src: remote, dst: own}, accept},
		{"container to mesh", plain, packet{hook: forward, in: "jiji-br0", out: "jiji0", src: own, dst: remote}, accept},
		{"relay", plain, packet{hook: forward, in: "jiji0", out: "jiji0", src: remote, dst: "10.210.3.1"}, accept},
		{"relay of what is not ours", plain, packet{hook: forward, in: "jiji0", out: "jiji0", src: remote, dst: lan}, drop},
		{"LAN to mesh", plain, packet{hook: forward, in: "eth0", out: "jiji0", src: lan, dst: remote}, drop},
		{"LAN to mesh, established", plain, packet{hook: forward, in: "eth0", out: "jiji0", src: lan, dst: remote, state: established}, accept},
		{"mesh to LAN", plain, packet{hook: forward, in: "jiji0", out: "eth0", src: remote, dst: lan}, drop},
		{"another bridge to mesh", plain, packet{hook: forward, in: "docker0", out: "jiji0", src: "172.17.0.2", dst: remote}, drop},
		{"mesh to another bridge", plain, packet{hook: forward, in: "jiji0", out: "docker0", src: remote, dst: "172.17.0.2"}, drop},
		{"container with another's source to mesh", plain, packet{hook: forward, in: "jiji-br0", out: "jiji0", src: lan, dst: remote}, drop},
		{"management through us", plain, packet{hook: forward, in: "eth0", out: "jiji0", src: "2001:db8::1", dst: peer}, drop},
		{"management from container", plain, packet{hook: forward, in: "jiji-br0", out: "jiji0", src: "2001:db8::1", dst: peer}, drop},
		{"LAN to container", plain, packet{hook: forward, in: "eth0", out: "jiji-br0", src: lan, dst: own}, drop},
		{"another bridge to container", plain, packet{hook: forward, in: "docker0", out: "jiji-br0", src: "172.17.0.2", dst: own}, drop},
		{"published port is its publisher's affair", plain, packet{hook: forward, in: "eth0", out: "jiji-br0", src: lan, dst: own, state: redirected}, leave},
		{"answers to containers are the engine's affair", plain, packet{hook: forward, in: "eth0", out: "jiji-br0", src: lan, dst: own, state: established}, leave},
		{"the way out is the engine's affair", plain, packet{hook: forward, in: "jiji-br0", out: "eth0", src: own, dst: lan}, leave},
		{"container to container", plain, packet{hook: forward, in: "jiji-br0", out: "jiji-br0", src: own, dst: "10.210.1.6"}, leave},
		{"what is not ours", plain, packet{hook: forward, in: "eth0", out: "docker0", src: lan, dst: "172.17.0.2"}, leave},

		{"forward from", from, packet{hook: forward, in: "virbr0", out: "jiji0", src: lan, dst: remote}, accept},
		{"forward to", from, packet{hook: forward, in: "jiji0", out: "virbr0", src: remote, dst: lan}, accept},
		{"forward from to own container", from, packet{hook: forward, in: "virbr0", out: "jiji-br0", src: lan, dst: own}, accept},
		{"and back", from, packet{hook: forward, in: "jiji-br0", out: "virbr0", src: own, dst: lan, state: established}, accept},
		{"forward from another", from, packet{hook: forward, in: "eth0", out: "jiji0", src: lan, dst: remote}, drop},
		{"forward from to no mesh address", from, packet{hook: forward, in: "virbr0", out: "jiji0", src: lan, dst: lan}, drop},

		{"mesh source on the uplink", plain, packet{hook: prerouting, in: "eth0", src: remote, dst: gateway}, drop},
		{"own source on the uplink", plain, packet{hook: prerouting, in: "eth0", src: own, dst: lan}, drop},
		{"mesh source on an interface that nobody named", plain, packet{hook: prerouting, in: "wlan0", src: remote, dst: own}, drop},
		{"mesh source on another bridge", plain, packet{hook: prerouting, in: "docker0", src: remote, dst: own}, drop},
		{"another's source on the bridge", plain, packet{hook: prerouting, in: "jiji-br0", src: remote, dst: gateway}, drop},
		{"own source on the bridge", plain, packet{hook: prerouting, in: "jiji-br0", src: own, dst: remote}, leave},
		{"mesh source on lo", plain, packet{hook: prerouting, in: "lo", src: gateway, dst: gateway}, leave},
		{"mesh source on the link", plain, packet{hook: prerouting, in: "jiji0", src: remote, dst: gateway}, accept},
		{"to containers, ahead of others", plain, packet{hook: prerouting, in: "jiji0", src: remote, dst: own}, accept},
		{"relayed", plain, packet{hook: prerouting, in: "jiji0", src: remote, dst: "10.210.3.1"}, leave},
		{"DNS on the uplink", plain, packet{hook: prerouting, in: "eth0", src: lan, dst: gateway, proto: "udp", port: 53}, drop},
		{"DNS on the uplink by TCP", plain, packet{hook: prerouting, in: "eth0", src: lan, dst: gateway, proto: "tcp", port: 53}, drop},
		{"DNS of the host's own", plain, packet{hook: prerouting, in: "eth0", src: lan, dst: "203.0.113.1", proto: "udp", port: 53}, leave},
		{"DNS from another bridge", plain, packet{hook: prerouting, in: "docker0", src: "172.17.0.2", dst: gateway, proto: "udp", port: 53}, leave},
		{"management on the uplink", plain, packet{hook: prerouting, in: "eth0", src: "2001:db8::1", dst: self}, drop},
		{"management source on the uplink", plain, packet{hook: prerouting, in: "eth0", src: peer, dst: "2001:db8::2"}, drop},
		{"management from containers", plain, packet{hook: prerouting, in: "jiji-br0", src: "2001:db8::1", dst: self}, drop},
		{"management on the link", plain, packet{hook: prerouting, in: "jiji0", src: peer, dst: self}, leave},
		{"management on lo", plain, packet{hook: prerouting, in: "lo", src: self, dst: self}, leave},
		{"an uplink that may forward cannot have mesh sources", uplink, packet{hook: prerouting, in: "eth0", src: remote, dst: own}, drop},
		{"nor ask our DNS", uplink, packet{hook: prerouting, in: "eth0", src: lan, dst: gateway, proto: "udp", port: 53}, drop},
		{"but reach containers, ahead of others", uplink, packet{hook: prerouting, in: "eth0", src: lan, dst: own}, accept},
		{"a network behind another may", from, packet{hook: prerouting, in: "virbr0", src: "10.210.9.1", dst: remote}, leave},

		{"WireGuard", plain, packet{hook: input, in: "eth0", src: lan, dst: "203.0.113.1", proto: "udp", port: 51820}, accept},
		{"WireGuard by IPv6", plain, packet{hook: input, in: "eth0", src: "2001:db8::1", dst: "2001:db8::2", proto: "udp", port: 51820}, accept},
		{"nothing else", plain, packet{hook: input, in: "eth0", src: lan, dst: "203.0.113.1", proto: "tcp", port: 22}, leave},
		{"DNS from containers", plain, packet{hook: input, in: "jiji-br0", src: own, dst: gateway, proto: "udp", port: 53}, accept},
		{"DNS from the mesh", plain, packet{hook: input, in: "jiji0", src: remote, dst: gateway, proto: "tcp", port: 53}, accept},
		{"gossip from the mesh", plain, packet{hook: input, in: "jiji0", src: peer, dst: self, proto: "udp", port: 8787}, accept},
		{"gossip from containers", plain, packet{hook: input, in: "jiji-br0", src: own, dst: gateway, proto: "udp", port: 8787}, drop},
		{"control from containers by IPv6", plain, packet{hook: input, in: "jiji-br0", src: "fe80::1", dst: "fe80::2", proto: "tcp", port: 8786}, drop},

		{"mesh destination on the uplink", plain, packet{hook: leaving, out: "eth0", src: lan, dst: remote}, drop},
		{"own container's address on the uplink", plain, packet{hook: leaving, out: "eth0", src: lan, dst: own}, drop},
		{"mesh destination on the bridge", plain, packet{hook: leaving, out: "jiji-br0", src: own, dst: remote}, drop},
		{"management on the uplink", plain, packet{hook: leaving, out: "eth0", src: "2001:db8::1", dst: peer}, drop},
		{"an uplink that may forward", uplink, packet{hook: leaving, out: "eth0", src: own, dst: remote}, drop},
		{"a network behind another", from, packet{hook: leaving, out: "virbr0", src: own, dst: remote}, leave},
		{"out of the tunnel", plain, packet{hook: leaving, out: "jiji0", src: own, dst: remote}, leave},
		{"out of the tunnel by IPv6", plain, packet{hook: leaving, out: "jiji0", src: self, dst: peer}, leave},
		{"to a container", plain, packet{hook: leaving, out: "jiji-br0", src: remote, dst: own}, leave},
		{"to itself", plain, packet{hook: leaving, out: "lo", src: gateway, dst: gateway}, leave},
		{"elsewhere", plain, packet{hook: leaving, out: "eth0", src: own, dst: lan}, leave},

		{"container to mesh keeps its source", plain, packet{hook: postrouting, out: "jiji0", src: own, dst: remote}, keep},
		{"so does the host", plain, packet{hook: postrouting, out: "jiji0", src: gateway, dst: remote}, keep},
		{"so does what is relayed", hidden, packet{hook: postrouting, out: "jiji0", src: remote, dst: "10.210.3.1"}, keep},
		{"so does what comes in", hidden, packet{hook: postrouting, out: "jiji-br0", src: remote, dst: own}, keep},
		{"hidden", hidden, packet{hook: postrouting, out: "jiji0", src: own, dst: remote}, rewrite},
		{"the engine masquerades the way out", plain, packet{hook: postrouting, out: "eth0", src: own, dst: lan}, leave},
		{"and the way back to itself", plain, packet{hook: postrouting, out: "jiji-br0", src: own, dst: "10.210.1.6"}, leave},
		{"the LAN's source means nothing to a peer", from, packet{hook: postrouting, out: "jiji0", src: lan, dst: remote}, rewrite},

		{"no bridge: mesh to elsewhere", bare, packet{hook: forward, in: "jiji0", out: "jiji-br0", src: remote, dst: own}, drop},
		{"no ports", bare, packet{hook: input, in: "eth0", src: lan, dst: "203.0.113.1", proto: "udp", port: 51820}, leave},
	} {
		if got := verdictOf(plan(c.w), c.p); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		}
	}
}

// What servers say to each other goes between the management addresses, by the
// tunnel or within this machine. Nothing else gets there, and what is on
// 127.0.0.1 alone is nobody's affair.
func TestControlPorts(t *testing.T) {
	const (
		self, peer, global, link, local = "fdcc::1", "fdcc::2", "2001:db8::1", "fe80::1", "127.0.0.1"
		own, gateway, remote            = "10.210.1.5", "10.210.1.1", "10.210.2.5"
	)
	rules := plan(wanted())
	type want struct{ prerouting, input verdict }
	for _, proto := range []string{"udp", "tcp"} {
		for _, port := range []uint16{8786, 8787} {
			for _, c := range []struct {
				in, src, dst string
				want         want
			}{
				{"jiji0", peer, self, want{leave, accept}},
				{"jiji0", global, self, want{leave, leave}},     // which WireGuard lets nobody send
				{"jiji0", remote, gateway, want{accept, leave}}, // ahead of an engine, which opens no port
				{"lo", self, self, want{leave, leave}},
				{"lo", global, self, want{leave, leave}},
				{"eth0", peer, self, want{drop, leave}},
				{"eth0", global, self, want{drop, leave}},
				{"eth0", link, self, want{drop, leave}},
				{"wlan0", global, self, want{drop, leave}},
				{"docker0", global, self, want{drop, leave}},
				{"jiji-br0", peer, self, want{drop, drop}},
				{"jiji-br0", link, self, want{drop, drop}},
				{"jiji-br0", link, "fe80::2", want{leave, drop}},
				{"jiji-br0", own, gateway, want{leave, drop}},
				{"jiji-br0", own, "203.0.113.1", want{leave, drop}},
			} {
				p := packet{hook: prerouting, in: c.in, src: c.src, dst: c.dst, proto: proto, port: port}
				got := want{prerouting: verdictOf(rules, p)}
				p.hook = input
				got.input = verdictOf(rules, p)
				if got != c.want {
					t.Errorf("%s to %s by %s, %d/%s: verdicts %v, want %v", c.src, c.dst, c.in, port, proto, got, c.want)
				}
			}
		}
	}
	for _, addr := range []string{local, self} { // the API, the status page; one's own metrics
		for _, port := range []uint16{8080, 8786, 8787, 9187} {
			for _, h := range []hook{prerouting, input, leaving} {
				p := packet{hook: h, src: addr, dst: addr, proto: "tcp", port: port}
				if p.in = "lo"; h == leaving {
					p.in, p.out = "", "lo"
				}
				if got := verdictOf(rules, p); got != leave {
					t.Errorf("%s to itself, %d, hook %d: verdict %d", addr, port, h, got)
				}
			}
		}
	}
}

// TestListing keeps the rules as users see them in testdata.
func TestListing(t *testing.T) {
	w := wanted()
	w.ForwardFrom = []string{"eth1"}
	golden := func(name, got string) {
		t.Helper()
		name = "testdata/" + name
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: see the difference by `go test -update` and git:\n%s", name, got)
		}
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		var b strings.Builder
		for _, r := range diffIPTables(family, wantIPTables(w, family == "ip6tables", ruleset{}), ruleset{}) {
			b.WriteString(r.text)
		}
		golden(family+".restore", b.String())
	}
	var b strings.Builder
	for _, c := range bases {
		b.WriteString(c.name + "\n")
		for _, r := range plan(w) {
			if r.hook == c.hook {
				b.WriteString("\t" + r.nft() + "\n")
			}
		}
	}
	golden("nft.txt", b.String())
}

func TestCheck(t *testing.T) {
	if err := wanted().check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Wanted){
		"no tunnel interface":       func(w *Wanted) { w.Link = "" },
		`"jiji+"`:                   func(w *Wanted) { w.Link = "jiji+" },
		`"a b"`:                     func(w *Wanted) { w.ForwardFrom = []string{"a b"} },
		`"averylonginterface"`:      func(w *Wanted) { w.Bridge = "averylonginterface" },
		`forward from "jiji-br0"`:   func(w *Wanted) { w.ForwardFrom = []string{"jiji-br0"} },
		`forward from ""`:           func(w *Wanted) { w.ForwardFrom = []string{""} },
		"cluster CIDR 10.210.1.0/8": func(w *Wanted) { w.Cluster = netip.MustParsePrefix("10.210.1.0/8") },
		"cluster CIDR fdcc::/16":    func(w *Wanted) { w.Cluster = w.Management },
		"management prefix":         func(w *Wanted) { w.Management = netip.Prefix{} },
		"subnet 10.211.0.0/24":      func(w *Wanted) { w.Subnet = netip.MustParsePrefix("10.211.0.0/24") },
		"WireGuard IP 10.210.2.1":   func(w *Wanted) { w.WireGuardIP = netip.MustParseAddr("10.210.2.1") },
	} {
		w := wanted()
		change(&w)
		if err := w.check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one that names %s", err, name)
		}
	}
}

// An uplink may have a name that iptables' rules cannot have in them: that does not keep
// the rest from being written.
func TestOddUplinks(t *testing.T) {
	w := wanted()
	w.Uplinks = []string{"wan+", "e\"x!y", "eth0"}
	if err := w.check(); err != nil {
		t.Fatal(err)
	}
	for _, want := range wantIPTables(w, false, ruleset{}) {
		for _, r := range want.rules {
			if strings.Contains(r, "wan+") || strings.Contains(r, "x!y") {
				t.Errorf("iptables %s %s: %s", want.table, want.chain, r)
			}
		}
	}
	in := map[string]int{}
	for _, r := range plan(w) {
		if r.note == "no open resolver" {
			in[r.in]++
		}
	}
	if in["wan+"] != 2 || in["e\"x!y"] != 2 || in["eth0"] != 2 {
		t.Errorf("in nftables DNS is closed on %v", in)
	}
}

func TestChoose(t *testing.T) {
	tables := func(rules ...string) []family {
		set := ruleset{"filter": newTable()}
		set["filter"].add("FORWARD", "ACCEPT")
		set["filter"].rules["FORWARD"] = rules
		return []family{{save: "save", restore: "restore", rules: set}, {tool: "ip6tables"}}
	}
	const foreign, own = "-j DROP", "-i jiji0 -j JIJI-FORWARD"
	noNFT := os.ErrNotExist
	for _, c := range []struct {
		name string
		o    observed
		want Backend
		why  string
	}{
		{"bare", observed{}, NFTables, "not installed"},
		{"nothing", observed{noNFT: noNFT}, 0, ""},
		{"new", observed{variants: map[Backend][]family{IPTablesNFT: tables()}}, IPTablesNFT, "iptables-legacy is not"},
		{"old", observed{variants: map[Backend][]family{IPTablesLegacy: tables()}, noNFT: noNFT}, IPTablesLegacy, "iptables-nft is not"},
		{"usual", observed{usual: IPTablesLegacy, variants: map[Backend][]family{IPTablesNFT: tables(), IPTablesLegacy: tables()}}, IPTablesLegacy, "what `iptables` is"},
		{"ours do not count", observed{usual: IPTablesLegacy, variants: map[Backend][]family{IPTablesNFT: tables(own), IPTablesLegacy: tables()}}, IPTablesLegacy, "what `iptables` is"},
		{"others' in nft", observed{usual: IPTablesLegacy, variants: map[Backend][]family{IPTablesNFT: tables(foreign), IPTablesLegacy: tables(own)}}, IPTablesNFT, "the rules of others"},
		{"others' in legacy", observed{usual: IPTablesNFT, variants: map[Backend][]family{IPTablesNFT: tables(), IPTablesLegacy: tables(foreign)}}, IPTablesLegacy, "the rules of others"},
		{"others' in both", observed{usual: IPTablesNFT, variants: map[Backend][]family{IPTablesNFT: tables(foreign), IPTablesLegacy: tables(foreign, foreign)}}, IPTablesNFT, "1 rules are in iptables-nft and 2 in iptables-legacy"},
	} {
		got, why, err := c.o.choose()
		if got != c.want || !strings.Contains(why, c.why) || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %v (%s), %v, want %v (%s)", c.name, got, why, err, c.want, c.why)
		}
	}
	for text, want := range map[string]Backend{
		"iptables v1.8.9 (nf_tables)\n": IPTablesNFT, "iptables v1.8.9 (legacy)\n": IPTablesLegacy, "iptables v1.4.21\n": IPTablesLegacy, "": 0,
	} {
		if got := version(text); got != want {
			t.Errorf("version of %q: %v, want %v", text, got, want)
		}
	}
	o := observed{ipv6: true, noNFT: noNFT, variants: map[Backend][]family{IPTablesLegacy: tables()}}
	if got := o.unprotected(IPTablesLegacy); len(got) != 2 || !strings.Contains(got[1], "IPv6 is not guarded") {
		t.Errorf("unprotected: %q", got)
	}
	if got := (observed{ipv6: true, nftCommand: "nft"}).unprotected(NFTables); len(got) > 0 {
		t.Errorf("unprotected: %q", got)
	}
}

func TestDiffNFT(t *testing.T) {
	want := plan(wanted())
	key := rule.nft
	var whole kernelTable
	for _, b := range bases {
		state := chainState{base: b}
		for _, r := range want {
			if r.hook == b.hook {
				state.rules = append(state.rules, key(r))
			}
		}
		whole.chains = append(whole.chains, state)
	}
	for _, c := range []struct {
		name   string
		change func(*kernelTable)
		want   []string // a part of each change
	}{
		{"whole", func(*kernelTable) {}, nil},
		{"absent", func(t *kernelTable) { t.chains = nil }, []string{"table inet jiji was not there"}},
		{"flushed", func(t *kernelTable) { t.chains[2].rules = nil }, []string{"chain forward was empty: its 11 rules put back"}},
		{"no chain", func(t *kernelTable) { t.chains = t.chains[1:] }, []string{"chain prerouting was not there"}},
		{"no rule", func(t *kernelTable) { t.chains[0].rules = t.chains[0].rules[1:] }, []string{`rule iifname "lo" return was not there`}},
		{"another rule", func(t *kernelTable) { t.chains[0].rules = append(t.chains[0].rules, "accept") }, []string{"had 1 rules that are not wanted"}},
		{"another order", func(t *kernelTable) { slices.Reverse(t.chains[0].rules) }, []string{"in another order"}},
		{"a policy", func(t *kernelTable) { t.chains[1].policyDrop = true }, []string{"chain input had another hook, priority or policy"}},
		{"a priority", func(t *kernelTable) { t.chains[4].priority = 100 }, []string{"chain postrouting had another hook, priority or policy"}},
		{"another chain", func(t *kernelTable) { t.chains = append(t.chains, chainState{base: base{name: "x"}}) }, []string{"chain x removed"}},
		{"dormant", func(t *kernelTable) { t.dormant = true }, []string{"was dormant"}},
	} {
		have := kernelTable{chains: slices.Clone(whole.chains)}
		for i := range have.chains {
			have.chains[i].rules = slices.Clone(have.chains[i].rules)
		}
		c.change(&have)
		got := diffNFT(want, have, key)
		ok := len(got) == len(c.want)
		for i := range c.want {
			ok = ok && strings.Contains(got[i].What, c.want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
