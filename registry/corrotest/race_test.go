//go:build race

package corrotest

const raceEnabled = true // SQLite in Go is slow then
