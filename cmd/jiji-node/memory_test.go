package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var held []byte

// What is not used any more is seen, and is given back.
func TestSpareMemory(t *testing.T) {
	const size = 256 << 20
	debug.FreeOSMemory()
	before := readHeap()
	kept := before.live
	if before.wasteful(before, kept) {
		t.Errorf("just given back, and still %+v", before)
	}
	held = make([]byte, size)
	for i := 0; i < size; i += 4096 {
		held[i] = 1
	}
	runtime.GC()
	used := readHeap()
	if used.wasteful(used, used.live) {
		t.Errorf("what is in use, as after the latest trim, counts as spare: %+v", used)
	}
	if !used.wasteful(used, kept) {
		t.Errorf("what is in use since the latest trim is not looked at once more: %+v, %d then", used, kept)
	}
	held = nil
	dropped := readHeap()
	runtime.GC()
	swept := readHeap()
	if !swept.wasteful(swept, kept) {
		t.Errorf("256 MiB are not seen: %+v, and %+v after a collection", dropped, swept)
	}
	if swept.wasteful(dropped, kept) {
		t.Error("it is quiet although a collection has just been")
	}
	debug.FreeOSMemory()
	if after := readHeap(); after.wasteful(after, kept) {
		t.Errorf("still there: %+v", after)
	}
}
