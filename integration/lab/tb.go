package lab

import (
	"time"
)

// A TB is what the lab needs of a test. A *testing.T is one.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Eventually calls try until it returns nil. When that has not happened within
// timeout it ends the test, with the name of what was waited for and the last error.
func Eventually(tb TB, timeout time.Duration, what string, try func() error) {
	tb.Helper()
	start := time.Now()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		left := timeout - time.Since(start)
		if left <= 0 {
			tb.Fatalf("%s: not within %v: %v", what, timeout, err)
			return
		}
		time.Sleep(min(pause, left))
	}
}
