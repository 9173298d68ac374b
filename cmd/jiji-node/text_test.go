package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/control"
)

func TestQueryLine(t *testing.T) {
	upstream := netip.MustParseAddrPort("192.0.2.53:53")
	at := time.Date(2026, 1, 31, 12, 0, 0, 5e6, time.Local)
	client := netip.MustParseAddrPort("10.210.0.10:40000")
	for want, q := range map[string]control.SeenQuery{
		"12:00:00.005  10.210.0.10:40000/udp  api.jiji. A  NOERROR, 2 answers, 90 bytes in 41µs, mesh\n": {
			At: at, Client: client, Proto: "udp", Name: "api.jiji.", Type: "A", Rcode: "NOERROR", Answers: 2, Size: 90, Took: control.Duration(41234), Source: "mesh",
		},
		"12:00:00.005  10.210.0.10:40000/tcp  - A  SERVFAIL, 0 answers, 12 bytes in 2s, forwarded by 192.0.2.53:53, cached, stale, truncated, timeout\n": {
			At: at, Client: client, Proto: "tcp", Type: "A", Rcode: "SERVFAIL", Size: 12, Took: control.Duration(2 * time.Second), Source: "forwarded",
			Upstream: &upstream, Cached: true, Stale: true, Truncated: true, Error: "timeout",
		},
	} {
		if got := queryLine(q); got != want {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Minute:            "now", // a clock that was set back
		0:                       "now",
		999 * time.Millisecond:  "now",
		time.Second:             "1s ago",
		119 * time.Second:       "119s ago",
		2 * time.Minute:         "2m ago",
		2*time.Hour - 1:         "119m ago",
		2 * time.Hour:           "2h ago",
		48*time.Hour - 1:        "47h ago",
		48 * time.Hour:          "2d ago",
		400 * 24 * time.Hour:    "400d ago",
		59*time.Second + 999999: "59s ago",
	} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("%v before now: %q, want %q", d, got, want)
		}
	}
	if got := ago(time.Time{}, now); got != "never" {
		t.Errorf("no time: %q, want never", got)
	}
}
