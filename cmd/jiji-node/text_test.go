package main

import (
	"testing"
	"time"
)

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

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0:             "0 B",
		1023:          "1023 B",
		1024:          "1.0 KiB",
		1536:          "1.5 KiB",
		1<<20 - 1:     "1.0 MiB",
		1 << 20:       "1.0 MiB",
		5 << 30:       "5.0 GiB",
		1 << 40:       "1.0 TiB",
		3000 << 40:    "3000.0 TiB",
		1<<64 - 1:     "16777216.0 TiB",
		100*1024 + 52: "100.1 KiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
