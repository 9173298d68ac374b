package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// gcPercent keeps the heap small: WireGuard makes a piece of garbage for each
// received packet, beside buffers that live for ever and would let it grow.
const gcPercent = 30

const (
	trimEvery = 5 * time.Second
	trimLeast = 16 << 20 // bytes; less is not worth a collection
)

// saveMemory has the garbage collector run early, unless GOGC says when, and gives
// back to the system what the node does not use any more, until ctx is done. The Go
// runtime collects only as the heap grows, and keeps what it may need again: what
// the list of a large cluster took to read would stay for minutes.
func saveMemory(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	go func() {
		tick := time.NewTicker(trimEvery)
		defer tick.Stop()
		var last heap
		var kept uint64 // in use after the latest trim
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := readHeap()
			if now.wasteful(last, kept) {
				debug.FreeOSMemory()
				now = readHeap()
				kept = now.live
			}
			last = now
		}
	}()
}

// A heap is the state of the Go runtime's.
type heap struct {
	cycles uint64 // collections so far
	live   uint64 // bytes that the latest one found in use
	spare  uint64 // bytes that were made since, or that the system has not got back
}

// wasteful reports whether it was quiet since last, and much of it is spare, or may
// be: what a collection in the middle of some work found in use, more than the kept
// bytes before that, is mostly not used after it, and no other collection may come soon.
func (h heap) wasteful(last heap, kept uint64) bool {
	return h.cycles == last.cycles && (h.spare > max(trimLeast, h.live/4) || h.live > kept+max(trimLeast/2, kept/8))
}

func readHeap() heap {
	m := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(m)
	value := func(i int) uint64 { return m[i].Value.Uint64() }
	h := heap{cycles: value(0), live: value(1), spare: value(3)}
	if made := value(2); made > h.live {
		h.spare += made - h.live
	}
	return h
}
