//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// A side is one of what is compared.
type side int

const (
	ours   side = iota
	theirs      // what the bars are set against
	scale       // measured a few times only, to show what the machine can do
	sides
)

// A Part is one table.
type Part struct {
	Name    string
	Sides   [sides]string // what each one is; empty: there is none
	Notes   []string      // how it was measured, one sentence each
	Figures []*Figure
}

// A Figure is one row: the same measured on each side, once in each pair.
type Figure struct {
	Name    string
	Unit    string
	Digits  int // after the decimal point
	Bar     Bar
	Samples [sides][]float64
}

// add makes another row.
func (p *Part) add(name, unit string, digits int, bar Bar) *Figure {
	f := &Figure{Name: name, Unit: unit, Digits: digits, Bar: bar}
	p.Figures = append(p.Figures, f)
	return f
}

func (f *Figure) record(s side, v float64) { f.Samples[s] = append(f.Samples[s], v) }

// ratio is ours to theirs.
func (f *Figure) ratio() (r Interval, ok bool) {
	return ratio(f.Samples[ours], f.Samples[theirs])
}

// A Bar is what must not get worse. The zero value is none.
type Bar struct {
	Limit    float64 // of the ratio, or of our own mean
	Absolute bool    // our own mean
	Most     bool    // Limit is the most, not the least
}

func ratioAtLeast(limit float64) Bar { return Bar{Limit: limit} }
func ratioAtMost(limit float64) Bar  { return Bar{Limit: limit, Most: true} }
func atMost(limit float64) Bar       { return Bar{Limit: limit, Absolute: true, Most: true} }

// A Verdict says whether a bar is met by what was measured.
type Verdict int

const (
	NoBar Verdict = iota
	Met
	NotMet
)

// judge compares the bar with the end of the 95 % interval that is nearer to it, so
// that luck does not meet it. It returns that end.
func (f *Figure) judge() (Verdict, float64) {
	if f.Bar == (Bar{}) {
		return NoBar, 0
	}
	var i Interval
	switch {
	case !f.Bar.Absolute:
		var ok bool
		if i, ok = f.ratio(); !ok {
			return NotMet, math.NaN()
		}
	case len(f.Samples[ours]) > 0:
		i = mean(f.Samples[ours])
	default:
		return NotMet, math.NaN()
	}
	if f.Bar.Most && i.High <= f.Bar.Limit {
		return Met, i.High
	} else if f.Bar.Most {
		return NotMet, i.High
	}
	if i.Low >= f.Bar.Limit {
		return Met, i.Low
	}
	return NotMet, i.Low
}

// bar returns the bar as it is read in the table.
func (f *Figure) bar() string {
	sign := "≥"
	if f.Bar.Most {
		sign = "≤"
	}
	switch {
	case f.Bar == (Bar{}):
		return ""
	case f.Bar.Absolute:
		return fmt.Sprintf("%s %v %s", sign, f.Bar.Limit, f.Unit)
	}
	return fmt.Sprintf("ratio %s %v", sign, f.Bar.Limit)
}

// table returns the part as a table in Markdown that is also aligned as plain text.
func (p *Part) table() string {
	head := []string{"figure", p.Sides[ours], p.Sides[theirs], "ratio", "95 % interval", "bar", "met"}
	if p.Sides[scale] != "" {
		head = slices.Insert(head, 3, p.Sides[scale])
	}
	rows := [][]string{head}
	for _, f := range p.Figures {
		row := []string{f.Name + ", " + f.Unit, f.cell(ours), f.cell(theirs)}
		if p.Sides[scale] != "" {
			row = append(row, f.cell(scale))
		}
		between, interval := "", ""
		if r, ok := f.ratio(); ok {
			between = fmt.Sprintf("%.2f", r.Mean)
			interval = fmt.Sprintf("%.2f-%.2f", r.Low, r.High)
			if len(f.Samples[ours]) < 2 {
				interval = "one pair"
			}
		}
		met := ""
		switch verdict, end := f.judge(); verdict {
		case Met:
			met = "yes: " + f.end(end)
		case NotMet:
			met = "**no**: " + f.end(end)
		}
		rows = append(rows, append(row, between, interval, f.bar(), met))
	}
	return align(rows)
}

// cell returns what one side reached: the median and the range.
func (f *Figure) cell(s side) string {
	v := f.Samples[s]
	if len(v) == 0 {
		return ""
	}
	number := func(x float64) string { return fmt.Sprintf("%.*f", f.Digits, x) }
	least, most := number(slices.Min(v)), number(slices.Max(v))
	if least == most {
		return least
	}
	return fmt.Sprintf("%s (%s-%s)", number(median(v)), least, most)
}

// end returns the end of an interval that a bar was compared with.
func (f *Figure) end(v float64) string {
	switch {
	case math.IsNaN(v):
		return "not measured"
	case math.IsInf(v, 0) || v == 0 && !f.Bar.Most:
		return "too few pairs"
	case f.Bar.Absolute:
		return fmt.Sprintf("%.*f", f.Digits, v)
	}
	return fmt.Sprintf("%.2f", v)
}

// align returns rows, the first of which is the head, as a table in Markdown.
func align(rows [][]string) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(&b, "| %-*s ", widths[i], cell)
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// MarshalJSON writes the samples of each side by its name, and what follows from them.
func (p *Part) MarshalJSON() ([]byte, error) {
	type figure struct {
		Name    string               `json:"name"`
		Unit    string               `json:"unit"`
		Samples map[string][]float64 `json:"samples"`
		Ratio   *Interval            `json:"ratio,omitempty"` // geometric, with the 95 % interval
		Bar     string               `json:"bar,omitempty"`
		Met     *bool                `json:"met,omitempty"`
	}
	part := struct {
		Name    string   `json:"name"`
		Notes   []string `json:"notes"`
		Figures []figure `json:"figures"`
	}{Name: p.Name, Notes: p.Notes}
	for _, f := range p.Figures {
		row := figure{Name: f.Name, Unit: f.Unit, Samples: make(map[string][]float64), Bar: f.bar()}
		for s, name := range p.Sides {
			if name != "" && len(f.Samples[s]) > 0 {
				row.Samples[name] = f.Samples[s]
			}
		}
		if r, ok := f.ratio(); ok && len(f.Samples[ours]) > 1 {
			row.Ratio = &r
		}
		if verdict, _ := f.judge(); verdict != NoBar {
			met := verdict == Met
			row.Met = &met
		}
		part.Figures = append(part.Figures, row)
	}
	return json.Marshal(part)
}
