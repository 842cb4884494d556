package lease

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// restEvery is how often GiveBack looks.
	restEvery = 15 * time.Second
	// restBelow is what a process that rests allocates in that time at most:
	// pings, look-ups, a few requests.
	restBelow = 4 << 20
	// restTwice: what lies in a pool survives the first collection.
	restTwice = 2
)

// GiveBack returns the memory that a burst of traffic took to the kernel, once it is
// over, until ctx ends. By itself the runtime would not even collect it for two
// minutes, nor what lies in pools for four, and then give it back over minutes more.
func GiveBack(ctx context.Context) {
	m := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	giveBack(ctx, func() uint64 { metrics.Read(m); return m[0].Value.Uint64() }, debug.FreeOSMemory)
}

func giveBack(ctx context.Context, allocated func() uint64, free func()) {
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	due, last := 0, allocated()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := allocated()
		switch quiet := now-last <= restBelow; {
		case !quiet:
			due = restTwice
		case due > 0:
			free()
			due--
		}
		last = allocated() // what collecting took does not count
	}
}
