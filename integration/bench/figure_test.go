//go:build linux

package main

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
)

func figureOf(bar Bar, mine, other []float64) *Figure {
	return &Figure{Name: "n", Unit: "u", Digits: 1, Bar: bar, Samples: [sides][]float64{ours: mine, theirs: other}}
}

func TestJudge(t *testing.T) {
	steady := []float64{2, 2.02, 1.98}
	wild := []float64{1, 4, 2}
	one := []float64{1, 1, 1}
	for _, c := range []struct {
		name string
		f    *Figure
		want Verdict
	}{
		{"no bar", figureOf(Bar{}, steady, one), NoBar},
		{"lower end above", figureOf(ratioAtLeast(1.9), steady, one), Met},
		{"mean above, lower end below", figureOf(ratioAtLeast(1.9), wild, one), NotMet},
		{"upper end below", figureOf(ratioAtMost(2.1), steady, one), Met},
		{"mean below, upper end above", figureOf(ratioAtMost(2.1), wild, one), NotMet},
		{"own mean", figureOf(atMost(2.1), steady, nil), Met},
		{"own mean, upper end above", figureOf(atMost(2.1), wild, nil), NotMet},
		{"own mean may be zero", figureOf(atMost(2), []float64{0, 0}, nil), Met},
		{"one pair shows nothing", figureOf(ratioAtLeast(1), []float64{9}, []float64{1}), NotMet},
		{"not measured", figureOf(atMost(1), nil, nil), NotMet},
		{"half measured", figureOf(ratioAtLeast(1), steady, nil), NotMet},
	} {
		if got, _ := c.f.judge(); got != c.want {
			t.Errorf("%s: verdict %v, want %v", c.name, got, c.want)
		}
	}
	if _, end := figureOf(atMost(1), nil, nil).judge(); !math.IsNaN(end) {
		t.Errorf("end of what was not measured = %v, want none", end)
	}
}

func TestTable(t *testing.T) {
	p := &Part{Name: "p", Sides: [sides]string{"a", "b", "c"}}
	f := p.add("speed", "m/s", 1, ratioAtLeast(1.5))
	for _, v := range []float64{2, 4, 6} {
		f.record(ours, v)
		f.record(theirs, v/2)
	}
	f.record(scale, 9)
	p.add("size", "MB", 0, atMost(3)).record(ours, 4)
	want := `
| figure     | a             | b             | c   | ratio | 95 % interval | bar         | met                   |
|------------|---------------|---------------|-----|-------|---------------|-------------|-----------------------|
| speed, m/s | 4.0 (2.0-6.0) | 2.0 (1.0-3.0) | 9.0 | 2.00  | 2.00-2.00     | ratio ≥ 1.5 | yes: 2.00             |
| size, MB   | 4             |               |     |       |               | ≤ 3 MB      | **no**: too few pairs |
`
	if got := p.table(); got != strings.TrimPrefix(want, "\n") {
		t.Errorf("table:\n%s\nwant:%s", got, want)
	}
	met, missed := bars([]*Part{p})
	if line := "size: too few pairs, want ≤ 3 MB"; met != 1 || !slices.Equal(missed, []string{line}) {
		t.Errorf("bars: %d met, missed %q, want 1 and %q", met, missed, line)
	}
}

func TestJSON(t *testing.T) {
	p := &Part{Name: "p", Sides: [sides]string{"a", "b", ""}}
	f := p.add("speed", "m/s", 1, ratioAtLeast(1.5))
	f.record(ours, 2)
	f.record(theirs, 1) // one pair: its interval is infinite, which JSON cannot say
	text, err := json.Marshal(p)
	want := `{"name":"p","notes":null,"figures":[{"name":"speed","unit":"m/s","samples":{"a":[2],"b":[1]},"bar":"ratio ≥ 1.5","met":false}]}`
	if err != nil || string(text) != want {
		t.Errorf("JSON: %s, %v\nwant: %s", text, err, want)
	}
}
