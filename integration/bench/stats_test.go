//go:build linux

package main

import (
	"math"
	"testing"
)

func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-3*max(1, math.Abs(b)) // a == b: infinities
}

func (i Interval) near(o Interval) bool {
	return near(i.Mean, o.Mean) && near(i.Low, o.Low) && near(i.High, o.High)
}

func TestMean(t *testing.T) {
	for _, c := range []struct {
		name    string
		samples []float64
		want    Interval
	}{
		{"one sample says nothing of the spread", []float64{5}, Interval{5, math.Inf(-1), math.Inf(1)}},
		{"no spread", []float64{2, 2, 2}, Interval{2, 2, 2}},
		{"three: 2 +- 4.303 * 1/sqrt(3)", []float64{1, 2, 3}, Interval{2, -0.4843, 4.4843}},
		{"nine: 5 +- 2.306 * sqrt(7.5)/3", []float64{9, 1, 8, 2, 7, 3, 6, 4, 5}, Interval{5, 2.8949, 7.1051}},
	} {
		if got := mean(c.samples); !got.near(c.want) {
			t.Errorf("%s: mean(%v) = %v, want %v", c.name, c.samples, got, c.want)
		}
	}
}

func TestRatio(t *testing.T) {
	for _, c := range []struct {
		name         string
		ours, theirs []float64
		want         Interval
		ok           bool
	}{
		{"constant factor, whatever the level", []float64{2, 20, 200}, []float64{1, 10, 100}, Interval{2, 2, 2}, true},
		{"twice and half are level", []float64{2, 1, 1}, []float64{1, 2, 1}, Interval{1, 0.1787, 5.5969}, true},
		{"three: exp(0.18 +- 4.303 * 0.08355/sqrt(3))", []float64{1.1, 1.2, 1.3}, []float64{1, 1, 1}, Interval{1.1972, 0.9728, 1.4734}, true},
		{"nothing measured", nil, nil, Interval{}, false},
		{"incomplete pair", []float64{1, 2}, []float64{1}, Interval{}, false},
		{"zero has no logarithm", []float64{1, 0}, []float64{1, 1}, Interval{}, false},
	} {
		got, ok := ratio(c.ours, c.theirs)
		if ok != c.ok || !got.near(c.want) {
			t.Errorf("%s: ratio(%v, %v) = %v, %v, want %v, %v", c.name, c.ours, c.theirs, got, ok, c.want, c.ok)
		}
	}
}

func TestStudentT(t *testing.T) {
	for freedom, want := range map[int]float64{1: 12.706, 8: 2.306, 30: 2.042, 1000: 2.042} {
		if got := studentT(freedom); got != want {
			t.Errorf("studentT(%d) = %v, want %v", freedom, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100) // 100, 99, ... 1
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		samples []float64
		q, want float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.99, 7},
		{[]float64{7}, 0, 7},
		{hundred, 0, 1},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := quantile(c.samples, c.q); got != c.want {
			t.Errorf("quantile of %d samples at %v = %v, want %v", len(c.samples), c.q, got, c.want)
		}
	}
	for _, c := range []struct {
		samples []float64
		want    float64
	}{
		{nil, 0},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.samples); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.samples, got, c.want)
		}
	}
}
