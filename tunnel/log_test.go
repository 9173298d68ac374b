package tunnel

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l := limiter{last: make(map[string]*logged)}
	now := time.Now()
	for _, tt := range []struct {
		format     string
		after      time.Duration
		ok         bool
		suppressed int
	}{
		{"a", 0, true, 0},
		{"b", 0, true, 0},
		{"a", 1, false, 0},
		{"a", quiet - 2, false, 0},
		{"a", 1, true, 2},
		{"a", quiet, true, 0},
	} {
		now = now.Add(tt.after)
		if ok, suppressed := l.allow(tt.format, now); ok != tt.ok || suppressed != tt.suppressed {
			t.Errorf("%s %v later: %v, %d; want %v, %d", tt.format, tt.after, ok, suppressed, tt.ok, tt.suppressed)
		}
	}
}
