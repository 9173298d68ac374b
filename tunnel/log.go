package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// quiet is for how long an error of the device is not logged again. Some of its
// errors come with every packet, such as those of a network that is away.
const quiet = 10 * time.Second

// deviceLog makes the device log to log. The device never logs its private key.
func deviceLog(log *slog.Logger) *device.Logger {
	errors := limiter{last: make(map[string]*logged)}
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if log.Enabled(context.Background(), slog.LevelDebug) {
				log.Debug("wireguard", "detail", fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			if now, suppressed := errors.allow(format, time.Now()); now {
				log.Error("wireguard", "detail", fmt.Sprintf(format, args...), "suppressed", suppressed)
			}
		},
	}
}

// A limiter lets each kind of message through once in a while.
type limiter struct {
	mu   sync.Mutex         // guards last and what it leads to
	last map[string]*logged // by format, of which the device has a few dozen
}

type logged struct {
	at         time.Time
	suppressed int // since at
}

// allow reports whether to log a message at now, and how many of its kind were
// not logged since the one before.
func (l *limiter) allow(format string, now time.Time) (ok bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.last[format]
	if e == nil {
		l.last[format] = &logged{at: now}
		return true, 0
	}
	if now.Sub(e.at) < quiet {
		e.suppressed++
		return false, 0
	}
	suppressed = e.suppressed
	*e = logged{at: now}
	return true, suppressed
}
