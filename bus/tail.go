package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go/jetstream"
)

// Tail is an ordered reader of facts: it sees each, once, in the order in which
// they were stated, from where it began, and survives a reconnect.
type Tail struct {
	iter jetstream.MessagesContext
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
	oc := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy}
	if !since.IsZero() {
		oc.DeliverPolicy, oc.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	cons, err := c.JS.OrderedConsumer(ctx, EventsStream, oc)
	if err != nil {
		return nil, fmt.Errorf("tail facts: %w", err)
	}
	info := cons.CachedInfo()
	it, err := cons.Messages()
	if err != nil {
		return nil, fmt.Errorf("tail facts: %w", err)
	}
	t := &Tail{iter: it}
	if info != nil {
		t.Pending = info.NumPending
	}
	return t, nil
}

// Next waits for the next fact. It returns ctx's error when ctx ends, and
// another error when the bus is lost.
func (t *Tail) Next(ctx context.Context) (event.Envelope, error) {
	var env event.Envelope
	msg, err := t.iter.Next(jetstream.NextContext(ctx))
	if err != nil {
		return env, fmt.Errorf("read the next fact: %w", err)
	}
	if md, err := msg.Metadata(); err == nil {
		t.Pending = md.NumPending
	}
	if err := json.Unmarshal(msg.Data(), &env); err != nil {
		return env, fmt.Errorf("read fact on %s: %w", msg.Subject(), err)
	}
	return env, nil
}

// Stop ends the tail.
func (t *Tail) Stop() { t.iter.Stop() }
