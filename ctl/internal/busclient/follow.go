// Package busclient is what ctl does on the bus beyond asking: it follows facts
// until something has come true, and notices when the bus is lost meanwhile.
package busclient

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"

	"berth.dev/bus"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// NewID mints an id: prefix and 60 random bits, a token on the bus. The prefix
// tells people what it is of: c for connection, e engagement, i installation.
func NewID(prefix string) string {
	return prefix + strings.ToLower(rand.Text()[:12])
}

// ErrLost is the cause of a wait that ended because the bus is lost: the
// connector, in which it runs, is dead, or who it was reached through.
var ErrLost error = fault.New(fault.Unavailable, "ctl status", "the connector has not answered for %v: it was killed, or the Docker Engine was stopped or restarted", bus.GiveUp)

// WithBus is a context that ends when the bus is lost, with the cause ErrLost.
func WithBus(ctx context.Context, conn *bus.Conn) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-conn.Lost():
			cancel(ErrLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// Follow gives each fact to see, in order, until see says done. It returns see's
// error, ctx's cause, or the fault of a lost bus.
func Follow(ctx context.Context, conn *bus.Conn, tail *bus.Tail, see func(event.Envelope) (done bool, err error)) error {
	ctx, cancel := WithBus(ctx, conn)
	defer cancel()
	for {
		env, err := tail.Next(ctx)
		switch {
		case errors.Is(context.Cause(ctx), ErrLost):
			return ErrLost
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fault.New(fault.Unavailable, "ctl status", "%v", err)
		}
		if done, err := see(env); done || err != nil {
			return err
		}
	}
}

// Terminal follows facts until the terminal one and returns it; each is given to
// see first, which may be nil.
func Terminal(ctx context.Context, conn *bus.Conn, tail *bus.Tail, see func(event.Envelope)) (event.Envelope, error) {
	var last event.Envelope
	err := Follow(ctx, conn, tail, func(e event.Envelope) (bool, error) {
		if see != nil {
			see(e)
		}
		last = e
		return event.Terminal(e), nil
	})
	return last, err
}
