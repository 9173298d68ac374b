package node

import (
	"testing"
	"time"
)

func setOf(ids ...string) map[string]bool {
	m := map[string]bool{}
	for _, id := range ids {
		m[id] = true
	}
	return m
}

// All servers' agents work but those that are named as broken, and find none but
// those that ours sees.
func TestReunion(t *testing.T) {
	for _, tt := range []struct {
		name             string
		self             string
		up, sees, broken map[string]bool
		want             []int // seconds after the peers came up at which the agent is started again, or a little later
	}{
		{"all are seen", "c", setOf("a", "b"), setOf("a", "b"), nil, nil},
		{"alone, and not the first", "c", setOf("a", "b"), nil, nil, []int{4, 24, 64}},
		{"alone, and the first", "a", setOf("b", "c"), nil, nil, []int{8, 28, 68}},
		{"beside the first", "c", setOf("a", "b"), setOf("a"), nil, nil},
		{"of the first's side", "a", setOf("b", "c", "d"), setOf("b"), nil, nil},
		{"first of the other side", "c", setOf("a", "b", "d"), setOf("d"), nil, []int{12, 32, 72}},
		{"second of it", "d", setOf("a", "b", "c"), setOf("c"), nil, []int{16, 36, 76}},
		{"fourth of it", "f", setOf("a", "b", "c", "d", "e"), setOf("c", "d", "e"), nil, nil},
		{"the first's agent is broken", "c", setOf("a", "b"), nil, setOf("a"), []int{4, 24, 64}},
		{"many agents are broken", "z", setOf("a", "b", "c", "d", "e", "f", "g", "h", "i"), nil, setOf("a", "b", "c", "d", "e", "f", "g", "h"), []int{7, 27, 67}},
		{"all agents are broken", "c", setOf("a", "b"), nil, setOf("a", "b"), nil},
		{"nobody is up", "c", nil, nil, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r reunion
			var got []int
			looks, asks := 0, 0
			ask := func(peers []string) map[string]bool {
				asks += len(peers)
				works := map[string]bool{}
				for _, id := range peers {
					works[id] = !tt.broken[id]
				}
				return works
			}
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			for i := range 3600 {
				now := start.Add(time.Duration(i) * time.Second)
				if !r.note(tt.up, now) {
					continue
				}
				looks++
				if r.decide(tt.self, tt.sees, ask, now) != "" {
					got = append(got, i)
				}
			}
			if len(got) != len(tt.want) {
				t.Fatalf("started again after %v s, want %v", got, tt.want)
			}
			for i := range got {
				if d := got[i] - tt.want[i]; d < 0 || d > 20*i {
					t.Errorf("started again after %v s, want %v", got, tt.want)
				}
			}
			if looks > 60 || asks > 200 {
				t.Errorf("our agent was asked %d times, %d peers were", looks, asks)
			}
		})
	}
}

// A session that ends and comes back is looked at again.
func TestReunionOfASecondPartition(t *testing.T) {
	var r reunion
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	both, none := setOf("a"), setOf()
	var got []int
	for i := range 40 {
		up := both
		if i >= 20 && i < 25 {
			up = none
		}
		now := start.Add(time.Duration(i) * time.Second)
		if !r.note(up, now) {
			continue
		}
		sees := none
		if i > 6 && i < 20 || i > 31 {
			sees = both
		}
		if r.decide("b", sees, func(peers []string) map[string]bool { return setOf(peers...) }, now) != "" {
			got = append(got, i)
		}
	}
	if len(got) != 2 || got[0] > 6 || got[1] < 25 || got[1] > 31 {
		t.Errorf("started again after %v s, want within 6 s of each time that a came up", got)
	}
}
