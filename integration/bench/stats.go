//go:build linux

package main

import (
	"math"
	"slices"
)

// An Interval is a mean and the ends of its 95 % confidence interval. The ends are
// infinite where one sample has to do.
type Interval struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// mean estimates the arithmetic mean that samples are drawn around, by Student's t.
func mean(samples []float64) Interval {
	n := float64(len(samples))
	sum := 0.0
	for _, v := range samples {
		sum += v
	}
	m := sum / n
	if len(samples) < 2 {
		return Interval{m, math.Inf(-1), math.Inf(1)}
	}
	squares := 0.0
	for _, v := range samples {
		squares += (v - m) * (v - m)
	}
	half := studentT(len(samples)-1) * math.Sqrt(squares/(n-1)/n)
	return Interval{m, m - half, m + half}
}

// ratio estimates how many times ours is theirs from pairs that were measured one
// after the other: the geometric mean of the pairs' ratios, with the t-interval of
// their logarithms, so that 2 and 1/2 weigh the same. ok is false when a pair is
// incomplete, or not positive.
func ratio(ours, theirs []float64) (r Interval, ok bool) {
	if len(ours) == 0 || len(ours) != len(theirs) {
		return Interval{}, false
	}
	logs := make([]float64, len(ours))
	for i := range ours {
		if ours[i] <= 0 || theirs[i] <= 0 {
			return Interval{}, false
		}
		logs[i] = math.Log(ours[i] / theirs[i])
	}
	m := mean(logs)
	return Interval{math.Exp(m.Mean), math.Exp(m.Low), math.Exp(m.High)}, true
}

// studentT returns the 0.975 quantile of Student's distribution, which leaves 5 % on
// both sides together.
func studentT(freedom int) float64 {
	table := []float64{
		12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
		2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
		2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
	}
	return table[min(freedom, len(table))-1] // beyond the table its last is a little too wide
}

// quantile returns the value that a share q of samples does not exceed; 0 of none.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}
