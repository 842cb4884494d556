package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// Code says why a stream was refused or reset. Its value crosses the wire, so
// that a closed port in the cluster is a closed port to the handler.
type Code uint8

const (
	// CodeRefused: the destination's port is closed (ECONNREFUSED).
	CodeRefused Code = 1
	// CodeUnreachable: no route to the destination (EHOSTUNREACH).
	CodeUnreachable Code = 2
	// CodeTimeout: the destination did not answer in time (ETIMEDOUT).
	CodeTimeout Code = 3
	// CodeDenied: policy forbids it (EACCES).
	CodeDenied Code = 4
	// CodeNotFound: no such engagement, name or method (ENOENT).
	CodeNotFound Code = 5
	// CodeReset: the flow was torn down by one end (ECONNRESET).
	CodeReset Code = 6
	// CodeCanceled: the opener gave up (ECANCELED).
	CodeCanceled Code = 7
	// CodeInternal: the far side failed in a way it cannot put better.
	CodeInternal Code = 8
	// CodeBusy: a limit is reached: backlog or streams (EAGAIN).
	CodeBusy Code = 9
)

// String returns the code's name.
func (c Code) String() string {
	switch c {
	case CodeRefused:
		return "connection refused"
	case CodeUnreachable:
		return "host unreachable"
	case CodeTimeout:
		return "timed out"
	case CodeDenied:
		return "denied"
	case CodeNotFound:
		return "not found"
	case CodeReset:
		return "connection reset"
	case CodeCanceled:
		return "canceled"
	case CodeInternal:
		return "internal error"
	case CodeBusy:
		return "busy"
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// Errno returns the errno that says the same to a local process, or 0.
func (c Code) Errno() syscall.Errno {
	switch c {
	case CodeRefused:
		return syscall.ECONNREFUSED
	case CodeUnreachable:
		return syscall.EHOSTUNREACH
	case CodeTimeout:
		return syscall.ETIMEDOUT
	case CodeDenied:
		return syscall.EACCES
	case CodeNotFound:
		return syscall.ENOENT
	case CodeReset:
		return syscall.ECONNRESET
	case CodeCanceled:
		return syscall.ECANCELED
	case CodeBusy:
		return syscall.EAGAIN
	}
	return 0
}

// RefusedError is what Session.Open returns when the far side refused.
// errors.Is matches it with the errno of its code.
type RefusedError struct {
	Code    Code
	Message string // from the far side, may be empty
}

func (e *RefusedError) Error() string {
	if e.Message == "" {
		return "refused by the far side: " + e.Code.String()
	}
	return fmt.Sprintf("refused by the far side: %v: %s", e.Code, e.Message)
}

// Is matches the errno of the code, and fs.ErrNotExist, fs.ErrPermission and
// os.ErrDeadlineExceeded where those say the same.
func (e *RefusedError) Is(target error) bool { return e.Code.is(target) }

// ResetError is what Read and Write return after the far side reset the
// stream. It always matches ECONNRESET, and the errno of its code.
type ResetError struct{ Code Code }

func (e *ResetError) Error() string {
	if e.Code == CodeReset {
		return "stream reset by the far side"
	}
	return "stream reset by the far side: " + e.Code.String()
}

// Is matches syscall.ECONNRESET and whatever the code matches.
func (e *ResetError) Is(target error) bool {
	return target == syscall.ECONNRESET || e.Code.is(target)
}

func (c Code) is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return c == CodeNotFound
	case fs.ErrPermission:
		return c == CodeDenied
	case os.ErrDeadlineExceeded:
		return c == CodeTimeout
	case context.Canceled:
		return c == CodeCanceled
	}
	errno, ok := target.(syscall.Errno)
	return ok && errno != 0 && errno == c.Errno()
}

// CodeOf classifies an error, usually of net.Dial, for Request.Refuse and
// Stream.Reset. A nil error is CodeInternal.
func CodeOf(err error) Code {
	var refused *RefusedError
	var reset *ResetError
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &refused):
		return refused.Code
	case errors.As(err, &reset):
		return reset.Code
	case errors.Is(err, syscall.ECONNREFUSED):
		return CodeRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return CodeReset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EADDRNOTAVAIL):
		return CodeUnreachable
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	case errors.Is(err, os.ErrPermission): // EACCES, EPERM
		return CodeDenied
	case errors.As(err, &dns) && dns.IsNotFound, errors.Is(err, fs.ErrNotExist):
		return CodeNotFound
	case errors.Is(err, syscall.EAGAIN):
		return CodeBusy
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return CodeTimeout
	}
	return CodeInternal
}
