package bus

import (
	"context"
	"fmt"
	"time"

	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go/jetstream"
)

// What the streams may hold. Facts are small: 256 MiB are some 400,000 of them.
const (
	EventsMaxBytes = 256 << 20
	EventsMaxAge   = 7 * 24 * time.Hour
	OutputMaxBytes = 64 << 20
	OutputMaxAge   = 24 * time.Hour
	DedupWindow    = 2 * time.Minute
)

// EnsureStreams creates the streams EVENTS and OUTPUT or brings them up to
// date; repeating it is harmless. The embedded server calls it when it starts;
// connector calls it on a server of the user's own.
func EnsureStreams(ctx context.Context, js jetstream.JetStream) error {
	for _, c := range []jetstream.StreamConfig{
		{
			Name: EventsStream, Description: "Berth: facts", Subjects: []string{subject.AllFacts},
			MaxBytes: EventsMaxBytes, MaxAge: EventsMaxAge, MaxMsgSize: 256 << 10,
		},
		{
			Name: OutputStream, Description: "Berth: output of containers", Subjects: []string{subject.AllOutput},
			MaxBytes: OutputMaxBytes, MaxAge: OutputMaxAge, MaxMsgSize: 64 << 10,
		},
	} {
		c.Storage = jetstream.FileStorage
		c.Discard = jetstream.DiscardOld
		c.Duplicates = DedupWindow
		// Facts are history: nobody, whatever their rights, takes one out.
		c.DenyDelete = true
		if _, err := js.CreateOrUpdateStream(ctx, c); err != nil {
			return fmt.Errorf("create stream %s: %w", c.Name, err)
		}
	}
	return nil
}
