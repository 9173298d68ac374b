package host

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestEveryLine has a case for each line that Check can report, of each kind, and
// each case triggers that line and nothing else.
func TestEveryLine(t *testing.T) {
	with := func(change func(*Facts)) Facts { f := lan(); change(&f); return f }
	without := func(capability int) Facts {
		return with(func(f *Facts) { f.Capabilities &^= 1 << capability })
	}
	tun := func(errno syscall.Errno) Facts {
		return with(func(f *Facts) { f.TUN = &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: errno} })
	}
	link := func(l LinkInfo) Facts { l.Index = 7; return lan().plus(l) }
	units := func(u ...Unit) Facts { return with(func(f *Facts) { f.Units = u }) }
	bind := func(f Facts, err error, sockets ...Socket) Facts {
		f.Binds = []Bind{
			{"udp", netip.MustParseAddrPort("10.210.1.1:53"), err},
			{"tcp", netip.MustParseAddrPort("10.210.1.1:53"), nil},
		}
		f.Sockets = sockets
		return f
	}
	engines := func(n ...EngineNetwork) Facts { return with(func(f *Facts) { f.Engines = n }) }
	const other = "jiji-node (pid 77, jiji-node.service)"
	cases := []struct {
		name  string
		facts Facts
		want  finding
	}{
		{"no NET_ADMIN", without(capNetAdmin), finding{KindPrivilege, "capability CAP_NET_ADMIN is missing, expected for setting up jiji0|--cap-add NET_ADMIN"}},
		{"no NET_RAW", without(capNetRaw), finding{KindPrivilege, "degraded|capability CAP_NET_RAW is missing, expected for `jiji-node ping`|--cap-add NET_RAW"}},
		{"no NET_BIND_SERVICE", bind(without(capNetBindService), syscall.EACCES), finding{KindPrivilege, "capability CAP_NET_BIND_SERVICE is missing, expected for listening on port 53/udp on 10.210.1.1: |--cap-add NET_BIND_SERVICE|from 1024 up"}},
		{"TUN forbidden", tun(syscall.EPERM), finding{KindTUN, "open /dev/net/tun: operation not permitted|--device /dev/net/tun"}},
		{"TUN absent", tun(syscall.ENOENT), finding{KindTUN, "`modprobe tun`"}},

		{"another node", with(func(f *Facts) {
			*f = bind(f.plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "tuntap", Addrs: addrs("10.210.0.1/32", "fdcc::1/128")}), syscall.EADDRINUSE,
				Socket{Proto: "udp", Local: netip.MustParseAddrPort("10.210.1.1:53"), Inode: 7, Owner: other})
			f.TUNOwners, f.SocketOwner = map[string]string{"jiji0": other}, other
		}), finding{KindNode, other + " is another node on this machine and holds control socket /run/jiji/node.sock, interface jiji0, port 53/udp on 10.210.1.1, expected none"}},

		{"wg-quick", units(Unit{Name: "wg-quick@jiji0.service", Active: true, Enabled: true}), finding{KindUnit, "unit wg-quick@jiji0.service is active, expected stopped: it owns interface jiji0: run `systemctl disable --now wg-quick@jiji0.service`"}},
		{"a unit that is harmless", units(Unit{Name: "jiji-corrosion.service", Active: true, Enabled: true}), finding{KindUnit, "degraded|unit jiji-corrosion.service is active beside this node|run `systemctl disable --now jiji-corrosion.service`"}},
		{"a unit that will come", units(Unit{Name: "jiji-dns.service", Enabled: true}), finding{KindUnit, "degraded|unit jiji-dns.service is enabled, expected disabled|run `systemctl disable --now jiji-dns.service`"}},

		{"kernel WireGuard", link(LinkInfo{Name: "jiji0", Kind: "wireguard"}), finding{KindInterface, "interface jiji0 exists already, as a kernel WireGuard interface"}},
		{"somebody's TUN", with(func(f *Facts) {
			*f = f.plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "tuntap"})
			f.TUNOwners = map[string]string{"jiji0": "openvpn (pid 5)"}
		}), finding{KindInterface, "as a TUN device of openvpn (pid 5)"}},
		{"nobody's TUN", link(LinkInfo{Name: "jiji0", Kind: "tuntap"}), finding{KindInterface, "unknown process or of none"}},
		{"a bridge of that name", link(LinkInfo{Name: "jiji0", Kind: "bridge"}), finding{KindInterface, "of type bridge"}},

		{"port taken", bind(lan(), syscall.EADDRINUSE, Socket{Proto: "udp", Local: netip.MustParseAddrPort("0.0.0.0:53"), Inode: 7, Owner: "dnsmasq (pid 8)"}),
			finding{KindPort, "port 53/udp on 10.210.1.1 is taken by dnsmasq (pid 8) (0.0.0.0:53)"}},
		{"port forbidden", bind(lan(), syscall.EACCES), finding{KindPort, "port 53/udp on 10.210.1.1 cannot be listened on though"}},

		{"a route in the cluster", lan().plus(LinkInfo{Index: 5, Name: "eth1"}, route("10.0.0.0/8", 5, 4)), finding{KindOverlap, "cluster CIDR 10.210.0.0/16 overlaps route 10.0.0.0/8 dev eth1|such as 172.16.0.0/16"}},
		{"an engine's network in the cluster", engines(EngineNetwork{"podman", "shop", pfx("10.210.5.0/24")}), finding{KindOverlap, "cluster CIDR 10.210.0.0/16 overlaps podman network \"shop\" (10.210.5.0/24), which is not ours|`podman network rm shop`|such as 10.211.0.0/16"}},
		{"an address among the management addresses", link(LinkInfo{Name: "eth1", Kind: "device", Addrs: addrs("fdcc:1::1/64")}), finding{KindOverlap, "fdcc::/16, which holds the management addresses, overlaps address fdcc:1::1/64 of eth1"}},

		{"rp_filter", with(func(f *Facts) {
			*f = f.plus(LinkInfo{Index: 5, Name: "eth1", Kind: "device", Up: true, DefaultRoute: true, Addrs: addrs("198.51.100.5/24")}, metric(route("0.0.0.0/0", 5, 3), 200))
			f.RPFilter["eth1"] = 1
		}), finding{KindRPFilter, "degraded|net.ipv4.conf.eth1.rp_filter=1 (strict), expected 2 (loose) or 0 for uplink eth1|way back leaves by eth0|run `sysctl -w net.ipv4.conf.eth1.rp_filter=2`"}},
		{"no IPv6", with(func(f *Facts) { f.IPv6Off = "net.ipv6.conf.all.disable_ipv6=1" }), finding{KindIPv6, "degraded|IPv6 is off (net.ipv6.conf.all.disable_ipv6=1)"}},
	}

	kinds, lines := linesOfCheck(t)
	w := someWant
	w.Socket = "/run/jiji/node.sock"
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := Check(c.facts, w)
			expect(t, got, c.want)
			for _, p := range got {
				delete(kinds, string(p.Kind))
				maps.DeleteFunc(lines, func(format string, pattern *regexp.Regexp) bool { return pattern.MatchString(p.Text) })
			}
		})
	}
	for kind := range kinds {
		t.Errorf("no case for kind %s", kind)
	}
	for format := range lines {
		t.Errorf("no case for %q", format)
	}
}

func metric(r RouteInfo, m int) RouteInfo { r.Metric = m; return r }

// linesOfCheck reads the source for all kinds and for the formats of all lines.
func linesOfCheck(t *testing.T) (kinds map[string]bool, lines map[string]*regexp.Regexp) {
	t.Helper()
	kinds, lines = map[string]bool{}, map[string]*regexp.Regexp{}
	files, err := filepath.Glob("preflight*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if id, ok := n.Type.(*ast.Ident); ok && id.Name == "Kind" {
					kinds[literal(t, n.Values[0])] = true
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "refuse" || f.Sel.Name == "warn") {
					format := literal(t, n.Args[1])
					pattern := regexp.MustCompile(`%[a-z]`).ReplaceAllString(regexp.QuoteMeta(format), ".*")
					lines[format] = regexp.MustCompile("^" + pattern + "$")
				}
			}
			return true
		})
	}
	if len(kinds) < 9 || len(lines) < 18 {
		t.Fatalf("found %d kinds and %d lines: the source is not as this test reads it", len(kinds), len(lines))
	}
	return kinds, lines
}

func literal(t *testing.T, e ast.Expr) string {
	t.Helper()
	l, ok := e.(*ast.BasicLit)
	if !ok {
		t.Fatalf("want a string literal, so that this test can read it: %#v", e)
	}
	text, err := strconv.Unquote(l.Value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Every unit that may be active or enabled is named with its command.
func TestCheckUnits(t *testing.T) {
	names := rivalUnits("mesh0")
	for _, name := range []string{"wg-quick@mesh0", "jiji-peer-monitor", "jiji-control-loop", "jiji-corrosion", "jiji-coredns", "jiji-dns", "jiji-daemon"} {
		if !slices.Contains(names, name+".service") {
			t.Errorf("%s is no rival", name)
		}
	}
	w := Want{Link: "mesh0"}
	for _, name := range names {
		f := lan()
		f.Units = []Unit{{Name: name, Active: true}}
		severity := ""
		if name == "jiji-corrosion.service" {
			severity = "degraded|"
		}
		expect(t, Check(f, w), finding{KindUnit, severity + "unit " + name + " is active|run `systemctl disable --now " + name + "`"})
		f.Units = []Unit{{Name: name, Enabled: true}}
		if severity == "" {
			expect(t, Check(f, w), finding{KindUnit, "degraded|unit " + name + " is enabled|run `systemctl disable --now " + name + "`"})
		} else {
			expect(t, Check(f, w))
		}
	}

	// What a unit holds is ended by its command, too.
	kernel := Socket{Proto: "udp", Local: netip.MustParseAddrPort("0.0.0.0:51820")}
	for _, c := range []struct {
		name  string
		unit  string
		link  LinkInfo
		owner string // of the TUN device and of the ports
		want  []finding
	}{
		{"wg-quick in the kernel", "wg-quick@jiji0.service", LinkInfo{Kind: "wireguard"}, "", nil},
		{"wg-quick in a process", "wg-quick@jiji0.service", LinkInfo{Kind: "tuntap"}, "wireguard-go (pid 7, wg-quick@jiji0.service)", nil},
		{"resolver", "jiji-dns.service", LinkInfo{Kind: "tuntap"}, "jiji-dns (pid 7, jiji-dns.service)", nil},
		{"a unit that holds nothing of it", "jiji-daemon.service", LinkInfo{Kind: "tuntap"}, "wireguard-go (pid 7)",
			[]finding{{KindInterface, "wireguard-go (pid 7)"}, {KindPort, "51820/udp is taken by wireguard-go (pid 7)"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.link.Index, c.link.Name = 7, "jiji0"
			f := lan().plus(c.link)
			f.Units = []Unit{{Name: c.unit, Active: true, Enabled: true}}
			f.Binds = []Bind{{"udp", kernel.Local, syscall.EADDRINUSE}, {"udp", netip.MustParseAddrPort("[::]:51820"), syscall.EADDRINUSE}}
			f.Sockets = []Socket{kernel}
			if c.owner != "" {
				f.TUNOwners = map[string]string{"jiji0": c.owner}
				f.Sockets[0].Owner, f.Sockets[0].Inode = c.owner, 7
			}
			expect(t, Check(f, someWant), append([]finding{{KindUnit, "unit " + c.unit + " is active"}}, c.want...)...)
		})
	}
}

func TestCheckNodes(t *testing.T) {
	const one, two = "jiji-node (pid 77, jiji-node.service)", "jiji-node (pid 78)"
	jiji1 := LinkInfo{Index: 7, Name: "jiji1", Kind: "tuntap", Addrs: addrs("10.210.0.1/32", "fdcc::1/128")}
	listen := Bind{"udp", netip.MustParseAddrPort("0.0.0.0:51820"), syscall.EADDRINUSE}
	listen6 := Bind{"udp", netip.MustParseAddrPort("[::]:51820"), syscall.EADDRINUSE}
	held := func(owner string) Socket {
		return Socket{Proto: "udp", Local: listen.Local, Inode: 7, Owner: owner}
	}
	for _, c := range []struct {
		name   string
		change func(*Facts)
		own    bool // want.Own is one's
		want   []finding
	}{
		{"by its control socket alone", func(f *Facts) { f.SocketOwner = "a process (pid 77)" }, false,
			[]finding{{KindNode, "a process (pid 77) is another node on this machine and holds control socket /run/jiji/node.sock, expected none"}}},
		{"by its interface of another name", func(f *Facts) {
			*f = f.plus(jiji1)
			f.TUNOwners = map[string]string{"jiji1": one}
		}, false, []finding{{KindNode, one + " is another node on this machine and holds interface jiji1, expected"}}},
		{"by its port", func(f *Facts) { f.Binds, f.Sockets = []Bind{listen, listen6}, []Socket{held(one)} }, false,
			[]finding{{KindNode, one + " is another node on this machine and holds port 51820/udp, expected"}}},
		{"two", func(f *Facts) {
			f.SocketOwner, f.Binds, f.Sockets = one, []Bind{listen}, []Socket{held(two)}
		}, false, []finding{{KindNode, one + " is another node on this machine and holds control socket"}, {KindNode, two + " is another node on this machine and holds port 51820/udp"}}},
		{"beside another's port", func(f *Facts) {
			f.SocketOwner, f.Binds, f.Sockets = one, []Bind{listen}, []Socket{held("wg (pid 5)")}
		}, false, []finding{{KindNode, one}, {KindPort, "wg (pid 5)"}}},
		{"this very one", func(f *Facts) {
			*f = f.plus(LinkInfo{Index: 7, Name: "jiji0", Kind: "tuntap", Addrs: jiji1.Addrs}, RouteInfo{Dst: pfx("10.210.2.0/24"), Link: 7, Type: typeUnicast, Protocol: Protocol, Table: tableMain})
			f.TUNOwners, f.SocketOwner = map[string]string{"jiji0": one}, one
			f.Binds, f.Sockets = []Bind{listen, listen6}, []Socket{held(one)}
		}, true, nil},
		{"this very one, and another", func(f *Facts) {
			*f = f.plus(jiji1)
			f.TUNOwners, f.SocketOwner = map[string]string{"jiji1": two}, one
		}, true, []finding{{KindNode, two + " is another node on this machine and holds interface jiji1"}}},
		{"no node: another program's interface in the mesh", func(f *Facts) {
			*f = f.plus(LinkInfo{Index: 7, Name: "vpn0", Kind: "tuntap", Addrs: addrs("10.210.0.1/32")})
			f.TUNOwners = map[string]string{"vpn0": "openvpn (pid 5)"}
		}, false, []finding{{KindOverlap, "address 10.210.0.1/32 of vpn0"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, w := lan(), someWant
			c.change(&f)
			w.Socket = "/run/jiji/node.sock"
			if c.own {
				f.Own = one
			}
			expect(t, Check(f, w), c.want...)
		})
	}
}

func TestCheckEngines(t *testing.T) {
	network := func(name, subnet string) EngineNetwork { return EngineNetwork{"docker", name, pfx(subnet)} }
	bridge := LinkInfo{Index: 6, Name: "br-0123", Kind: "bridge", Addrs: addrs("10.210.5.1/24")}
	ours := LinkInfo{Index: 6, Name: "jiji-br0", Kind: "bridge", Addrs: addrs("10.210.1.1/24")}
	for _, c := range []struct {
		name     string
		links    []LinkInfo
		networks []EngineNetwork
		want     []finding
	}{
		{"elsewhere", nil, []EngineNetwork{network("bridge", "172.17.0.0/16"), network("six", "fd00:5::/64")}, nil},
		{"ours without its bridge", nil, []EngineNetwork{network("jiji-mesh", "10.210.1.0/24"), network("jiji", "10.210.1.0/24")}, nil},
		{"ours under another name, with its bridge", []LinkInfo{ours}, []EngineNetwork{network("mine", "10.210.1.0/24")}, nil},
		{"our subnet under another name", nil, []EngineNetwork{network("mine", "10.210.1.0/24")}, []finding{{KindOverlap, "docker network \"mine\" (10.210.1.0/24)|`docker network rm mine`"}}},
		{"our name with another subnet", nil, []EngineNetwork{network("jiji", "10.210.129.0/24")}, []finding{{KindOverlap, "docker network \"jiji\" (10.210.129.0/24)|`docker network rm jiji`"}}},
		{"wider than the cluster", nil, []EngineNetwork{network("wide", "10.0.0.0/8")}, []finding{{KindOverlap, "docker network \"wide\" (10.0.0.0/8)|such as 172.16.0.0/16"}}},
		{"with its bridge here, named once", []LinkInfo{bridge}, []EngineNetwork{network("shop", "10.210.5.0/24")},
			[]finding{{KindOverlap, "overlaps address 10.210.5.1/24 of br-0123, which is docker network \"shop\" (10.210.5.0/24), which is not ours|(`docker network rm shop`)"}}},
		{"two", nil, []EngineNetwork{network("a", "10.210.5.0/24"), network("b", "10.210.6.0/24")}, []finding{{KindOverlap, "\"a\" (10.210.5.0/24), docker network \"b\"|(`docker network rm a; docker network rm b`)"}}},
		{"management addresses", nil, []EngineNetwork{network("six", "fdcc:5::/64")}, []finding{{KindOverlap, "fdcc::/16|docker network \"six\" (fdcc:5::/64)"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := lan()
			f.Links, f.Engines = append(f.Links, c.links...), c.networks
			expect(t, Check(f, someWant), c.want...)
		})
	}
}

func TestCheckRPFilter(t *testing.T) {
	uplink := func(name string, index int) LinkInfo {
		return LinkInfo{Index: index, Name: name, Kind: "device", Up: true, DefaultRoute: true, Addrs: addrs("198.51.100.5/24")}
	}
	two := func(rp map[string]int) Facts {
		f := lan().plus(uplink("eth1", 5), metric(route("0.0.0.0/0", 5, 3), 200))
		f.RPFilter = rp
		return f
	}
	for _, c := range []struct {
		name  string
		facts Facts
		want  []finding
	}{
		{"one uplink", func() Facts { f := lan(); f.RPFilter = map[string]int{"all": 1, "default": 1, "eth0": 1}; return f }(), nil},
		{"off", two(map[string]int{"all": 0, "eth0": 0, "eth1": 0}), nil},
		{"not known", two(nil), nil},
		{"strict on all", two(map[string]int{"all": 1, "eth1": 0}), []finding{{KindRPFilter, "degraded|net.ipv4.conf.all.rp_filter=1 (strict), expected 2 (loose) or 0 for uplink eth1|run `sysctl -w net.ipv4.conf.eth1.rp_filter=2`"}}},
		{"strict on all, loose on it", two(map[string]int{"all": 1, "eth1": 2}), nil},
		{"loose on all", two(map[string]int{"all": 2, "eth1": 1}), nil},
		{"strict on the preferred one", two(map[string]int{"all": 0, "eth0": 1, "eth1": 0}), nil},
		{"both preferred", func() Facts {
			f := lan().plus(uplink("eth1", 5), route("0.0.0.0/0", 5, 3))
			f.RPFilter = map[string]int{"all": 1}
			return f
		}(), nil},
		{"preferred by one of its two routes", func() Facts {
			f := two(map[string]int{"all": 1})
			f.Routes = append(f.Routes, route("0.0.0.0/0", 5, 3))
			return f
		}(), nil},
		{"without a default route", func() Facts {
			f := lan().plus(LinkInfo{Index: 5, Name: "eth1", Kind: "device", Up: true, Addrs: addrs("198.51.100.5/24")}, route("198.51.100.0/24", 5, protoKernel))
			f.RPFilter = map[string]int{"all": 1}
			return f
		}(), nil},
		{"IPv6 has none", func() Facts {
			f := lan().plus(uplink("eth1", 5), metric(route("::/0", 5, 3), 200))
			f.RPFilter = map[string]int{"all": 1}
			return f
		}(), nil},
		{"a VLAN", func() Facts {
			f := lan().plus(uplink("eth0.7", 5), metric(route("0.0.0.0/0", 5, 3), 200))
			f.RPFilter = map[string]int{"eth0.7": 1}
			return f
		}(), []finding{{KindRPFilter, "degraded|net.ipv4.conf.eth0/7.rp_filter=1|`sysctl -w net.ipv4.conf.eth0/7.rp_filter=2`"}}},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, Check(c.facts, someWant), c.want...) })
	}
}
