// Package presence notices that the holder of a presence subject is gone (see
// subject.Live): ctl that was killed, a runner that died.
//
// It acts on proofs only. "No responders" from the bus proves that nobody holds
// the subject; two such proofs in a row, a probe apart, are asked for, since a
// holder that reconnects has no subscription for a moment. A holder that is
// stopped (SIGSTOP, a suspended laptop) does not answer, which proves nothing.
package presence

import (
	"context"
	"time"

	"berth.dev/bus/subject"
)

// How often a holder is probed: one that something waits for, and one that lives as
// long as everything else does, which is most of what the bus has to do at rest. The
// second proof is asked for after Every in either case.
const (
	Every  = time.Second
	Seldom = 4 * time.Second
)

// ID is that of the services of which a workspace has one.
const ID = "default"

// Runner and Connector are the presence subjects of the two.
var (
	Runner    = subject.Live(subject.Runner, ID)
	Connector = subject.Live(subject.Connector, ID)
)

// proofs in a row that are taken for the truth.
const proofs = 2

// Prober asks once; *bus.Conn is one.
type Prober interface {
	Gone(ctx context.Context, live string) bool
}

// Watch probes live each period and returns true when its holder is proven to be
// gone, or false when ctx ends before.
func Watch(ctx context.Context, p Prober, live string, period time.Duration) bool {
	next := time.NewTimer(period)
	defer next.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return false
		case <-next.C:
		}
		probe, cancel := context.WithTimeout(ctx, Every)
		gone := p.Gone(probe, live)
		cancel()
		switch {
		case ctx.Err() != nil:
			return false
		case !gone:
			n = 0
			next.Reset(period)
		case n+1 == proofs:
			return true
		default:
			n++
			next.Reset(Every)
		}
	}
}
