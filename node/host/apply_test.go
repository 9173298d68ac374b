package host

import (
	"net/netip"
	"os"
	"path/filepath"
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
			steps, err := diff(n, Wanted{Link: "jiji0", Routes: c.want})
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

func TestForward(t *testing.T) {
	write := func(root, name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(root, name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const live, redirects = "proc/sys/net/ipv4/ip_forward", "proc/sys/net/ipv4/conf/jiji0/send_redirects"

	root := t.TempDir()
	write(root, live, "0\n")
	write(root, redirects, "1\n")
	changes, err := forward(root, "jiji0")
	if err != nil || len(changes) != 3 {
		t.Errorf("changes %q, error %v", changes, err)
	}
	if read(root, live) != "1\n" || read(root, redirects) != "0\n" || read(root, sysctlFile) != sysctlText {
		t.Error("not all was written")
	}
	if changes, err := forward(root, "jiji0"); err != nil || len(changes) != 0 {
		t.Errorf("second time: changes %q, error %v", changes, err)
	}
	write(root, sysctlFile, "net.ipv4.ip_forward = 0\n")
	if changes, err := forward(root, "jiji0"); err != nil || len(changes) != 1 || read(root, sysctlFile) != sysctlText {
		t.Errorf("file changed: changes %q, error %v", changes, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(root, "etc/sysctl.d")); len(entries) != 1 {
		t.Errorf("left in sysctl.d: %v", entries)
	}
	if err := os.Remove(filepath.Join(root, redirects)); err != nil {
		t.Fatal(err)
	}
	if _, err := forward(root, "jiji0"); err == nil {
		t.Error("no error although the interface has no sysctls")
	}
}
