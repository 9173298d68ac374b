package host

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ipa(s string) netip.Addr   { return netip.MustParseAddr(s) }

func TestDiff(t *testing.T) {
	links := []LinkInfo{{Index: 1, Name: "lo", Loopback: true}, {Index: 2, Name: "eth0"}, {Index: 5, Name: "jiji0"}}
	ours := func(dst string) RouteInfo {
		r := RouteInfo{Dst: pfx(dst), Link: 5, Type: typeUnicast, Protocol: Protocol, Table: tableMain}
		if r.Dst.Addr().Is6() {
			r.Metric = 1024
		}
		return r
	}
	with := func(r RouteInfo, f func(*RouteInfo)) RouteInfo { f(&r); return r }
	foreign := func(dst string, metric int) RouteInfo {
		return RouteInfo{Dst: pfx(dst), Link: 2, Gateway: ipa("192.168.1.1"), Type: typeUnicast, Protocol: 4, Table: tableMain, Metric: metric}
	}
	src := ipa("10.210.1.1")

	for _, c := range []struct {
		name   string
		have   []RouteInfo
		want   []Route
		steps  []string // verb and description
		faults string
	}{
		{name: "nothing", steps: nil},
		{name: "all there", have: []RouteInfo{ours("10.210.2.0/24"), ours("fdcc:2::2/128")}, want: []Route{{Dst: pfx("10.210.2.0/24")}, {Dst: pfx("fdcc:2::2/128")}}},
		{name: "missing", want: []Route{{Dst: pfx("10.210.2.0/24"), Src: src, MTU: 1300}},
			steps: []string{"add 10.210.2.0/24 dev jiji0 src 10.210.1.1 mtu 1300"}},
		{name: "adds before removes", have: []RouteInfo{ours("10.210.9.0/24")}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			steps: []string{"add 10.210.2.0/24 dev jiji0", "remove 10.210.9.0/24 dev jiji0"}},
		{name: "other source", have: []RouteInfo{with(ours("10.210.2.0/24"), func(r *RouteInfo) { r.Src = ipa("10.0.0.1") })}, want: []Route{{Dst: pfx("10.210.2.0/24"), Src: src}},
			steps: []string{"replace 10.210.2.0/24 dev jiji0 src 10.210.1.1"}},
		{name: "put there by hand", have: []RouteInfo{with(ours("10.210.2.0/24"), func(r *RouteInfo) { r.Protocol = 3 })}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			steps: []string{"replace 10.210.2.0/24 dev jiji0"}},
		{name: "other metric", have: []RouteInfo{with(ours("10.210.2.0/24"), func(r *RouteInfo) { r.Metric = 7 })}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			steps: []string{"add 10.210.2.0/24 dev jiji0", "remove 10.210.2.0/24 dev jiji0"}},
		{name: "strangers on our link stay", have: []RouteInfo{
			with(ours("10.99.0.0/16"), func(r *RouteInfo) { r.Protocol = 4 }),
			with(ours("fe80::/64"), func(r *RouteInfo) { r.Protocol = protoKernel; r.Metric = 256 }),
		}},
		{name: "ours elsewhere stay", have: []RouteInfo{
			with(ours("10.210.0.0/16"), func(r *RouteInfo) { r.Link = 0; r.Type = 7; r.Metric = 9999 }),
			with(ours("10.210.2.0/24"), func(r *RouteInfo) { r.Table = 77 }),
		}},
		{name: "foreign in the way", have: []RouteInfo{foreign("10.210.2.0/24", 0)}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			faults: "route 10.210.2.0/24 dev jiji0: a route that is not ours has this prefix: 10.210.2.0/24 via 192.168.1.1 dev eth0 proto static metric 0: take it away, or choose another cluster CIDR"},
		{name: "foreign in the way of a repair", want: []Route{{Dst: pfx("10.210.2.0/24")}},
			have:   []RouteInfo{foreign("10.210.2.0/24", 0), with(ours("10.210.2.0/24"), func(r *RouteInfo) { r.MTU = 1300 })},
			faults: "10.210.2.0/24 via 192.168.1.1 dev eth0"},
		{name: "foreign behind", have: []RouteInfo{foreign("10.210.2.0/24", 100)}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			steps: []string{"add 10.210.2.0/24 dev jiji0"}},
		{name: "foreign ahead", have: []RouteInfo{foreign("fdcc:2::2/128", 256)}, want: []Route{{Dst: pfx("fdcc:2::2/128")}},
			steps: []string{"add fdcc:2::2/128 dev jiji0"}, faults: "fdcc:2::2/128 via 192.168.1.1 dev eth0 proto static metric 256"},
		{name: "foreign wider or narrower", have: []RouteInfo{foreign("10.0.0.0/8", 0), foreign("10.210.2.128/25", 0)}, want: []Route{{Dst: pfx("10.210.2.0/24")}},
			steps: []string{"add 10.210.2.0/24 dev jiji0"}},
		{name: "host bits", want: []Route{{Dst: pfx("10.210.2.1/24")}, {Dst: pfx("10.210.3.0/24")}},
			steps: []string{"add 10.210.3.0/24 dev jiji0"}, faults: "route 10.210.2.1/24 dev jiji0: expected a prefix whose host bits are zero"},
		{name: "no prefix", want: []Route{{}}, faults: "expected a prefix"},
		{name: "twice", want: []Route{{Dst: pfx("10.210.2.0/24")}, {Dst: pfx("10.210.2.0/24"), MTU: 1300}},
			steps: []string{"add 10.210.2.0/24 dev jiji0"}, faults: "route 10.210.2.0/24 dev jiji0 is wanted twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := Network{Links: links, Routes: c.have}
			steps, _, err := diff(n, Wanted{Link: "jiji0", Routes: c.want})
			var got []string
			for _, s := range steps {
				got = append(got, s.verb.String()+" "+strings.TrimSuffix(n.describe(s.route), " metric 7"))
			}
			if !slices.Equal(got, c.steps) {
				t.Errorf("steps %q, want %q", got, c.steps)
			}
			switch {
			case err == nil && c.faults != "":
				t.Errorf("no error, want %s", c.faults)
			case err != nil && (c.faults == "" || !strings.Contains(err.Error(), c.faults)):
				t.Errorf("error %v, want %s", err, c.faults)
			}
		})
	}
}

func TestDiffClosed(t *testing.T) {
	n := Network{Links: []LinkInfo{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}, {Index: 3, Name: "jiji-br0"}, {Index: 5, Name: "jiji0"}}}
	closed := func(dst string, link int) RouteInfo { // the kernel says lo for IPv6
		return RouteInfo{Dst: pfx(dst), Link: link, Type: typeUnreachable, Protocol: Protocol, Table: tableMain, Metric: closedMetric}
	}
	older := closed("10.210.0.0/16", 0)
	older.Metric = 9999
	route := func(dst string, link, kind int) RouteInfo {
		return RouteInfo{Dst: pfx(dst), Link: link, Type: kind, Protocol: 4, Table: tableMain}
	}
	all := []RouteInfo{closed("10.210.0.0/16", 0), closed("fdcc::/16", 1)}
	const elsewhere = "is not ours and leads packets for the mesh out of it"
	for _, c := range []struct {
		name   string
		have   []RouteInfo
		steps  []string
		faults []string
	}{
		{name: "nothing there", steps: []string{"add unreachable 10.210.0.0/16", "add unreachable fdcc::/16"}},
		{name: "all there", have: all},
		{name: "one gone", have: all[:1], steps: []string{"add unreachable fdcc::/16"}},
		{name: "of an older version", have: []RouteInfo{older, all[1]}, steps: []string{"add unreachable 10.210.0.0/16", "remove unreachable 10.210.0.0/16"}},
		{name: "of another cluster stays", have: append(slices.Clone(all), closed("10.99.0.0/16", 0))},
		{name: "the same, not ours", have: append(slices.Clone(all), route("10.210.0.0/16", 0, typeUnreachable))},
		{name: "containers", have: append(slices.Clone(all), route("10.210.1.0/24", 3, typeUnicast), route("10.210.1.7/32", 3, typeUnicast))},
		{name: "wider", have: append(slices.Clone(all), route("10.0.0.0/8", 2, typeUnicast), route("0.0.0.0/0", 2, typeUnicast), route("::/0", 2, typeUnicast))},
		{name: "on the tunnel by hand", have: append(slices.Clone(all), route("10.210.8.0/24", 5, typeUnicast))},
		{name: "leads elsewhere", have: append(slices.Clone(all), route("10.210.128.0/17", 2, typeUnicast), route("fdcc::/16", 2, typeUnicast)),
			faults: []string{"route 10.210.128.0/17 dev eth0 proto static metric 0 " + elsewhere, "route fdcc::/16 dev eth0 proto static metric 0 " + elsewhere}},
		{name: "of a peer's subnet, which its own route says", have: append(slices.Clone(all), route("10.210.2.0/24", 2, typeUnicast))},
	} {
		for _, link := range []string{"jiji0", ""} {
			t.Run(c.name+" "+link, func(t *testing.T) {
				w := Wanted{Link: link, Closed: []netip.Prefix{pfx("10.210.0.0/16"), pfx("fdcc::/16")}, Subnet: pfx("10.210.1.0/24"), Routes: []Route{{Dst: pfx("10.210.2.0/24")}}}
				n.Routes = c.have
				steps, there, err := n.diffClosed(w)
				var got []string
				for _, s := range steps {
					got = append(got, s.verb.String()+" "+n.describe(s.route))
				}
				if !slices.Equal(got, c.steps) && (link != "" || c.name != "on the tunnel by hand") {
					t.Errorf("steps %q, want %q", got, c.steps)
				}
				adds := strings.Count(strings.Join(c.steps, " "), "add")
				if len(there)+adds != 2 {
					t.Errorf("there %v, want the %d others", there, 2-adds)
				}
				if err == nil && len(c.faults) > 0 {
					t.Errorf("no error, want %q", c.faults)
				}
				if err != nil && len(c.faults) == 0 && link != "" {
					t.Errorf("error %v", err)
				}
				for _, f := range c.faults {
					if err != nil && !strings.Contains(err.Error(), f) {
						t.Errorf("error %v, want %s", err, f)
					}
				}
			})
		}
	}
}
