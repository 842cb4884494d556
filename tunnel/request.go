package tunnel

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Request is a stream that the far side wants to open. Answer it with exactly
// one of Accept and Refuse, once the outcome is known: the opener waits, and
// passes the answer on as if it were the destination's own.
type Request struct {
	Header Header

	st       *Stream
	answered atomic.Bool
}

var errAnswered = errors.New("request was answered before")

// Accept opens the stream. It fails when the opener gave up or the session
// ended meanwhile.
func (r *Request) Accept() (*Stream, error) {
	if !r.answered.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("accept %v: %w", r.Header, errAnswered)
	}
	if err := r.st.acceptOpen(); err != nil {
		return nil, fmt.Errorf("accept %v: %w", r.Header, err)
	}
	return r.st, nil
}

// Refuse tells the opener that there will be no stream, and why. Only the
// first KiB of msg is sent. After another answer it does nothing.
func (r *Request) Refuse(code Code, msg string) {
	if !r.answered.CompareAndSwap(false, true) {
		return
	}
	st := r.st
	if st.end(&RefusedError{Code: code, Message: msg}, false, false) {
		st.sess.w.addControl(true, appendMessage(nil, frameRefuse, st.id, code, msg)...)
	}
}

// Context is done when the opener gives up or the session ends, to cut a dial
// short. Release it with the returned function.
func (r *Request) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	stop := r.st.afterEnd(func(err error) { cancel(err) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}
