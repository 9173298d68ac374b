package host

import (
	"context"
	"time"
)

// settle is how long Watch gathers events before it reports them: what adds
// one interface makes a dozen.
const settle = 100 * time.Millisecond

// Coalesce calls changed once for all events that come within 100 ms of the
// first, until ctx is done.
func Coalesce(ctx context.Context, events <-chan struct{}, changed func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select { // what came meanwhile is part of this one
		case <-events:
		default:
		}
		changed()
	}
}
