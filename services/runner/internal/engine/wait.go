package engine

import (
	"context"
	"errors"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// Exit is how a container ended.
type Exit struct {
	Code int
	OOM  bool
	// Unknown: the container is gone and nobody saw its exit code, since the
	// engine itself was restarted in between.
	Unknown bool
}

// Waiting is a wait for a container's end that the engine has registered.
type Waiting struct {
	e   *Engine
	id  string
	got chan waited
}

type waited struct {
	code int
	err  error
}

// NextExit registers a wait for the end of a container that has not been
// started yet. It must stand before the start: a container with AutoRemove that
// lives for a millisecond leaves nothing to ask afterwards.
func (e *Engine) NextExit(ctx context.Context, id string) *Waiting {
	return e.wait(ctx, id, container.WaitConditionNextExit)
}

// Ended waits for the end of a container that is running, or was a moment ago.
func (e *Engine) Ended(ctx context.Context, id string) *Waiting {
	return e.wait(ctx, id, container.WaitConditionNotRunning)
}

func (e *Engine) wait(ctx context.Context, id string, cond container.WaitCondition) *Waiting {
	w := &Waiting{e: e, id: id, got: make(chan waited, 1)}
	res, errs := e.API.ContainerWait(ctx, id, cond)
	go func() { // ends with ctx at the latest: the client's request does
		select {
		case r := <-res:
			var err error
			if r.Error != nil {
				err = errors.New(r.Error.Message)
			}
			w.got <- waited{int(r.StatusCode), err}
		case err := <-errs:
			w.got <- waited{0, err}
		case <-ctx.Done():
			w.got <- waited{0, ctx.Err()}
			// The client's goroutine hands its result over unbuffered.
			select {
			case <-res:
			case <-errs:
			}
		}
	}()
	return w
}

// Exit returns when the container is proven to have ended. It survives an
// engine that restarts; its only error is ctx's.
func (w *Waiting) Exit(ctx context.Context, watch *Watch) (Exit, error) {
	for {
		var got waited
		select {
		case got = <-w.got:
		case <-ctx.Done():
			return Exit{}, ctx.Err()
		}
		if got.err == nil {
			x := Exit{Code: got.code}
			if seen, ok := watch.Died(ctx, w.id, time.Second); ok {
				x.OOM = seen.OOM
			}
			return x, nil
		}
		if ctx.Err() != nil {
			return Exit{}, ctx.Err()
		}
		if x, ok := w.e.inspectExit(ctx, w.id, watch); ok {
			return x, nil
		}
		// Still running, or the engine does not answer: ask again in a moment.
		select {
		case <-ctx.Done():
			return Exit{}, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		*w = *w.e.Ended(ctx, w.id)
	}
}

// inspectExit is the answer where a wait broke off: ok if the container is
// known to have ended.
func (e *Engine) inspectExit(ctx context.Context, id string, watch *Watch) (Exit, bool) {
	in, err := e.API.ContainerInspect(ctx, id)
	switch {
	case cerrdefs.IsNotFound(err):
		// The stream of events broke off too, and is opened again in a moment.
		if x, ok := watch.Died(ctx, id, 3*time.Second); ok {
			return x, true
		}
		return Exit{Unknown: true}, true
	case err != nil:
		return Exit{}, false
	}
	if in.State.Running || in.State.Paused || in.State.Restarting || in.State.Status == container.StateCreated {
		return Exit{}, false
	}
	return Exit{Code: in.State.ExitCode, OOM: in.State.OOMKilled}, true
}
