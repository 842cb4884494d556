package workspace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"
)

// Stage is the name of the stage at which a workspace that does not come up fails.
const Stage = "workspace"

// settleTimeout bounds Ensure's turns: after it there is no other begun.
const settleTimeout = 15 * time.Second

// Up is a workspace that is up.
type Up struct {
	Conn    *bus.Conn
	State   command.State
	Created bool // by this call
}

// Ensure makes sure that the workspace is up and of this ctl's version: starts
// what is missing, repairs what is half dead, replaces an idle one of another
// version. It returns when both connector and runner have answered. An existing
// workspace of another version that is in use is a FailedPrecondition fault.
func (w *Workspace) Ensure(ctx context.Context) (*Up, error) {
	var parts Parts
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return w.HasImage(gctx)
	})
	group.Go(func() (err error) {
		parts, err = w.Find(gctx)
		return err
	})
	err := group.Wait()
	// Each turn mends one thing or waits for another ctl to.
	var pace pacer
	for began := time.Now(); err == nil && time.Since(began) < settleTimeout; {
		var up *Up
		up, err = w.attempt(ctx, parts)
		switch {
		case err == nil && up != nil:
			return up, nil
		case errors.Is(err, errRaced):
			// The engine keeps a name before there is anything to be seen of it.
			if err = pace.pause(ctx); err == nil {
				err = w.awaitOther(ctx)
			}
		}
		if err == nil {
			parts, err = w.Find(ctx)
		}
	}
	if err == nil {
		err = fault.New(fault.Unavailable, "ctl quit --all", "the workspace keeps changing: another ctl is at work")
	}
	return nil, fault.At(Stage, err)
}

// attempt brings the workspace closer to being up; (nil, nil) asks for another turn.
func (w *Workspace) attempt(ctx context.Context, p Parts) (*Up, error) {
	switch {
	case p.Connector == nil:
		// Whatever carries our label has lost its bus and cannot get it back.
		if err := w.sweep(ctx); err != nil {
			return nil, err
		}
		return w.create(ctx)
	case !p.Connector.Running:
		// Another ctl may be about to start it.
		started, err := w.awaitStart(ctx, p.Connector.ID)
		if err != nil || started {
			return nil, err
		}
		return nil, w.remove(ctx, p.Connector.ID, 0)
	}
	conn, state, err := w.join(ctx, p.Connector.ID)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, errSilent):
		// It runs and does not answer: it is of no use to anybody.
		return nil, w.Teardown(ctx)
	case err != nil:
		again, ferr := w.Find(ctx)
		if ferr == nil && !again.Connector.same(p.Connector) {
			return nil, nil // it ended meanwhile
		}
		return nil, err
	}
	if p.Connector.Version != w.Version {
		conn.Close()
		if len(state.Connections)+len(state.Engagements) > 0 {
			return nil, fault.New(fault.FailedPrecondition, "ctl quit --all", "a workspace of version %s is in use, this is version %s", p.Connector.Version, w.Version)
		}
		return nil, w.Teardown(ctx)
	}
	// The runner of a workspace that is just being made is on its way, as long as
	// others take for it: many at once, on a machine that is busy with all of them.
	limit := max(time.Second, readyTimeout-time.Since(p.Connector.Created))
	if p.Runner != nil && p.Runner.Running {
		limit = readyTimeout
	}
	soon, cancel2 := context.WithTimeout(ctx, limit)
	defer cancel2()
	if state, err = Answers(soon, conn); err == nil {
		return &Up{Conn: conn, State: state}, nil
	}
	conn.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if again, err := w.Find(ctx); err != nil || !again.Runner.same(p.Runner) {
		return nil, err // it came, or went, meanwhile
	}
	if p.Runner != nil {
		if err := w.remove(ctx, p.Runner.ID, 0); err != nil {
			return nil, err
		}
	}
	return nil, w.recreateRunner(ctx, p.Connector.ID)
}

// join connects to a connector that runs and asks what it knows.
func (w *Workspace) join(ctx context.Context, id string) (*bus.Conn, command.State, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, engineTimeout, fmt.Errorf("the engine took longer than %v", engineTimeout))
	defer cancel()
	var state command.State
	conn, err := w.enter(ctx, id, readyTimeout)
	if err != nil {
		return nil, state, err
	}
	var pace pacer
	limited, cancelCall := context.WithTimeout(ctx, readyTimeout)
	defer cancelCall()
	for {
		state, err = bus.Call(limited, conn, command.StateGet, "", command.None{})
		if err == nil {
			return conn, state, nil
		}
		if perr := pace.pause(limited); perr != nil {
			conn.Close()
			return nil, state, fmt.Errorf("%w: %w", errSilent, err)
		}
	}
}

// awaitStart waits until a container that was created is started or gone. One
// that stays as it is was left by a ctl that died in between.
func (w *Workspace) awaitStart(ctx context.Context, id string) (started bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var pace pacer
	for {
		in, err := w.Engine.API.ContainerInspect(ctx, id)
		if err != nil {
			return true, nil // gone: look again
		}
		if in.State != nil && in.State.Running {
			return true, nil
		}
		if in.State == nil || in.State.Status != container.StateCreated {
			return false, nil
		}
		if pace.pause(ctx) != nil {
			return false, nil
		}
	}
}

// awaitOther waits until the ctl that was faster has the containers there.
func (w *Workspace) awaitOther(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("another ctl is creating the workspace and does not get on"))
	defer cancel()
	var pace pacer
	for {
		p, err := w.Find(ctx)
		if err != nil {
			return err
		}
		if p.Connector != nil {
			return nil
		}
		name := w.container(subject.Connector)
		in, err := w.Engine.API.ContainerInspect(ctx, name)
		if err == nil && in.Config.Labels[LabelWorkspace] != w.Name {
			return fault.New(fault.AlreadyExists, "docker rm -f "+name, "there is a container %s that is not Berth's", name)
		}
		if errdefs.IsNotFound(err) {
			return nil // the other one gave up
		}
		if err := pace.pause(ctx); err != nil {
			return fault.New(fault.Unavailable, "ctl quit --all", "%v", err)
		}
	}
}
