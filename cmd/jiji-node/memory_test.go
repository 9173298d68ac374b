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
	if before.wasteful(before) {
		t.Errorf("just given back, and still %+v", before)
	}
	held = make([]byte, size)
	for i := 0; i < size; i += 4096 {
		held[i] = 1
	}
	runtime.GC()
	if used := readHeap(); used.wasteful(used) {
		t.Errorf("what is in use counts as spare: %+v", used)
	}
	held = nil
	dropped := readHeap()
	runtime.GC()
	swept := readHeap()
	if !swept.wasteful(swept) {
		t.Errorf("256 MiB are not seen: %+v, and %+v after a collection", dropped, swept)
	}
	if swept.wasteful(dropped) {
		t.Error("it is quiet although a collection has just been")
	}
	debug.FreeOSMemory()
	if after := readHeap(); after.wasteful(after) {
		t.Errorf("still there: %+v", after)
	}
}
