package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"berth.dev/bus/fault"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// Fault is err of an engine call as a fault: what says which, in the form
// "create container x". An engine that does not answer is Unavailable with the
// hint that helps; nil stays nil.
func Fault(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case Down(err):
		return fault.New(fault.Unavailable, "ctl doctor", "%s: the Docker Engine does not answer: %s", what, Message(err))
	case cerrdefs.IsNotFound(err):
		return fault.New(fault.NotFound, "", "%s: %s", what, Message(err))
	case cerrdefs.IsInvalidArgument(err):
		return fault.New(fault.InvalidArgument, "", "%s: %s", what, Message(err))
	case cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnauthorized(err):
		return fault.New(fault.PermissionDenied, "ctl doctor", "%s: %s", what, Message(err))
	case cerrdefs.IsConflict(err):
		return fault.New(fault.AlreadyExists, "", "%s: %s", what, Message(err))
	}
	return fault.New(fault.Internal, "", "%s: %s", what, Message(err))
}

// Down reports whether err means that the engine did not answer, so that it
// says nothing about what was asked.
func Down(err error) bool {
	var op *net.OpError
	return client.IsErrConnectionFailed(err) || errors.As(err, &op) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded)
}

// Message is an engine's error text without the prefix that says nothing.
func Message(err error) string {
	return strings.TrimSpace(strings.TrimPrefix(err.Error(), "Error response from daemon: "))
}
