// Package interrupt is the two meanings of Ctrl-C: the first signal asks the
// command to end what it started and to wait for it to be undone, the second
// stops waiting. SIGTERM and SIGHUP, a closed terminal's, count as well.
package interrupt

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// ErrInterrupted is the cause of a context that the first signal ended.
var ErrInterrupted = errors.New("interrupted")

// ExitCode is the exit code of an interrupted command, by the shell's custom.
const ExitCode = 130

// Signals is what has been asked for so far.
type Signals struct {
	// First ends with the first signal, cause ErrInterrupted.
	First context.Context
	// Second ends with the second; clean-up runs under it.
	Second context.Context
}

// Watch watches until stop is called.
func Watch(ctx context.Context) (s Signals, stop func()) {
	first, end1 := context.WithCancelCause(ctx)
	second, end2 := context.WithCancelCause(context.WithoutCancel(ctx))
	ch := make(chan os.Signal, 2)
	done := make(chan struct{})
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for _, end := range []context.CancelCauseFunc{end1, end2} {
			select {
			case <-ch:
				end(ErrInterrupted)
			case <-done:
				return
			}
		}
		<-done
	}()
	return Signals{first, second}, func() {
		signal.Stop(ch)
		close(done)
		end1(nil)
		end2(nil)
	}
}

// Is reports whether a signal ended ctx.
func Is(ctx context.Context) bool { return errors.Is(context.Cause(ctx), ErrInterrupted) }
