package firewall

import (
	"slices"
	"strings"
	"testing"
)

func TestObstaclesIPTables(t *testing.T) {
	// What Apply wrote, with what others have put ahead of it, and elsewhere.
	set := parseSave(docker)
	w := wanted()
	for _, r := range diffIPTables("iptables", wantIPTables(w, false, set), set) {
		commit(t, set, r)
	}
	grounds := func() []ground {
		return observed{variants: map[Backend][]family{IPTablesNFT: {{tool: "iptables", save: "a", restore: "b", rules: set}}}}.grounds()
	}
	if got := obstacles(grounds(), w.flows()); len(got) > 0 {
		t.Errorf("with ours at the heads: %q", got)
	}
	set["mangle"] = newTable()
	set["mangle"].add("FORWARD", "ACCEPT")
	set["mangle"].add("GUARD", "-")
	set["mangle"].rules["FORWARD"] = []string{"-i jiji+ -j MARK --set-xmark 0x1/0x1", "-m set --match-set bad src -j DROP", "-i jiji0 -m comment --comment \"no mesh\" -j GUARD"}
	set["mangle"].rules["GUARD"] = []string{"-p tcp --dport 22 -j DROP", "-m conntrack --ctstate INVALID -j DROP", "-s 10.210.0.0/16 -j REJECT --reject-with icmp-port-unreachable"}
	in := set["filter"].rules["INPUT"]
	set["filter"].rules["INPUT"] = append([]string{"-i eth0 -p udp -m multiport --dports 1000:60000 -j DROP"}, in...)
	want := []Obstacle{
		{"iptables mangle, chain GUARD: -A GUARD -s 10.210.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
			"mesh to containers (jiji0 to jiji-br0)", "iptables -t mangle -I FORWARD -i jiji0 -o jiji-br0 -j ACCEPT"},
		{"iptables filter, chain INPUT: -A INPUT -i eth0 -p udp -m multiport --dports 1000:60000 -j DROP",
			"WireGuard on eth0", "iptables -I INPUT -i eth0 -p udp -m udp --dport 51820 -j ACCEPT"},
	}
	if got := obstacles(grounds(), w.flows()); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if got := obstacles((observed{variants: map[Backend][]family{IPTablesNFT: {{rules: parseSave(docker)}}}}).grounds(), w.flows()); len(got) > 0 {
		t.Errorf("before ours are there: %q", got)
	}
}

const native = `table inet filter {
	set bad {
		type ipv4_addr
		flags interval
		elements = { 192.0.2.0/24,
			     198.51.100.0/24 }
	}

	chain input {
		type filter hook input priority filter; policy drop;
		ct state vmap { invalid : drop, established : accept, related : accept }
		iifname "lo" accept
		ip saddr @bad drop
		tcp dport { 22, 80 } accept
		udp dport { 53, 51000-52000 } iifname { "jiji0", "eth*" } accept comment "WireGuard, \"DNS\" drop"
		meta l4proto { icmp, ipv6-icmp } accept
		log prefix "no: " level warn flags all counter packets 3 bytes 200 jump refuse
	}

	chain refuse {
		iifname != "jiji-br0" ip6 saddr fdcc::/16 ip6 daddr fdcc::/16 reject with icmpx admin-prohibited # handle 9
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "jiji0" oifname "jiji-br0" ip daddr != 10.0.0.0/9 accept
		ct state established,related accept
	}
}
# Warning: table ip filter is managed by iptables-nft, do not touch!
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet asleep {
	flags dormant
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table bridge x {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet nat {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade
	}
}
`

func TestObstaclesNFT(t *testing.T) {
	skip := func(name string) bool { return name == "ip filter" }
	got := obstacles(parseNFT(native, skip), wanted().flows())
	want := []Obstacle{
		{"nft inet filter, chain forward: type filter hook forward priority filter; policy drop;", "containers to mesh (jiji-br0 to jiji0)",
			`nft insert rule inet filter forward meta nfproto ipv4 iifname "jiji-br0" oifname "jiji0" accept`},
		{"nft inet filter, chain input: type filter hook input priority filter; policy drop;", "DNS on jiji-br0",
			`nft insert rule inet filter input iifname "jiji-br0" ip daddr 10.210.1.1 udp dport 53 accept`},
		{"nft inet filter, chain refuse: iifname != \"jiji-br0\" ip6 saddr fdcc::/16 ip6 daddr fdcc::/16 reject with icmpx admin-prohibited # handle 9",
			"server to server on 8786/udp, server to server on 8786/tcp, server to server on 8787/udp, server to server on 8787/tcp",
			`nft insert rule inet filter input iifname "jiji0" ip6 saddr fdcc::/16 ip6 daddr fdcc::/16 udp dport 8786 accept`},
	}
	if len(got) != len(want) {
		t.Fatalf("got\n%q\nwant\n%q", got, want)
	}
	for i := range want {
		if got[i].Rule != want[i].Rule || got[i].Blocks != want[i].Blocks || !strings.HasPrefix(got[i].Fix, want[i].Fix) {
			t.Errorf("got\n%q\nwant\n%q", got[i], want[i])
		}
	}
}

func FuzzParseNFT(f *testing.F) {
	f.Add(native)
	f.Add("table ip x {\nchain c {\ntype filter hook input priority 0; policy drop;\nip\nct state {\nudp dport\njump c\n\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		obstacles(parseNFT(text, func(string) bool { return false }), wanted().flows())
	})
}
