package host

import (
	"slices"
	"testing"
	"time"
)

func TestFights(t *testing.T) {
	var f Fights
	now := time.Now()
	for i := range 3 * fightRepairs { // slowly, that is no fight
		if r := f.Repaired("slow", "slow", now.Add(time.Duration(i)*fightWindow/(fightRepairs-1))); r != Repair {
			t.Fatalf("repair %d: %v", i, r)
		}
	}
	var got []Reason
	for range fightRepairs + 1 {
		got = append(got, f.Repaired("x", "x was gone", now))
	}
	want := append(slices.Repeat([]Reason{Repair}, fightRepairs-1), FightBegins, Fighting)
	if !slices.Equal(got, want) {
		t.Errorf("reasons %v, want %v", got, want)
	}
	if !f.Fought("x") || f.Fought("slow") || f.Fought("y") {
		t.Error("fights over other things")
	}
	if over := f.End(now.Add(fightWindow - 1)); len(over) != 0 || len(f.Warnings()) != 1 {
		t.Errorf("over too early: %q", over)
	}
	if over := f.End(now.Add(fightWindow)); !slices.Equal(over, []string{"x was gone"}) || f.Fought("x") || len(f.Warnings()) != 0 {
		t.Errorf("over %q", over)
	}
}
