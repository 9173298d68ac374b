package corrotest

import (
	"net/http"
	"time"
)

// A listener is one open stream. Its fields are guarded by the agent's mutex.
type listener struct {
	queue [][]byte
	wake  chan struct{} // has room for one
	end   bool          // end the body cleanly once queue is sent
	abort bool          // break the connection then instead
	stall bool          // send nothing
	skip  int           // events to swallow
	last  []byte        // the last event
}

func newListener() *listener { return &listener{wake: make(chan struct{}, 1)} }

func (l *listener) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// send queues an event. When too many wait, the stream ends as the agent ends
// it: cleanly, after those that fitted.
func (l *listener) send(line []byte, ring int) {
	switch {
	case l.end || l.abort:
		return
	case l.skip > 0:
		l.skip--
		return
	case len(l.queue) >= ring:
		l.end = true
	default:
		l.queue = append(l.queue, line)
		l.last = line
	}
	l.signal()
}

// forward writes what is queued on l until it ends or the client is gone.
func (a *Agent) forward(w http.ResponseWriter, r *http.Request, l *listener) {
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	for {
		a.mu.Lock()
		queue, end, abort := l.queue, l.end, l.abort
		if l.stall {
			queue, end, abort = nil, false, false
		} else {
			l.queue = nil
		}
		down := a.down
		a.mu.Unlock()
		for _, line := range queue {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
		if len(queue) > 0 && rc.Flush() != nil {
			return
		}
		switch {
		case abort:
			panic(http.ErrAbortHandler)
		case end:
			return
		}
		select {
		case <-l.wake:
			if a.cfg.Coalesce > 0 {
				time.Sleep(flushDelay)
			}
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-down:
			// Stop and Kill have marked the streams they know; this one was
			// attached while they did.
			a.mu.Lock()
			l.abort = l.abort || !l.end
			l.stall = false
			a.mu.Unlock()
		}
	}
}
