//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

// What follows makes a stage a lab.TB. After Ctrl-C failures are its echo, and
// are not printed.

func (s *stage) Helper()                        {}
func (s *stage) Name() string                   { return "demo" }
func (s *stage) Failed() bool                   { return s.failed && s.ctx.Err() == nil }
func (s *stage) Cleanup(f func())               { s.cleanups = append(s.cleanups, f) }
func (s *stage) Skipf(format string, a ...any)  { s.Fatalf(format, a...) }
func (s *stage) Logf(format string, a ...any)   { s.complain(format, a...) }
func (s *stage) Errorf(format string, a ...any) { s.failed = true; s.complain(format, a...) }
func (s *stage) Fatalf(format string, a ...any) { s.Errorf(format, a...); runtime.Goexit() }

func (s *stage) complain(format string, a ...any) {
	if s.ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "demo: "+format+"\n", a...)
	}
}
