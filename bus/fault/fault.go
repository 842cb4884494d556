// Package fault is the error that crosses the bus.
//
// Inside a process errors are plain Go errors, wrapped with %w and a verb. At
// the edge of the bus an error becomes a [Error]: a code for programs, a
// message that says what and why, and a hint that is a command to type. The
// receiving side gets the same *Error back, so errors.As works across processes.
package fault

import (
	"errors"
	"fmt"
)

// Code classifies a fault. The names are those of gRPC's status codes.
type Code string

// The codes.
const (
	InvalidArgument    Code = "invalid_argument"    // the request can never work: usage, exit code 2
	NotFound           Code = "not_found"           // a named thing does not exist
	AlreadyExists      Code = "already_exists"      // a named thing exists or is held by another
	FailedPrecondition Code = "failed_precondition" // the request is right, the state is not
	PermissionDenied   Code = "permission_denied"   // the caller lacks a right
	Unavailable        Code = "unavailable"         // something does not answer; trying again may help
	Internal           Code = "internal"            // a bug or something nobody thought of
)

// Error is a fault. Message says what failed and why; Hint is a command that
// helps, or empty. Stage names the step of a staged command that failed.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Stage   string `json:"stage,omitempty"`
}

// Error implements error: the message, preceded by the stage if there is one.
func (e *Error) Error() string {
	if e.Stage != "" {
		return e.Stage + ": " + e.Message
	}
	return e.Message
}

// New makes a fault.
func New(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// From returns the fault inside err, or err as an Internal fault; nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var f *Error
	if errors.As(err, &f) {
		return f
	}
	return &Error{Code: Internal, Message: err.Error()}
}

// At returns err as a fault of the stage; a stage that is already named stays.
func At(stage string, err error) *Error {
	f := From(err)
	if f == nil {
		return nil
	}
	c := *f
	if c.Stage == "" {
		c.Stage = stage
	}
	return &c
}

// CodeOf is the code of err, Internal if it carries none, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return From(err).Code
}
