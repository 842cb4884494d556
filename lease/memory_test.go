package lease

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A process is collected twice after each burst, once it rests, and is left alone else.
func TestGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var total atomic.Uint64
		var freed atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			giveBack(ctx, total.Load, func() { freed.Add(1); total.Add(restBelow) })
		}()
		synctest.Wait()
		for i, step := range []struct {
			allocated uint64
			freed     int64
		}{
			{0, 0}, {restBelow, 0}, {restBelow + 1, 0}, {100 << 20, 0}, {restBelow, 1}, {0, 2}, {0, 2}, {restBelow, 2},
			{10 << 20, 2}, {0, 3}, {10 << 20, 3}, {0, 4}, {0, 5}, {0, 5},
		} {
			total.Add(step.allocated)
			time.Sleep(restEvery)
			synctest.Wait()
			if got := freed.Load(); got != step.freed {
				t.Fatalf("step %d: freed %d times, want %d", i, got, step.freed)
			}
		}
		cancel()
		<-done
	})
}
