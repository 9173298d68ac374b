//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"
)

// A stage is where one part is measured: the lab's test.
type stage struct {
	ctx      context.Context
	part     string
	pairs    int
	against  []string // the programs and versions that were compared with
	failed   bool
	cleanups []func()
}

// play runs measure until it returns or fails, and then cleans up.
func (s *stage) play(measure func(*stage)) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { // also when Fatalf ends this goroutine
			for i := len(s.cleanups) - 1; i >= 0; i-- {
				s.cleanups[i]()
			}
		}()
		measure(s)
	}()
	<-ended
}

// order returns the sides in the order in which pair number n measures them: each one
// goes first in every other pair. What is for scale is measured in a few pairs only.
func (s *stage) order(n int, withScale bool) []side {
	order := []side{ours, theirs}
	if n%2 == 1 {
		order = []side{theirs, ours}
	}
	if withScale && n < scaleRounds {
		order = append(order, scale)
	}
	return order
}

const scaleRounds = 3

// say tells how far the part is.
func (s *stage) say(format string, args ...any) {
	s.alive()
	fmt.Fprintf(os.Stderr, "%s: %s\n", s.part, fmt.Sprintf(format, args...))
}

// sleep waits, unless there is a Ctrl-C.
func (s *stage) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
	s.alive()
}

// alive ends the part after Ctrl-C.
func (s *stage) alive() {
	if s.ctx.Err() != nil {
		s.Fatalf("interrupted")
	}
}

// check ends the part when err is not nil.
func (s *stage) check(doing string, err error) {
	if err != nil {
		s.Fatalf("%s: %v", doing, err)
	}
}

// What follows makes a stage a lab.TB. After Ctrl-C failures are its echo, and are
// not printed.

func (s *stage) Helper()                        {}
func (s *stage) Name() string                   { return "bench-" + s.part }
func (s *stage) Failed() bool                   { return s.failed && s.ctx.Err() == nil }
func (s *stage) Cleanup(f func())               { s.cleanups = append(s.cleanups, f) }
func (s *stage) Skipf(format string, a ...any)  { s.Fatalf(format, a...) }
func (s *stage) Logf(format string, a ...any)   { s.complain(format, a...) }
func (s *stage) Errorf(format string, a ...any) { s.failed = true; s.complain(format, a...) }
func (s *stage) Fatalf(format string, a ...any) { s.Errorf(format, a...); runtime.Goexit() }

func (s *stage) complain(format string, a ...any) {
	if s.ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", s.part, fmt.Sprintf(format, a...))
	}
}
