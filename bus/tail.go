package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

// Tail is an ordered reader of facts: it sees each, once, in the order in which
// they were stated, from where it began, and survives a reconnect and a restart
// of the server. One goroutine reads it; any may stop it.
type Tail struct {
	r *reader
	// Pending is how many facts of the stream were still to come when the last
	// one was read; 0 means that history has been replayed.
	Pending uint64
}

// TailFacts opens a tail over the subjects (default: all facts) that begins at
// since; the zero time is the beginning of the stream. The tail stands when
// TailFacts returns: a command sent afterwards cannot outrun it.
func (c *Conn) TailFacts(ctx context.Context, since time.Time, subjects ...string) (*Tail, error) {
	if len(subjects) == 0 {
		subjects = []string{subject.AllFacts}
	}
	r, err := c.read(ctx, EventsStream, since, subjects)
	if err != nil {
		return nil, fmt.Errorf("tail facts: %w", err)
	}
	return &Tail{r: r, Pending: r.pending}, nil
}

// Next waits for the next fact. It returns ctx's error when ctx ends, ErrStopped
// after Stop, and an Unavailable fault when the bus is lost. Only the last is
// for good: after ctx's error, Next may be called again and misses nothing.
func (t *Tail) Next(ctx context.Context) (event.Envelope, error) {
	var env event.Envelope
	msg, err := t.r.next(ctx)
	if err != nil {
		return env, fmt.Errorf("read the next fact: %w", err)
	}
	t.Pending = t.r.pending
	if err := json.Unmarshal(msg.Data(), &env); err != nil {
		return env, fmt.Errorf("read fact on %s: %w", msg.Subject(), err)
	}
	return env, nil
}

// Stop ends the tail, and a Next that waits.
func (t *Tail) Stop() { t.r.stop() }
