package host

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var someWant = Want{
	Network: "jiji-mesh",
	Link:    "jiji0", ListenPort: 51820, WireGuardIP: ipa("10.210.1.1"), DNSPort: 53,
	Cluster: pfx("10.210.0.0/16"), Subnet: pfx("10.210.1.0/24"),
}

// lan is an ordinary server that runs Docker.
func lan() Facts {
	return Facts{Capabilities: ^uint64(0), RPFilter: map[string]int{"all": 0, "default": 0, "eth0": 0}, Network: Network{
		Links: []LinkInfo{
			{Index: 1, Name: "lo", Kind: "device", Loopback: true, Addrs: addrs("127.0.0.1/8", "::1/128")},
			{Index: 2, Name: "eth0", Kind: "device", Up: true, DefaultRoute: true, Addrs: addrs("192.168.1.5/24", "2001:db8::5/64", "fe80::5/64")},
			{Index: 3, Name: "docker0", Kind: "bridge", Addrs: addrs("172.17.0.1/16")},
		},
		Routes: []RouteInfo{
			route("0.0.0.0/0", 2, 16), route("::/0", 2, 9), route("192.168.1.0/24", 2, protoKernel),
			route("172.17.0.0/16", 3, protoKernel), route("2001:db8::/64", 2, protoKernel), route("fe80::/64", 2, protoKernel),
		},
	}}
}

func route(dst string, link, protocol int) RouteInfo {
	return RouteInfo{Dst: pfx(dst), Link: link, Protocol: protocol, Type: typeUnicast, Table: tableMain}
}

func (f Facts) plus(l LinkInfo, routes ...RouteInfo) Facts {
	f.Links, f.Routes = append(f.Links, l), append(f.Routes, routes...)
	return f
}

// A finding is what Check should say of one thing; nothing else may be said.
type finding struct {
	kind  Kind
	parts string // of the text, separated by |; "degraded" first if the node can run with it
}

func expect(t *testing.T, got []Problem, want ...finding) {
	t.Helper()
	for i, p := range got {
		if strings.Contains(p.Text, "\n") {
			t.Errorf("more than one line: %q", p.Text)
		}
		if i >= len(want) {
			t.Errorf("unexpected: %s: %s", p.Kind, p.Text)
			continue
		}
		if p.Kind != want[i].kind {
			t.Errorf("kind %s, want %s: %s", p.Kind, want[i].kind, p.Text)
		}
		parts, degraded := strings.CutPrefix(want[i].parts, "degraded|")
		if p.Degraded != degraded {
			t.Errorf("degraded %v: %s", p.Degraded, p.Text)
		}
		for part := range strings.SplitSeq(parts, "|") {
			if !strings.Contains(p.Text, part) {
				t.Errorf("got  %s\nwant %s", p.Text, part)
			}
		}
	}
	for _, w := range want[min(len(got), len(want)):] {
		t.Errorf("missing: %s: %s", w.kind, w.parts)
	}
}

func TestCheck(t *testing.T) {
	with := func(change func(*Facts)) Facts { f := lan(); change(&f); return f }
	pathError := func(errno syscall.Errno) error { return &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: errno} }
	for _, c := range []struct {
		name  string
		facts Facts
		want  []finding
	}{
		{"fine", lan(), nil},
		{"no device", with(func(f *Facts) { f.TUN = pathError(syscall.ENOENT) }), []finding{{KindTUN, "open /dev/net/tun: no such file or directory|`modprobe tun`|--device /dev/net/tun"}}},
		{"no module", with(func(f *Facts) { f.TUN = pathError(syscall.ENODEV) }), []finding{{KindTUN, "`modprobe tun`"}}},
		{"device forbidden", with(func(f *Facts) { f.TUN = pathError(syscall.EPERM) }), []finding{{KindTUN, "open /dev/net/tun: operation not permitted|--device /dev/net/tun"}}},
		{"no capability", with(func(f *Facts) { f.Capabilities &^= 1 << capNetAdmin }), []finding{{KindPrivilege, "CAP_NET_ADMIN is missing|--cap-add NET_ADMIN"}}},
		{"no IPv6", with(func(f *Facts) { f.IPv6Off = "net.ipv6.conf.all.disable_ipv6=1" }), []finding{{KindIPv6, "degraded|net.ipv6.conf.all.disable_ipv6=1|without a management address"}}},
		{"kernel WireGuard of that name", lan().plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "wireguard", Addrs: addrs("10.210.1.1/24")}, route("10.210.1.0/24", 7, protoKernel)),
			[]finding{{KindInterface, "interface jiji0 exists already, as a kernel WireGuard interface|`wg-quick down jiji0`"}}},
		{"a process's TUN of that name", with(func(f *Facts) {
			*f = f.plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "tuntap"})
			f.TUNOwners = map[string]string{"jiji0": "wireguard-go (pid 77, wg.service)"}
		}), []finding{{KindInterface, "interface jiji0 exists already, as a TUN device of wireguard-go (pid 77, wg.service)"}}},
		{"nobody's TUN of that name", lan().plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "tuntap"}), []finding{{KindInterface, "unknown process or of none|`ip link delete jiji0`"}}},
		{"a bridge of that name", lan().plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "bridge"}), []finding{{KindInterface, "interface jiji0 exists already, of type bridge"}}},
		{"several at once", with(func(f *Facts) {
			f.Capabilities &^= 1 << capNetAdmin
			f.TUN = pathError(syscall.EACCES)
			f.IPv6Off = "x"
		}),
			[]finding{{KindPrivilege, "CAP_NET_ADMIN"}, {KindTUN, "permission denied"}, {KindIPv6, "degraded|x"}}},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, Check(c.facts, someWant), c.want...) })
	}
}

func TestCheckPorts(t *testing.T) {
	busy := &os.SyscallError{Syscall: "bind", Err: syscall.EADDRINUSE}
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	bind := func(proto, local string, err error) Bind { return Bind{proto, at(local), err} }
	held := func(proto, local, owner string) Socket {
		return Socket{Proto: proto, Local: at(local), Inode: 7, Owner: owner, UID: 991}
	}
	resolved := held("udp", "127.0.0.53:53", "systemd-resolved (pid 9)")
	kernel := Socket{Proto: "udp", Local: at("0.0.0.0:51820")}
	for _, c := range []struct {
		name    string
		binds   []Bind
		sockets []Socket
		links   []LinkInfo
		want    []finding
	}{
		{name: "all free", binds: []Bind{bind("udp", "0.0.0.0:51820", nil), bind("tcp", "10.210.1.1:53", nil)}, sockets: []Socket{resolved}},
		{name: "wildcards of both families by one", binds: []Bind{bind("udp", "0.0.0.0:51820", busy), bind("udp", "[::]:51820", busy)},
			sockets: []Socket{held("udp", "[::]:51820", "wg (pid 8)")},
			want:    []finding{{KindPort, "port 51820/udp is taken by wg (pid 8) ([::]:51820), expected free"}}},
		{name: "a socket for each family by one", binds: []Bind{bind("udp", "0.0.0.0:51820", busy), bind("udp", "[::]:51820", busy)},
			sockets: []Socket{held("udp", "0.0.0.0:51820", "wg (pid 8)"), held("udp", "[::]:51820", "wg (pid 8)")},
			want:    []finding{{KindPort, "port 51820/udp is taken by wg (pid 8) (0.0.0.0:51820), expected free|choose another port with --listen-port"}}},
		{name: "a wildcard before single addresses", binds: []Bind{bind("udp", "0.0.0.0:51820", busy), bind("udp", "[::]:51820", busy)},
			sockets: []Socket{held("udp", "[::]:51820", "six (pid 8)"), held("udp", "127.0.0.1:51820", "four (pid 9)")},
			want:    []finding{{KindPort, "port 51820/udp is taken by six (pid 8)"}}},
		{name: "a single address keeps the wildcard away", binds: []Bind{bind("udp", "0.0.0.0:51820", busy), bind("udp", "[::]:51820", busy)},
			sockets: []Socket{held("udp", "127.0.0.1:51820", "four (pid 9)"), held("udp", "[::1]:51820", "six (pid 8)")},
			want:    []finding{{KindPort, "four (pid 9) (127.0.0.1:51820)"}, {KindPort, "six (pid 8) ([::1]:51820)"}}},
		{name: "the resolver's stub is not to blame", binds: []Bind{bind("udp", "10.210.1.1:53", busy)},
			sockets: []Socket{resolved, held("udp", "[::]:53", "dnsmasq (pid 8)"), held("tcp", "10.210.1.1:53", "tcp (pid 1)"), held("udp", "10.210.1.1:5353", "mdns (pid 2)")},
			want:    []finding{{KindPort, "port 53/udp on 10.210.1.1 is taken by dnsmasq (pid 8) ([::]:53)"}}},
		{name: "own address before wildcards", binds: []Bind{bind("tcp", "10.210.1.1:53", busy)},
			sockets: []Socket{held("tcp", "[::]:53", "six"), held("tcp", "0.0.0.0:53", "four"), held("tcp", "10.210.1.1:53", "aardvark-dns (pid 4)")},
			want:    []finding{{KindPort, "port 53/tcp on 10.210.1.1 is taken by aardvark-dns (pid 4)|choose another port with --dns-port"}}},
		{name: "kernel WireGuard", binds: []Bind{bind("udp", "0.0.0.0:51820", busy)}, sockets: []Socket{kernel},
			links: []LinkInfo{{Index: 8, Name: "wg0", Kind: "wireguard"}},
			want:  []finding{{KindPort, "port 51820/udp is taken by kernel WireGuard interface wg0 (0.0.0.0:51820)"}}},
		{name: "kernel, something else", binds: []Bind{bind("udp", "0.0.0.0:51820", busy)}, sockets: []Socket{kernel},
			want: []finding{{KindPort, "is taken by the kernel (0.0.0.0:51820)"}}},
		{name: "owner unknown", binds: []Bind{bind("udp", "10.210.1.1:53", busy)}, sockets: []Socket{held("udp", "0.0.0.0:53", "")},
			want: []finding{{KindPort, "is taken by a process of uid 991 (0.0.0.0:53)"}}},
		{name: "holder unknown", binds: []Bind{bind("udp", "10.210.1.1:53", busy)}, sockets: []Socket{resolved},
			want: []finding{{KindPort, "is taken by somebody who cannot be named from here"}}},
		{name: "not allowed in spite of the capability", binds: []Bind{bind("udp", "10.210.1.1:53", syscall.EACCES)},
			want: []finding{{KindPort, "port 53/udp on 10.210.1.1 cannot be listened on though CAP_NET_BIND_SERVICE is there: permission denied|SELinux"}}},
		{name: "a family that the kernel lacks", binds: []Bind{bind("udp", "[::]:51820", syscall.EAFNOSUPPORT)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := lan()
			f.Binds, f.Sockets, f.Links = c.binds, c.sockets, append(f.Links, c.links...)
			expect(t, Check(f, someWant), c.want...)
		})
	}
}

// What Corrosion needs is checked like the rest, each port under its name.
func TestCheckMorePorts(t *testing.T) {
	busy := &os.SyscallError{Syscall: "bind", Err: syscall.EADDRINUSE}
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	control, api := at("[fdcc::1]:8786"), at("127.0.0.1:8080")
	w := someWant
	w.Ports = []Port{
		{"tcp", control, "node-to-node control", ""}, {"udp", control, "node-to-node control", ""},
		{"tcp", api, "Corrosion API", "--api-port"},
	}
	nginx := Socket{Proto: "tcp", Local: at("0.0.0.0:8080"), Inode: 7, Owner: "nginx (pid 8)"}
	corrosion := Socket{Proto: "tcp", Local: api, Inode: 7, Owner: "corrosion (pid 78)"}
	for _, c := range []struct {
		name     string
		binds    []Bind
		sockets  []Socket
		children []string // of this very node, which runs
		want     []finding
	}{
		{name: "free", binds: []Bind{{"tcp", control, nil}, {"udp", control, nil}, {"tcp", api, nil}}},
		{name: "taken on every address", binds: []Bind{{"tcp", api, busy}}, sockets: []Socket{nginx},
			want: []finding{{KindPort, "degraded|port 8080/tcp on 127.0.0.1 (Corrosion API) is taken by nginx (pid 8) (0.0.0.0:8080), expected free: stop what holds it, or choose another port with --api-port"}}},
		{name: "no flag for it", binds: []Bind{{"udp", control, busy}},
			sockets: []Socket{nginx, {Proto: "udp", Local: at("[::]:8786"), Inode: 9, Owner: "app (pid 9)"}},
			want:    []finding{{KindPort, "degraded|port 8786/udp on fdcc::1 (node-to-node control) is taken by app (pid 9) ([::]:8786), expected free: stop what holds it"}}},
		{name: "both protocols", binds: []Bind{{"tcp", control, busy}, {"udp", control, busy}},
			want: []finding{{KindPort, "degraded|8786/tcp on fdcc::1 (node-to-node control) is taken by somebody"}, {KindPort, "degraded|8786/udp on fdcc::1"}}},
		{name: "our name beside another's", binds: []Bind{{"tcp", at("10.210.1.1:53"), busy}, {"tcp", api, busy}}, sockets: []Socket{nginx},
			want: []finding{{KindPort, "port 53/tcp on 10.210.1.1 is taken by somebody|with --dns-port"}, {KindPort, "degraded|(Corrosion API)"}}},
		{name: "forbidden", binds: []Bind{{"tcp", api, syscall.EACCES}},
			want: []finding{{KindPort, "degraded|port 8080/tcp on 127.0.0.1 (Corrosion API) cannot be listened on though|SELinux or AppArmor, or choose another port with --api-port"}}},
		{name: "no IPv6", binds: []Bind{{"tcp", control, syscall.EAFNOSUPPORT}, {"udp", control, syscall.EADDRNOTAVAIL}}},
		{name: "a stranger's agent", binds: []Bind{{"tcp", api, busy}}, sockets: []Socket{corrosion},
			want: []finding{{KindPort, "degraded|is taken by corrosion (pid 78)"}}},
		{name: "our agent's", binds: []Bind{{"tcp", api, busy}}, sockets: []Socket{corrosion}, children: []string{"sleep (pid 77)", "corrosion (pid 78)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := lan()
			f.Binds, f.Sockets = c.binds, c.sockets
			if c.children != nil {
				f.Own, f.OwnChildren = "jiji-node (pid 70)", c.children
			}
			got := Check(f, w)
			expect(t, got, c.want...)
			for _, p := range got {
				if strings.Contains(p.Text, "control)") && strings.Contains(p.Text, "choose") {
					t.Errorf("no flag chooses it: %s", p.Text)
				}
			}
		})
	}
}

func TestCheckOverlaps(t *testing.T) {
	eth1 := func(a ...string) LinkInfo {
		return LinkInfo{Index: 5, Name: "eth1", Kind: "device", Up: true, Addrs: addrs(a...)}
	}
	bridge := func(a ...string) LinkInfo {
		return LinkInfo{Index: 6, Name: "jiji-br0", Kind: "bridge", Addrs: addrs(a...)}
	}
	jiji0 := LinkInfo{Index: 7, Name: "old0", Kind: "tuntap"}
	typed := func(r RouteInfo, kind int) RouteInfo { r.Type = kind; return r }
	overlap := func(parts string) []finding { return []finding{{KindOverlap, parts}} }
	for _, c := range []struct {
		name  string
		facts Facts
		want  []finding
	}{
		{"a wide LAN route", lan().plus(eth1(), route("10.0.0.0/8", 2, 4)),
			overlap("cluster CIDR 10.210.0.0/16 overlaps route 10.0.0.0/8 dev eth0 proto static metric 0, which is not ours|--cluster-cidr or JIJI_CLUSTER_CIDR, such as 172.16.0.0/16")},
		{"a LAN inside it", lan().plus(eth1("10.210.5.7/24"), route("10.210.5.0/24", 5, protoKernel)),
			overlap("overlaps address 10.210.5.7/24 of eth1, which|such as 10.211.0.0/16")},
		{"a route behind a gateway", lan().plus(eth1(), RouteInfo{Dst: pfx("10.210.5.0/24"), Gateway: ipa("192.168.1.9"), Link: 2, Type: typeUnicast, Protocol: 4, Table: tableMain}),
			overlap("overlaps route 10.210.5.0/24 via 192.168.1.9 dev eth0 proto static metric 0")},
		{"a single host", lan().plus(eth1(), route("10.210.200.1/32", 2, 3)), overlap("route 10.210.200.1/32 dev eth0")},
		{"an address without a route", lan().plus(eth1("10.210.0.9/32")), overlap("address 10.210.0.9/32 of eth1")},
		{"a wide subnet of an interface", lan().plus(eth1("10.9.0.1/8"), route("10.0.0.0/8", 5, protoKernel)), overlap("address 10.9.0.1/8 of eth1, which")},
		{"another table", lan().plus(eth1(), RouteInfo{Dst: pfx("10.0.0.0/8"), Link: 5, Type: typeUnicast, Protocol: 3, Table: 52}), overlap("route 10.0.0.0/8 dev eth1 proto boot metric 0 table 52")},
		{"many", lan().plus(eth1(), route("10.210.1.0/24", 2, 4), route("10.210.2.0/24", 2, 4), route("10.210.3.0/24", 2, 4), route("10.210.4.0/24", 2, 4), route("10.210.5.0/24", 2, 4)),
			overlap("10.210.1.0/24|10.210.2.0/24|10.210.3.0/24 dev eth0 proto static metric 0 and 2 more, which")},
		{"an engine's network", lan().plus(LinkInfo{Index: 6, Name: "br-0123", Kind: "bridge", Addrs: addrs("10.210.128.1/24")}, route("10.210.128.0/24", 6, protoKernel)),
			overlap("address 10.210.128.1/24 of br-0123")},

		{"neighbours", lan().plus(eth1("10.209.255.1/16", "10.211.0.1/16"), route("10.209.0.0/16", 5, protoKernel), route("10.211.0.0/16", 5, protoKernel)), nil},
		{"halves of a default route", lan().plus(eth1(), route("0.0.0.0/1", 5, 3), route("128.0.0.0/1", 5, 3)), nil},
		{"our container network", lan().plus(bridge("10.210.1.1/24"), route("10.210.1.0/24", 6, protoKernel)), nil},
		{"our container network without an address yet", lan().plus(bridge()), nil},
		{"our routes over an interface of an older name", lan().plus(jiji0, route("10.210.2.0/24", 7, Protocol), route("fdcc:2::2/128", 7, Protocol)), nil},
		{"fail-closed routes, ours or by hand", lan().plus(eth1(), typed(route("10.210.0.0/16", 0, Protocol), 7), typed(route("10.0.0.0/8", 0, 4), 6), typed(route("fdcc::/16", 1, 4), 7)), nil},
		{"half deleted: the bridge has another gateway", lan().plus(bridge("10.210.1.254/24"), route("10.210.1.0/24", 6, protoKernel)), overlap("address 10.210.1.254/24 of jiji-br0")},
		{"half deleted: the bridge of another number", lan().plus(bridge("10.210.9.1/24"), route("10.210.9.0/24", 6, protoKernel)), overlap("address 10.210.9.1/24 of jiji-br0")},
		{"half deleted: the bridge is wider", lan().plus(bridge("10.210.1.1/16"), route("10.210.0.0/16", 6, protoKernel)), overlap("address 10.210.1.1/16 of jiji-br0")},
		{"half deleted: the bridge has one more", lan().plus(bridge("10.210.1.1/24", "10.210.7.1/24"), route("10.210.1.0/24", 6, protoKernel), route("10.210.7.0/24", 6, protoKernel)),
			overlap("overlaps address 10.210.7.1/24 of jiji-br0, which")},
		{"half deleted: our subnet on no bridge", lan().plus(eth1("10.210.1.1/24"), route("10.210.1.0/24", 5, protoKernel)), overlap("address 10.210.1.1/24 of eth1")},
		{"half deleted: a route of ours by another name", lan().plus(eth1(), route("10.210.3.0/24", 5, 3)), overlap("route 10.210.3.0/24 dev eth1 proto boot")},

		{"management addresses elsewhere", lan().plus(eth1("fdcc:1::1/64"), route("fdcc:1::/64", 5, protoKernel)),
			overlap("fdcc::/16, which holds the management addresses, overlaps address fdcc:1::1/64 of eth1, which is not ours")},
		{"a route for them", lan().plus(eth1(), route("fdcc::/16", 5, 4)), overlap("overlaps route fdcc::/16 dev eth1 proto static")},
		{"a wider route is none", lan().plus(eth1("fd00::5/8"), route("fd00::/8", 5, protoKernel), route("fc00::/7", 2, 4)), nil},
		{"both", lan().plus(eth1("10.210.5.7/24", "fdcc:1::1/64")), []finding{{KindOverlap, "10.210.5.7/24"}, {KindOverlap, "fdcc:1::1/64"}}},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, Check(c.facts, someWant), c.want...) })
	}
	t.Run("nothing known yet", func(t *testing.T) {
		f := lan().plus(eth1("10.210.5.7/24")).plus(bridge("10.210.1.1/24"))
		expect(t, Check(f, Want{Link: "jiji0"}))
		expect(t, Check(f, Want{Link: "jiji0", Cluster: pfx("10.210.0.0/16")}), finding{KindOverlap, "address 10.210.5.7/24 of eth1, address 10.210.1.1/24 of jiji-br0"})
	})
}

func TestFreeCluster(t *testing.T) {
	for _, c := range []struct{ used, want string }{
		{"", "10.210.0.0/16"},
		{"0.0.0.0/0 ::/0 0.0.0.0/1 2001:db8::/32 172.17.0.0/16", "10.210.0.0/16"},
		{"10.210.3.0/24", "10.211.0.0/16"},
		{"10.192.0.0/10", "10.1.0.0/16"},
		{"10.0.0.0/8", "172.16.0.0/16"},
		{"10.0.0.0/8 172.16.0.0/12", "100.64.0.0/16"},
		{"10.0.0.0/8 172.16.5.1/32 100.64.0.0/10", "172.17.0.0/16"},
		{"10.0.0.0/8 172.16.0.0/12 100.64.0.0/10", "invalid Prefix"},
	} {
		var used []netip.Prefix
		for _, u := range strings.Fields(c.used) {
			used = append(used, pfx(u))
		}
		if got := FreeCluster(used).String(); got != c.want {
			t.Errorf("FreeCluster(%s) = %s, want %s", c.used, got, c.want)
		}
	}
	f := lan().plus(LinkInfo{Index: 5, Name: "eth1"}, route("10.0.0.0/8", 5, 4), route("172.16.0.0/12", 5, 4), route("100.64.0.0/10", 5, 4))
	expect(t, Check(f, someWant), finding{KindOverlap, "such as one that nothing here uses"})
}

func TestIPv6Off(t *testing.T) {
	for _, c := range []struct{ all, fresh, want string }{
		{"0", "0", ""},
		{"1", "0", "net.ipv6.conf.all.disable_ipv6=1"},
		{"1", "1", "net.ipv6.conf.all.disable_ipv6=1"},
		{"0", "1", "net.ipv6.conf.default.disable_ipv6=1"},
		{"", "", "the kernel has none: /proc/sys/net/ipv6 is absent"},
	} {
		root := t.TempDir()
		for conf, value := range map[string]string{"all": c.all, "default": c.fresh} {
			if value == "" {
				continue
			}
			dir := filepath.Join(root, "proc/sys/net/ipv6/conf", conf)
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "disable_ipv6"), []byte(value+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if got := ipv6Off(root); got != c.want {
			t.Errorf("all %q, default %q: %q, want %q", c.all, c.fresh, got, c.want)
		}
	}
}
