//go:build linux

package main

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 171 0 0 0 250 75 0 0 20 0 1 0 12345 9000 200"
	for _, c := range []struct {
		name, stat string
		want       int64
		ok         bool
	}{
		{"plain", "42 (jiji-node)" + rest, 325, true},
		{"a command may look like the rest", "42 (a) S 1 (b)" + rest, 325, true},
		{"cut short", "42 (jiji-node) S 1 2", 0, false},
		{"no number", "42 (jiji-node)" + strings.Replace(rest, "250", "x", 1), 0, false},
		{"empty", "", 0, false},
	} {
		if got, err := parseStat([]byte(c.stat)); got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %d, %v, want %d", c.name, got, err, c.want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	const text = "Name:\tjiji-node\nVmPeak:\t  900 kB\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\nThreads:\t9\n"
	if got, err := parseStatus(text); err != nil || got != (memory{now: 1.024, peak: 2.048}) {
		t.Errorf("parseStatus: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "VmHWM:\t1 kB\n", "VmRSS:", strings.Replace(text, "1000 kB", "1 MB", 1), strings.Replace(text, "1000", "x", 1)} {
		if got, err := parseStatus(bad); err == nil {
			t.Errorf("parseStatus(%q) = %+v, want an error", bad, got)
		}
	}
}

func TestParseDnsperf(t *testing.T) {
	const out = `DNS Performance Testing Tool
Version 2.10.0

[Status] Sending queries (to 127.0.0.1:53)
> NOERROR name0000.jiji A 0.001172
> T name0001.jiji A
> NOERROR name0002.jiji A 0.000067
[Status] Testing complete (end of file)

Statistics:

  Queries sent:         3001
  Queries completed:    3000 (99.97%)
  Queries lost:         1 (0.03%)

  Response codes:       NOERROR 3000 (100.00%)
  Average packet size:  request 31, response 47
  Run time (s):         0.002451
  Queries per second:   1223.990208

  Average Latency (s):  0.000458 (min 0.000067, max 0.001172)
`
	want := dnsperfResult{answered: 3000, rate: 1223.990208, micros: []float64{1172, 67}}
	if got, err := parseDnsperf(out); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parseDnsperf: %+v, %v, want %+v", got, err, want)
	}
	for name, edit := range map[string][2]string{
		"other codes":   {"NOERROR 3000 (100.00%)", "NOERROR 2999 (99.97%), NXDOMAIN 1 (0.03%)"},
		"only others":   {"NOERROR 3000 (100.00%)", "REFUSED 3000 (100.00%)"},
		"many lost":     {"lost:         1 ", "lost:         4 "},
		"none answered": {"completed:    3000", "completed:    0"},
		"no number":     {"second:   1223.990208", "second:   many"},
		"cut short":     {out[strings.Index(out, "Statistics"):], ""},
	} {
		if got, err := parseDnsperf(strings.Replace(out, edit[0], edit[1], 1)); err == nil {
			t.Errorf("%s: %+v, want an error", name, got)
		}
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for i := range names {
		a, err := netip.ParseAddr(address(i))
		if err != nil || seen[name(i)] || seen[a.String()] {
			t.Fatalf("name %d is %s with address %s: %v, or they are not the first", i, name(i), address(i), err)
		}
		seen[name(i)], seen[a.String()] = true, true
	}
}

func TestOrder(t *testing.T) {
	s := &stage{}
	for n, want := range [][]side{{ours, theirs, scale}, {theirs, ours, scale}, {ours, theirs, scale}, {theirs, ours}} {
		if got := s.order(n, true); !slices.Equal(got, want) {
			t.Errorf("order of pair %d: %v, want %v", n, got, want)
		}
	}
	if got := s.order(0, false); !slices.Equal(got, []side{ours, theirs}) {
		t.Errorf("order without scale: %v", got)
	}
}

func TestStockSettings(t *testing.T) {
	key, err := wgkey.ParsePrivate("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
	if err != nil {
		t.Fatal(err)
	}
	peers := deadPeers(1)
	peers[0].Key = wgkey.Public{31: 0xff}
	want := `set=1
private_key=00` + strings.Repeat("01", 30) + `41
listen_port=51820
public_key=` + strings.Repeat("00", 31) + `ff
endpoint=198.18.0.1:51820
persistent_keepalive_interval=25
allowed_ip=10.210.1.0/24

`
	if got := stockSettings(key, peers); got != want {
		t.Errorf("settings:\n%s\nwant:\n%s", got, want)
	}
}

func TestCPUModel(t *testing.T) {
	for cpuinfo, want := range map[string]string{
		"processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nmodel name\t: other\n": "AMD EPYC",
		"processor\t: 0\nBogoMIPS\t: 50\n":                                            "unknown",
	} {
		if got := cpuModel(cpuinfo); got != want {
			t.Errorf("cpuModel(%q) = %q, want %q", cpuinfo, got, want)
		}
	}
}

func TestLiveHeap(t *testing.T) {
	const log = `time=2026-01-31T12:00:00Z level=INFO msg=ready
gc 1 @0.010s 2%: 0.02+1.1+0.01 ms clock, 0.05+0.1/0.9/0+0.02 ms cpu, 4->5->3 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P
gc 2 @2.5s 1%: 0.02+9.1+0.01 ms clock, 0.05+0.1/0.9/0+0.02 ms cpu, 90->95->50 MB, 100 MB goal, 0 MB stacks, 0 MB globals, 2 P (forced)
`
	if got, err := liveHeap(log); err != nil || got != 52.4288 {
		t.Errorf("live heap %v, %v, want 52.4288", got, err)
	}
	if got, err := liveHeap("nothing"); err == nil {
		t.Errorf("live heap of nothing is %v", got)
	}
}
