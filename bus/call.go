package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
)

// subjectOf is the subject of a command, or of its instance for a connection.
func subjectOf[Req, Rep any](s command.Spec[Req, Rep], connection string) (string, error) {
	if !s.PerConnection {
		return subject.Command(s.Service, s.Verb), nil
	}
	if !subject.Valid(connection) {
		return "", fault.New(fault.InvalidArgument, "", "%s %s: %q is no id of a connection", s.Service, s.Verb, connection)
	}
	return subject.CommandTo(s.Service, s.Verb, connection), nil
}

// Call sends a command and waits for its reply, 15 s if ctx has no deadline.
// connection is needed only for commands that are PerConnection. Faults come
// back as *fault.Error: the service's own; Unavailable where it does not run or
// does not answer in time; PermissionDenied where the caller may not ask. If
// ctx is cancelled the error is ctx's.
func Call[Req, Rep any](ctx context.Context, c *Conn, s command.Spec[Req, Rep], connection string, req Req) (Rep, error) {
	var rep Rep
	subj, err := subjectOf(s, connection)
	if err != nil {
		return rep, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return rep, fmt.Errorf("marshal %s: %w", s.Verb, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
	}
	wctx, done := c.watchRefusal(ctx, subj)
	defer done()
	msg, err := c.NC.RequestWithContext(wctx, subj, body)
	if err = refusedOr(wctx, err); err != nil {
		return rep, callFailed(ctx, s.Service, s.Verb, err)
	}
	if msg.Header.Get(faultHeader) != "" {
		f := new(fault.Error)
		if err := json.Unmarshal(msg.Data, f); err != nil {
			return rep, fmt.Errorf("read the fault that %s answered %s with: %w", s.Service, s.Verb, err)
		}
		return rep, f
	}
	if err := json.Unmarshal(msg.Data, &rep); err != nil {
		return rep, fmt.Errorf("read the reply of %s to %s: %w", s.Service, s.Verb, err)
	}
	return rep, nil
}

// callFailed says why there is no reply.
func callFailed(ctx context.Context, s subject.Service, verb string, err error) error {
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s %s: %w", s, verb, ctx.Err())
	case errors.Is(err, nats.ErrNoResponders):
		return fault.New(fault.Unavailable, "ctl status", "%s does not run", s)
	case errors.Is(err, nats.ErrMaxPayload):
		return fault.New(fault.InvalidArgument, "", "%s %s: the request is larger than the bus takes", s, verb)
	}
	return fault.New(fault.Unavailable, "ctl status", "%s did not answer %s: %v", s, verb, err)
}
