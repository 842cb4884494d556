// Package facts states facts that must not get lost.
//
// Nobody asks runner whether a handler has exited: if that fact is lost, the
// engagement never ends. Stating goes on, through a bus that is away, until the
// stream has the fact or the bus is lost for good; then connector, the reader
// that counts, is dead, and runner undoes everything.
package facts

import (
	"context"
	"log/slog"
	"time"

	"berth.dev/bus/event"
)

// Bus is what a Stater needs of *bus.Conn, whose State tries again by itself.
type Bus interface {
	State(ctx context.Context, id string, d event.Data) error
}

// Stater states facts. It may be used concurrently.
type Stater struct {
	Bus Bus
	Log *slog.Logger
}

// patience is longer than it takes a bus to be lost.
const patience = time.Minute

// State returns when the stream has the fact, or when ctx has ended or the bus
// is lost, which is logged.
func (s Stater) State(ctx context.Context, id string, d event.Data) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.Bus.State(ctx, id, d); err != nil {
		s.Log.Error("a fact was not stated", "fact", event.TypeOf(d), "id", id, "err", err)
	}
}
