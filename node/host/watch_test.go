package host

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := make(chan struct{}, 1)
		start, calls := time.Now(), []time.Duration(nil)
		go Coalesce(ctx, events, func() { calls = append(calls, time.Since(start)) })

		for range 10 { // a burst of 90 ms
			select {
			case events <- struct{}{}:
			default:
			}
			time.Sleep(9 * time.Millisecond)
		}
		time.Sleep(time.Second)
		events <- struct{}{} // and one alone
		time.Sleep(time.Second)
		synctest.Wait()
		want := []time.Duration{settle, 1090*time.Millisecond + settle}
		if len(calls) != 2 || calls[0] != want[0] || calls[1] != want[1] {
			t.Errorf("called after %v, want %v", calls, want)
		}
	})
}
