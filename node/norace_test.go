//go:build !race

package node

const raceBuilt = false
