//go:build linux

package integration_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/host/firewall"
)

const (
	askLimit    = 2 * time.Second        // for what is let through
	silentLimit = 250 * time.Millisecond // for what is not, or not answered
	servicePort = 7000                   // of every host of a firewallLab
)

// A firewallLab is two servers whose jiji0 are wired to each other, so that it is the
// firewall alone that is proved, and what they and a neighbour may send to whom.
type firewallLab struct {
	*lab.Lab
	t       *testing.T
	lan     *lab.Network
	a, b    *lab.Server    // a has the firewall
	near    *lab.Server    // a neighbour on the uplink
	ca, cb  *lab.Container // in the mesh
	ca2     *lab.Container // beside ca
	other   *lab.Container // on another bridge of a
	wanted  firewall.Wanted
	program string
	echoes  map[*lab.Host]*echo

	management, server6 netip.Addr // of a: its own in the mesh, and on the uplink
}

// What a neighbour gives out as its own.
var (
	spoofed4 = netip.MustParseAddr("10.210.1.77")
	spoofed6 = netip.MustParseAddr("fdcc::77")
)

func newFirewallLab(t *testing.T) *firewallLab {
	t.Helper()
	t.Parallel()
	l := lab.New(t)
	f := &firewallLab{Lab: l, t: t, echoes: map[*lab.Host]*echo{}, program: filepath.Join(t.TempDir(), "firewall"), management: netip.MustParseAddr("fdcc::1")}
	build := exec.Command("go", "build", "-o", f.program, "./testdata/firewall")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	f.lan = l.Network("lan", lanPrefix, "2001:db8::/64")
	wire := l.Network("wire", "198.18.0.0/24", "fdcc::/64")
	f.a, f.b, f.near = l.Server("a").On(f.lan, wire), l.Server("b").On(f.lan, wire), l.Server("near").On(f.lan)
	f.ca, f.cb = f.a.Container("ca", "10.210.0.10"), f.b.Container("cb", "10.210.1.10")
	f.ca2 = f.a.Container("ca2", "10.210.0.11")
	f.other = f.a.ContainerOn("docker0", "other", "172.17.0.2")
	f.server6 = f.a.Link(f.lan).Addrs()[1]
	for i, s := range []*lab.Server{f.a, f.b} {
		there := []*lab.Server{f.b, f.a}[i]
		s.Run("sh", "-ec", fmt.Sprintf(`
			sysctl -qw net.ipv4.ip_forward=1
			ip link set eth1 down; ip link set eth1 name jiji0; ip link set jiji0 up
			ip addr replace %[2]v/24 dev jiji0
			ip -6 addr replace %[5]v/64 dev jiji0 nodad
			ip addr add 10.210.%[1]d.1/32 dev jiji0
			ip route add 10.210.%[3]d.0/24 via %[4]v dev jiji0 src 10.210.%[1]d.1`,
			i, s.Addr(wire), 1-i, there.Addr(wire), s.Link(wire).Addrs()[1]))
	}
	f.trespass()
	for _, h := range []*lab.Host{f.a.Host, f.b.Host, f.near.Host, f.ca.Host, f.ca2.Host, f.cb.Host, f.other.Host} {
		f.echoes[h] = f.echo(h, servicePort, 53, 8786, 8787, 51820)
	}
	f.wanted = firewall.Wanted{
		Link: "jiji0", Bridge: "jiji-br0", Uplinks: []string{"eth0"},
		Cluster: netip.MustParsePrefix("10.210.0.0/16"), Management: netip.MustParsePrefix("fdcc::/16"),
		Subnet: netip.MustParsePrefix("10.210.0.0/24"), WireGuardIP: netip.MustParseAddr("10.210.0.1"),
		ListenPort: 51820, DNSPort: 53, Control: []uint16{8786, 8787},
	}
	return f
}

// trespass has the neighbour know the way to everything that is not its own, and have
// addresses that are not.
func (f *firewallLab) trespass() {
	f.t.Helper()
	f.near.Run("sh", "-ec", fmt.Sprintf(`
		ip route add 10.210.0.0/16 via %[1]v
		ip -6 route add %[2]v/128 via %[3]v
		ip addr add %[4]v/32 dev lo; ip -6 addr add %[5]v/128 dev lo nodad`,
		f.a.Addr(f.lan), f.management, f.server6, spoofed4, spoofed6))
}

// An echo answers datagrams with the source that it saw, and remembers it.
type echo struct {
	mu   sync.Mutex
	seen map[string]netip.Addr // by what was sent
}

// echo serves a host's ports: servicePort, and what stands for DNS, gossip and control.
func (f *firewallLab) echo(h *lab.Host, ports ...int) *echo {
	f.t.Helper()
	e := &echo{seen: map[string]netip.Addr{}}
	for _, port := range ports {
		var c *net.UDPConn
		if err := h.Do(func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
			return err
		}); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 256)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				e.mu.Lock()
				e.seen[string(b[:n])] = from.Addr().Unmap()
				e.mu.Unlock()
				c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
			}
		}()
	}
	return e
}

var tokens struct {
	sync.Mutex
	n int
}

// send sends a datagram from a host, with its address from unless that is zero, and
// returns the source that at saw, zero if it did not arrive within limit, and whether
// the answer came back.
func (f *firewallLab) send(h *lab.Host, from netip.Addr, to netip.AddrPort, at *lab.Host, limit time.Duration) (source netip.Addr, answered bool) {
	f.t.Helper()
	tokens.Lock()
	tokens.n++
	token := fmt.Sprint("token ", tokens.n)
	tokens.Unlock()
	var c *net.UDPConn
	if err := h.Do(func() (err error) {
		var local *net.UDPAddr
		if from.IsValid() {
			local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		c, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		f.t.Fatalf("send from %s to %v: %v", h.Name, to, err)
	}
	defer c.Close()
	arrived := func() netip.Addr {
		e := f.echoes[at]
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.seen[token]
	}
	b := make([]byte, 256)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		c.Write([]byte(token)) // an error tells of an earlier one's refusal
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(b); err == nil {
			return arrived(), true
		}
	}
	return arrived(), false
}

// A way is one kind of traffic.
type way struct {
	name   string
	h      *lab.Host
	from   netip.Addr // zero: its own
	to     netip.AddrPort
	at     *lab.Host
	source netip.Addr // that has to be seen; zero: any
}

// pass checks that traffic gets through and is answered.
func (f *firewallLab) pass(ways ...way) {
	f.t.Helper()
	for _, w := range ways {
		source, answered := f.send(w.h, w.from, w.to, w.at, askLimit)
		switch {
		case !source.IsValid():
			f.t.Errorf("%s: %s to %v did not arrive", w.name, w.h.Name, w.to)
		case !answered:
			f.t.Errorf("%s: %s to %v arrived, the answer did not", w.name, w.h.Name, w.to)
		case w.source.IsValid() && source != w.source:
			f.t.Errorf("%s: %s to %v came from %v, want %v", w.name, w.h.Name, w.to, source, w.source)
		}
	}
}

// arrive checks that traffic gets through, be it answered or not.
func (f *firewallLab) arrive(ways ...way) {
	f.t.Helper()
	for _, w := range ways {
		if source, _ := f.send(w.h, w.from, w.to, w.at, silentLimit); !source.IsValid() {
			f.t.Errorf("%s: %s to %v did not arrive", w.name, w.h.Name, w.to)
		}
	}
}

// stop checks that traffic does not arrive.
func (f *firewallLab) stop(ways ...way) {
	f.t.Helper()
	for _, w := range ways {
		if source, _ := f.send(w.h, w.from, w.to, w.at, silentLimit); source.IsValid() {
			f.t.Errorf("%s: %s to %v arrived, from %v", w.name, w.h.Name, w.to, source)
		}
	}
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// mesh is what has to work. source is what another server sees of a's container.
func (f *firewallLab) mesh(source netip.Addr) []way {
	return []way{
		{name: "container to mesh", h: f.ca.Host, to: at(f.cb.Addr, servicePort), at: f.cb.Host, source: source},
		{name: "mesh to container", h: f.cb.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host, source: f.cb.Addr},
		{name: "server to container", h: f.b.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host, source: netip.MustParseAddr("10.210.1.1")},
		{name: "server to mesh", h: f.a.Host, to: at(f.cb.Addr, servicePort), at: f.cb.Host, source: f.wanted.WireGuardIP},
		{name: "WireGuard", h: f.near.Host, to: at(f.a.Addr(f.lan), 51820), at: f.a.Host},
		{name: "container to DNS", h: f.ca.Host, to: at(f.wanted.WireGuardIP, 53), at: f.a.Host},
		{name: "mesh to DNS", h: f.cb.Host, to: at(f.wanted.WireGuardIP, 53), at: f.a.Host},
		{name: "gossip", h: f.b.Host, to: at(f.management, 8787), at: f.a.Host},
		{name: "control", h: f.b.Host, to: at(f.management, 8786), at: f.a.Host},
		{name: "control to itself", h: f.a.Host, to: at(f.management, 8786), at: f.a.Host, source: f.management},
	}
}

// engine is what a container engine's rules let through, and must go on doing.
func (f *firewallLab) engine() []way {
	return []way{
		{name: "published port", h: f.near.Host, to: at(f.a.Addr(f.lan), 8080), at: f.ca.Host},
		{name: "published port from beside", h: f.ca2.Host, to: at(f.a.Addr(f.lan), 8080), at: f.ca.Host, source: f.wanted.WireGuardIP},
		{name: "container to the one beside", h: f.ca2.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host, source: f.ca2.Addr},
		{name: "server to its container", h: f.a.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host},
		{name: "way out", h: f.ca.Host, to: at(f.near.Addr(f.lan), servicePort), at: f.near.Host, source: f.a.Addr(f.lan)},
	}
}

// outside is what nobody may do.
func (f *firewallLab) outside() []way {
	return append(f.fromOther(),
		way{name: "LAN to container", h: f.near.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host},
		way{name: "LAN to mesh", h: f.near.Host, to: at(f.cb.Addr, servicePort), at: f.cb.Host},
		way{name: "LAN to DNS", h: f.near.Host, to: at(f.wanted.WireGuardIP, 53), at: f.a.Host},
		way{name: "LAN to gossip", h: f.near.Host, to: at(f.management, 8787), at: f.a.Host},
		way{name: "LAN to control", h: f.near.Host, to: at(f.management, 8786), at: f.a.Host},
		way{name: "container to control", h: f.ca.Host, to: at(f.wanted.WireGuardIP, 8786), at: f.a.Host},
		way{name: "container to gossip", h: f.ca.Host, to: at(f.wanted.WireGuardIP, 8787), at: f.a.Host},
		way{name: "spoofed to container", h: f.near.Host, from: spoofed4, to: at(f.ca.Addr, servicePort), at: f.ca.Host},
		way{name: "spoofed to mesh", h: f.near.Host, from: spoofed4, to: at(f.cb.Addr, servicePort), at: f.cb.Host},
		way{name: "spoofed to DNS", h: f.near.Host, from: spoofed4, to: at(f.wanted.WireGuardIP, 53), at: f.a.Host},
		way{name: "spoofed to gossip", h: f.near.Host, from: spoofed6, to: at(f.management, 8787), at: f.a.Host},
		way{name: "spoofed to control", h: f.near.Host, from: spoofed6, to: at(f.management, 8786), at: f.a.Host},
		way{name: "spoofed to the server's IPv6", h: f.near.Host, from: spoofed6, to: at(f.server6, servicePort), at: f.a.Host},
		way{name: "spoofed to the server", h: f.near.Host, from: spoofed4, to: at(f.a.Addr(f.lan), servicePort), at: f.a.Host},
	)
}

// fromOther is what a container of another bridge may do only by --forward-from.
func (f *firewallLab) fromOther() []way {
	return []way{
		{name: "another bridge to container", h: f.other.Host, to: at(f.ca.Addr, servicePort), at: f.ca.Host},
		{name: "another bridge to mesh", h: f.other.Host, to: at(f.cb.Addr, servicePort), at: f.cb.Host},
	}
}

// call runs the package on a.
func call[T any](f *firewallLab, function string) T {
	f.t.Helper()
	in, err := json.Marshal(f.wanted)
	if err != nil {
		f.t.Fatal(err)
	}
	var out T
	if err := json.Unmarshal([]byte(f.a.RunInput(string(in), f.program, function)), &out); err != nil {
		f.t.Fatal(err)
	}
	return out
}

// apply applies the firewall, and checks that doing so again has nothing to do.
func (f *firewallLab) apply() (whats []string) {
	f.t.Helper()
	for _, c := range call[[]firewall.Change](f, "apply") {
		whats = append(whats, c.What)
	}
	if again := call[[]firewall.Change](f, "apply"); len(again) > 0 {
		f.t.Errorf("to apply again changed %q", again)
	}
	return whats
}

// A firewallKind is a kind of machine.
type firewallKind struct {
	backend firewall.Backend
	setUp   string // makes the server one of the kind
	engine  string // rules as container engines write them
}

const (
	iptablesEngine = `
		for t in iptables ip6tables; do
			$t -P INPUT DROP; $t -A INPUT -i lo -j ACCEPT; $t -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			$t -P FORWARD DROP
		done
		ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
		iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN
		iptables -A FORWARD -j DOCKER-USER
		iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		iptables -A FORWARD -i jiji-br0 -j ACCEPT
		iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
		iptables -A FORWARD -d 10.210.0.10 -o jiji-br0 -p udp --dport 7000 -j ACCEPT
		iptables -t raw -A PREROUTING -d 10.210.0.10 ! -i jiji-br0 -j DROP
		iptables -t nat -A PREROUTING -p udp --dport 8080 -j DNAT --to-destination 10.210.0.10:7000
		iptables -t nat -A POSTROUTING -s 10.210.0.0/24 -d 10.210.0.10 -p udp --dport 7000 -m conntrack --ctstate DNAT -j MASQUERADE
		iptables -t nat -A POSTROUTING -s 10.210.0.0/24 ! -o jiji-br0 -j MASQUERADE
		iptables -t nat -A POSTROUTING -s 172.17.0.0/24 ! -o docker0 -j MASQUERADE`
	nftEngine = `nft -f - <<-END
		table ip engine {
			chain pre { type nat hook prerouting priority dstnat; udp dport 8080 dnat to 10.210.0.10:7000; }
			chain post {
				type nat hook postrouting priority srcnat
				ip saddr 10.210.0.0/24 oifname != "jiji-br0" masquerade
				ip saddr 10.210.0.0/24 ip daddr 10.210.0.10 ct status dnat masquerade
				ip saddr 172.17.0.0/24 oifname != "docker0" masquerade
			}
		}
		END`
)

var firewallKinds = []firewallKind{
	{firewall.IPTablesNFT, "", iptablesEngine},
	{firewall.IPTablesLegacy, "for t in /etc/alternatives/ip*tables*; do ln -sf $(readlink $t | sed s/-nft/-legacy/) $t; done", iptablesEngine},
	{firewall.NFTables, "mount --bind /dev/null /usr/sbin/xtables-nft-multi; mount --bind /dev/null /usr/sbin/xtables-legacy-multi", nftEngine},
}

// onEachFirewall runs a test on a machine of each kind, with an engine's rules on it.
func onEachFirewall(t *testing.T, test func(*testing.T, *firewallLab, firewallKind)) {
	for _, kind := range firewallKinds {
		t.Run(kind.backend.String(), func(t *testing.T) {
			f := newFirewallLab(t)
			f.a.Run("sh", "-ec", "true;"+kind.setUp)
			test(t, f, kind)
		})
	}
}

func TestFirewall(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		f.pass(f.mesh(netip.Addr{})...)
		f.arrive(f.outside()...) // so it is the firewall that stops them
		f.a.Run("sh", "-ec", kind.engine)
		f.pass(f.engine()...)
		before := firewallDump(f.a)

		if d := call[firewall.Detection](f, "detect"); d.Backend != kind.backend || len(d.Unprotected) > 0 {
			t.Errorf("detected %+v", d)
		}
		t.Logf("%s", strings.Join(f.apply(), "\n"))
		if got := call[[]firewall.Obstacle](f, "obstacles"); len(got) > 0 {
			t.Errorf("obstacles: %q", got)
		}
		if kind.backend != firewall.NFTables {
			if got := f.a.Run("sh", "-c", "iptables -L FORWARD -n -v | head -4 | grep -c ' jiji0 '"); got != "2\n" {
				t.Errorf("`iptables -L FORWARD -n -v | grep jiji0` shows %s", f.a.Run("iptables", "-L", "FORWARD", "-n", "-v"))
			}
		}
		f.pass(f.mesh(f.ca.Addr)...)
		f.pass(f.engine()...)
		f.stop(f.outside()...)

		if kind.backend != firewall.NFTables { // either of the two is complete
			f.a.Run("nft", "delete", "table", "inet", "jiji")
			f.pass(f.mesh(f.ca.Addr)...)
			f.pass(f.engine()...)
			f.stop(f.outside()...)
		}

		f.wanted.Masquerade = true
		f.apply()
		f.pass(f.mesh(f.wanted.WireGuardIP)...)
		f.wanted.Masquerade = false

		f.wanted.ForwardFrom = []string{"docker0"}
		f.apply()
		f.pass(f.fromOther()...)
		f.pass(f.mesh(f.ca.Addr)...)
		f.stop(f.outside()[len(f.fromOther()):]...)
		f.wanted.ForwardFrom = nil
		f.apply()
		f.stop(f.outside()...)

		call[[]firewall.Change](f, "remove")
		if after := firewallDump(f.a); after != before {
			t.Errorf("after Remove:\n%s\nbefore:\n%s", after, before)
		}
		if again := call[[]firewall.Change](f, "remove"); len(again) > 0 {
			t.Errorf("to remove again changed %q", again)
		}
	})
}

// TestFirewallClear: what is for the mesh does not leave in the clear, be there a route
// for it or not.
func TestFirewallClear(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		f.a.Run("sh", "-ec", kind.engine)
		if kind.backend != firewall.NFTables {
			f.a.Run("sh", "-ec", "iptables -P FORWARD ACCEPT")
		}
		f.a.Run("sh", "-ec", "ip route del 10.210.1.0/24; ip link set jiji0 down")
		leak := func() int {
			c := f.a.Link(f.lan).Capture("dst net 10.210.0.0/16 or dst net fdcc::/16")
			defer c.Stop()
			f.send(f.ca.Host, netip.Addr{}, at(f.cb.Addr, servicePort), f.cb.Host, silentLimit)
			f.send(f.a.Host, netip.Addr{}, at(f.cb.Addr, servicePort), f.cb.Host, silentLimit)
			f.send(f.a.Host, netip.Addr{}, at(netip.MustParseAddr("fdcc::2"), servicePort), f.b.Host, silentLimit)
			return c.Count()
		}
		if leak() == 0 {
			t.Error("without ours nothing leaves in the clear: this proves nothing")
		}
		f.apply()
		if n := leak(); n > 0 {
			t.Errorf("%d packets left in the clear", n)
		}
		if kind.backend != firewall.NFTables {
			f.a.Run("nft", "delete", "table", "inet", "jiji")
			if n := leak(); n > 0 {
				t.Errorf("%d packets left in the clear past iptables", n)
			}
		}
	})
}

// TestFirewallSourceAddress: a foreign masquerade for the subnet, in whatever table and
// made before or after ours, changes no source address in the mesh.
func TestFirewallSourceAddress(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		nft := func(priority string) string {
			return fmt.Sprintf("nft add table ip foreign; nft 'add chain ip foreign post { type nat hook postrouting priority %s; }'; nft add rule ip foreign post masquerade", priority)
		}
		masquerades := []string{nft("srcnat"), nft("srcnat - 1"), nft("0"), nft("-150")}
		if kind.backend != firewall.NFTables {
			masquerades = append(masquerades, "iptables -t nat -A POSTROUTING -j MASQUERADE", "iptables -t nat -I POSTROUTING -j MASQUERADE",
				"iptables -t nat -I POSTROUTING -s 10.210.0.0/24 -j MASQUERADE")
		}
		undo := "nft delete table ip foreign 2>/dev/null; iptables -t nat -F POSTROUTING 2>/dev/null; true"
		mesh := func(source netip.Addr) []way { return f.mesh(source)[:4] }
		for _, m := range masquerades {
			f.a.Run("sh", "-ec", m)
			if source, _ := f.send(f.ca.Host, netip.Addr{}, at(f.cb.Addr, servicePort), f.cb.Host, askLimit); source == f.ca.Addr {
				t.Errorf("%s: without ours it changes nothing", m)
			}
			f.apply()
			f.pass(mesh(f.ca.Addr)...) // after it
			f.a.Run("sh", "-c", undo)
			call[[]firewall.Change](f, "remove")

			f.apply()
			f.a.Run("sh", "-ec", m)
			f.pass(mesh(f.ca.Addr)...) // before it
			if t.Failed() {
				t.Fatalf("with %s", m)
			}
			f.a.Run("sh", "-c", undo)
			call[[]firewall.Change](f, "remove")
		}
	})
}

// TestFirewallRepair: what somebody takes away comes back, and is named.
func TestFirewallRepair(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		f.a.Run("sh", "-ec", kind.engine)
		f.apply()
		type damage struct{ command, named string }
		damages := []damage{
			{"nft delete table inet jiji", "nftables: table inet jiji was not there: added"},
			{"nft flush chain inet jiji forward", "nftables: table inet jiji, chain forward was empty: its 11 rules put back"},
			{"nft add table inet jiji '{ flags dormant; }'", "nftables: table inet jiji was dormant: put back to work"},
			{"nft insert rule inet jiji prerouting accept", "nftables: table inet jiji, chain prerouting had 1 rules that are not wanted: removed"},
			{"nft delete rule inet jiji input handle $(nft -a list chain inet jiji input | sed -n '/51820/s/.*handle //p')",
				"nftables: table inet jiji, chain input: rule udp dport 51820 accept was not there: added"},
		}
		if kind.backend != firewall.NFTables {
			damages = append(damages, []damage{
				{"iptables -F JIJI-FORWARD", "filter: chain JIJI-FORWARD was empty: its 11 rules put back"},
				{"iptables -D FORWARD -o jiji0 -j JIJI-FORWARD", "filter: rule -A FORWARD -o jiji0 -j JIJI-FORWARD was not there: added"},
				{"iptables -D DOCKER-USER 1", "filter: rule -A DOCKER-USER -i jiji0 -j JIJI-FORWARD was not there: added"},
				{"iptables -I FORWARD -p udp -j DROP", "filter: our rules in chain FORWARD moved to its head, where there was -p udp -j DROP"},
				{"iptables -t nat -F; iptables -t nat -X", "nat: chain JIJI-POSTROUTING was not there: added"},
				{"ip6tables -t raw -F JIJI-PREROUTING", "ip6tables raw: chain JIJI-PREROUTING was empty: its 4 rules put back"},
				{"iptables -A FORWARD -s 10.0.0.0/8 -j JIJI-FORWARD", "filter: rule -A FORWARD -s 10.0.0.0/8 -j JIJI-FORWARD removed"},
			}...)
		}
		for _, d := range damages {
			f.a.Run("sh", "-ec", d.command)
			if got := f.apply(); len(got) != 1 || !strings.HasSuffix(got[0], d.named) {
				t.Errorf("%s: %q, want %q", d.command, got, d.named)
			}
		}
		f.pass(f.mesh(f.ca.Addr)...)
		f.stop(f.outside()...)
	})
}

// TestFirewallWatch: where the kernel tells, a second is enough to repair.
func TestFirewallWatch(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		f.a.Run("sh", "-ec", kind.engine)
		f.apply()
		whole := firewallDump(f.a)
		wanted, err := json.Marshal(f.wanted)
		if err != nil {
			t.Fatal(err)
		}
		f.a.WriteFile("/run/wanted.json", string(wanted))
		p := f.a.Spawn("sh", "-ec", "exec "+f.program+" watch </run/wanted.json")
		p.WaitLog("watching", askLimit)
		lab.Eventually(t, askLimit, "the watch to see a change", func() error { // it says so before it does
			f.a.Run("nft", "flush", "chain", "inet", "jiji", "input")
			time.Sleep(100 * time.Millisecond)
			if !strings.Contains(p.Log(), "chain input was empty") {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		damages := []string{"nft delete table inet jiji", "nft flush chain inet jiji forward"}
		if kind.backend == firewall.IPTablesNFT {
			damages = append(damages, "iptables -F FORWARD; iptables -A FORWARD -j DOCKER-USER", "ip6tables -t raw -F", "iptables -t nat -D POSTROUTING -j JIJI-POSTROUTING",
				"iptables -t mangle -F", "nft flush ruleset")
		}
		for _, d := range damages {
			f.a.Run("sh", "-ec", d)
			lab.Eventually(t, askLimit, d, func() error { // a second, and one for other tests
				if out := f.stillGone(whole); out != "" {
					return fmt.Errorf("gone: %s", out)
				}
				return nil
			})
		}
		p.Kill9()
	})
}

// stillGone returns what of ours is missing in comparison with a dump.
func (f *firewallLab) stillGone(whole string) string {
	now := firewallDump(f.a)
	for line := range strings.Lines(whole) {
		if (strings.Contains(line, "JIJI") || strings.Contains(line, "jiji0")) && !strings.Contains(now, line) {
			return line
		}
	}
	return ""
}

// TestFirewallNeverOpen: while the rules change again and again, not one packet from
// outside gets in.
func TestFirewallNeverOpen(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		f.apply()
		inside := f.ca.Capture("eth0", "udp and port 7000")
		var conns []*net.UDPConn
		for _, from := range []netip.Addr{spoofed4, f.near.Addr(f.lan)} {
			if err := f.near.Do(func() error {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(at(from, 0)), net.UDPAddrFromAddrPort(at(f.ca.Addr, servicePort)))
				conns = append(conns, c)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		end := make(chan struct{})
		sent := make(chan int)
		go func() {
			n := 0
			for ; ; n++ {
				select {
				case <-end:
					sent <- n
					return
				default:
				}
				for _, c := range conns {
					c.Write([]byte("let me in"))
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
		for i := range 20 {
			f.wanted.Uplinks = [][]string{{"eth0"}, {"eth0", "eth7"}}[i%2]
			f.wanted.Masquerade = i%4 == 0
			if len(call[[]firewall.Change](f, "apply")) == 0 {
				t.Error("nothing changed")
			}
		}
		close(end)
		n := <-sent
		if got := inside.Count(); got > 0 || n < 200 {
			t.Errorf("%d of %d packets got in", got, 2*n)
		}
		for _, c := range conns {
			c.Close()
		}
		f.pass(f.mesh(netip.Addr{})[1])
	})
}

// TestFirewallObstacles: what stands in the way is named, with the command that helps.
func TestFirewallObstacles(t *testing.T) {
	onEachFirewall(t, func(t *testing.T, f *firewallLab, kind firewallKind) {
		rules := map[string]string{ // what others have, and how it is to be shown
			`nft -f - <<-END
				table inet host {
					chain in { type filter hook input priority 5; policy accept; udp dport 51820 counter drop; }
					chain through { type filter hook forward priority 5; policy drop; ct state established,related accept; }
				}
				END`: "nft inet host, chain through: type filter hook forward priority filter + 5; policy drop;",
		}
		if kind.backend != firewall.NFTables {
			rules["iptables -t mangle -A FORWARD -i jiji0 -j DROP; iptables -t mangle -A FORWARD -o jiji0 -j DROP"] = "mangle, chain FORWARD: -A FORWARD -i jiji0 -j DROP"
		}
		f.apply()
		for rule, shown := range rules {
			f.a.Run("sh", "-ec", rule)
			f.stop(f.mesh(f.ca.Addr)[:2]...)
			got := call[[]firewall.Obstacle](f, "obstacles")
			if !slices.ContainsFunc(got, func(o firewall.Obstacle) bool { return strings.HasSuffix(o.Rule, shown) }) {
				t.Errorf("obstacles %q, want %q", got, shown)
			}
			for _, o := range got {
				t.Logf("%s\n\tblocks %s\n\tfix: %s", o.Rule, o.Blocks, o.Fix)
				f.a.Run("sh", "-ec", o.Fix)
			}
			f.pass(f.mesh(f.ca.Addr)...)
			if left := call[[]firewall.Obstacle](f, "obstacles"); len(left) > 0 {
				t.Errorf("obstacles after their fixes: %q", left)
			}
		}
	})
}

// TestFirewallBoth: where rules are in both kinds of iptables, a packet has to pass
// both, and can.
func TestFirewallBoth(t *testing.T) {
	f := newFirewallLab(t)
	for _, variant := range []string{"nft", "legacy"} {
		f.a.Run("sh", "-ec", fmt.Sprintf("iptables-%[1]s -P FORWARD DROP; iptables-%[1]s -A FORWARD -p tcp -j DROP", variant))
	}
	before := firewallDump(f.a)
	f.apply()
	f.pass(f.mesh(f.ca.Addr)...)
	if d := call[firewall.Detection](f, "detect"); !strings.Contains(d.Why, "ours go into both") {
		t.Errorf("detected %+v", d)
	}
	f.a.Run("sh", "-ec", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -D FORWARD -p tcp -j DROP")
	if got := f.apply(); len(got) != 9 || !strings.Contains(got[0], "iptables-legacy raw: chain JIJI-PREROUTING removed") {
		t.Errorf("when legacy iptables is not used any more: %q", got)
	}
	f.a.Run("sh", "-ec", "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -p tcp -j DROP")
	call[[]firewall.Change](f, "remove")
	if after := firewallDump(f.a); after != before {
		t.Errorf("after Remove:\n%s\nbefore:\n%s", after, before)
	}
}

// TestFirewallWithout: what is missing is named, and what is there is enough.
func TestFirewallWithout(t *testing.T) {
	f := newFirewallLab(t)
	f.a.Run("sh", "-ec", `
		mount -t tmpfs tmpfs /mnt; mkdir /mnt/upper /mnt/work
		mount -t overlay -o lowerdir=/usr/sbin,upperdir=/mnt/upper,workdir=/mnt/work overlay /usr/sbin
		rm /usr/sbin/ip6tables* /usr/sbin/nft`)
	want := []string{"nft is not installed: rules of others in nftables that stand in the way cannot be shown",
		"ip6tables is not installed: IPv6 is guarded by nftables, but a DROP in ip6tables cannot be passed"}
	if d := call[firewall.Detection](f, "detect"); !slices.Equal(d.Unprotected, want) {
		t.Errorf("detected %+v, want %q", d, want)
	}
	f.apply()
	f.pass(f.mesh(f.ca.Addr)...)
	f.stop(f.outside()...)
}

// firewallDump returns all rules of a server, without what iptables leaves when all of
// a table is gone: its own chains, empty.
func firewallDump(s *lab.Server) string {
	nft := emptyTable.ReplaceAllString(emptyChain.ReplaceAllString(s.Run("nft", "-s", "list", "ruleset"), ""), "")
	out := []string{blank.ReplaceAllString(nft, "\n")}
	for _, tool := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		if _, err := s.Try("which", tool); err != nil {
			continue // hidden on this kind
		}
		table := ""
		for line := range strings.Lines(counters.ReplaceAllString(s.Run(tool), "")) {
			if strings.HasPrefix(line, "*") {
				table = strings.TrimSpace(line)
			}
			if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":") && !strings.HasSuffix(line, " ACCEPT\n") {
				out = append(out, tool+" "+table+" "+line)
			}
		}
	}
	return strings.Join(out, "")
}

var (
	blank      = regexp.MustCompile(`\n+`)
	counters   = regexp.MustCompile(` \[\d+:\d+\]`)
	emptyChain = regexp.MustCompile(`\n*\tchain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) \{\n\t\ttype .* policy accept;\n\t\}`)
	emptyTable = regexp.MustCompile(`(# .*\n)*table ip6? (raw|filter|nat|mangle) \{\n*\}\n`)
)

// TestForeignDropIsInStatus: a node says which rule of somebody else's keeps packets of
// the mesh out, and the command that lets them through.
func TestForeignDropIsInStatus(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1 := m.servers[0]
	web1.RunInput("table inet site {\n\tchain through {\n\t\ttype filter hook forward priority 5; policy drop;\n\t}\n}\n", "nft", "-f", "-")
	m.startAll()
	lab.Eventually(t, meshLimit, "the rule and the command are in status", func() error {
		if out := web1.Run("jiji-node", "status"); !strings.Contains(out, "nft inet site, chain through: type filter hook forward priority filter + 5; policy drop;") || !strings.Contains(out, "nft insert rule inet site through") {
			return fmt.Errorf("status is\n%s", out)
		}
		return nil
	})
	m.nodes[0].WaitLog("nft insert rule inet site through", time.Second)
}
