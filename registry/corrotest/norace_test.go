//go:build !race

package corrotest

const raceEnabled = false
