package bus

import (
	"context"
	"errors"
	"strings"

	"berth.dev/bus/fault"

	"github.com/nats-io/nats.go"
)

// refusal waits for the server to say that a subject may not be touched. NATS
// says so asynchronously and leaves the caller to run into its time-out; with
// this the caller hears at once, and hears the reason.
type refusal struct {
	subject string
	cancel  context.CancelCauseFunc
}

// watchRefusal derives a context that ends, with a PermissionDenied fault as its
// cause, when the server refuses the subject.
func (c *Conn) watchRefusal(ctx context.Context, subject string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &refusal{subject: subject, cancel: cancel}
	c.mu.Lock()
	c.refused[r] = struct{}{}
	c.mu.Unlock()
	return ctx, func() {
		c.mu.Lock()
		delete(c.refused, r)
		c.mu.Unlock()
		cancel(nil)
	}
}

// onError hears of the server's asynchronous errors. The refused subject stands
// in quotes in the text, and nowhere else.
func (c *Conn) onError(err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return // slow consumers: tails notice the gap themselves
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.refused {
		if strings.Contains(err.Error(), `"`+r.subject+`"`) {
			r.cancel(c.denied(r.subject))
		}
	}
}

func (c *Conn) denied(subject string) *fault.Error {
	return fault.New(fault.PermissionDenied, "", "the identity %s may not touch %s", c.cfg.Identity, subject)
}

// refusedOr is the refusal that ended ctx, if one did, else err.
func refusedOr(ctx context.Context, err error) error {
	var f *fault.Error
	if err != nil && errors.As(context.Cause(ctx), &f) {
		return f
	}
	return err
}

// settle makes sure that the server has taken the subscriptions made so far, so
// that nobody who asks from now on finds no responder, and that it did not
// refuse one whose subject begins with prefix.
func (c *Conn) settle(prefix string) error {
	if err := c.NC.Flush(); err != nil {
		return err
	}
	// The refusal, if any, came before the flush's answer.
	if err := c.NC.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+prefix) {
		return c.denied(prefix)
	}
	return nil
}
