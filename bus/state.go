package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// State states a fact about id and returns when the stream has it on disk. It
// goes on trying while the bus is away, for 15 s if ctx has no deadline; the
// stream drops what arrives twice.
func (c *Conn) State(ctx context.Context, id string, d event.Data) error {
	subj, env, err := event.New(id, d)
	if err != nil {
		return err
	}
	body, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("marshal envelope of %s: %w", env.Type, err)
	}
	msg := nats.NewMsg(subj)
	msg.Data = body
	if err := c.store(ctx, EventsStream, msg, env.ID); err != nil {
		return fmt.Errorf("state %s: %w", env.Type, err)
	}
	return nil
}

// store publishes msg into the stream until it is acknowledged. msgID makes
// repeats harmless.
func (c *Conn) store(ctx context.Context, stream string, msg *nats.Msg, msgID string) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, GiveUp+5*time.Second)
		defer cancel()
	}
	for {
		err := c.storeOnce(ctx, stream, msg, msgID)
		var refused *fault.Error
		var api *jetstream.APIError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused), errors.As(err, &api) && api.Code < 500,
			errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject):
			return err // trying again cannot help
		}
		select {
		case <-c.lost:
			return fault.New(fault.Unavailable, "ctl status", "the bus is lost")
		case <-ctx.Done():
			return fmt.Errorf("%w (last attempt: %v)", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// storeOnce gives up when the connection was made anew: the message or its
// acknowledgement went down with the old one.
func (c *Conn) storeOnce(ctx context.Context, stream string, msg *nats.Msg, msgID string) error {
	epoch := c.currentEpoch()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer context.AfterFunc(epoch, cancel)()
	ctx, done := c.watchRefusal(ctx, msg.Subject)
	defer done()
	_, err := c.JS.PublishMsg(ctx, msg, jetstream.WithMsgID(msgID), jetstream.WithExpectStream(stream))
	return refusedOr(ctx, err)
}
