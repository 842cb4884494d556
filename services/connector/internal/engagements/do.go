package engagements

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/engage"
	"berth.dev/services/connector/internal/presence"
)

// stepWithin bounds each command that goes forward. Reading the environment is
// the longest: manager, agent and back.
const stepWithin = 15 * time.Second

// worker sends what goes forward, in order, until something fails or the
// undoing begins. It alone sees the environment.
func (l *Live) worker() {
	var r remote
	for {
		t, err := l.todo.Get(l.forward)
		if err != nil {
			return
		}
		d := t.do
		if l.snapshot().Generation != t.generation {
			continue
		}
		ctx, cancel := context.WithTimeout(l.forward, stepWithin)
		if d == engage.AwaitReady {
			cancel()
			ctx, cancel = context.WithCancel(l.forward) // it has a limit of its own, or none
		}
		err = l.step(ctx, t, &r)
		cancel()
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			f := *fault.From(err)
			if f.Stage == "" {
				f.Stage = string(d)
			}
			s := l.snapshot()
			if s.Generation != t.generation {
				continue
			}
			if s.Stage == engage.Switching {
				l.put(engage.Input{On: engage.SwitchFailed, Error: &f, Generation: t.generation})
				l.settle(t)
				continue
			}
			l.put(engage.Input{On: engage.CommandFailed, Error: &f})
			return
		}
	}
}

// errStale: what was waited for belongs to a handler that is no more.
var errStale = errors.New("another handler has taken the place")

// step sends one command that goes forward.
func (l *Live) step(ctx context.Context, t task, r *remote) (err error) {
	id := l.plan.req.ID
	switch t.do {
	case engage.Pause:
		err = l.pause(ctx)
	case engage.StopOld:
		err = l.stopOld(ctx)
	case engage.Resume:
		if _, err = bus.Call(ctx, l.w.Bus, command.EngageResume, l.plan.conn.ID, command.EngagementRef{Engagement: id}); err == nil {
			l.put(engage.Input{On: engage.Resumed, Generation: t.generation})
		}
	case engage.Redirect:
		err = l.redirect(ctx)
	case engage.Environment:
		*r, err = l.read(ctx)
	case engage.CreateHandler:
		var req command.CreateHandler
		if req, err = l.createHandler(ctx, *r); err == nil {
			_, err = bus.Call(ctx, l.w.Bus, command.HandlerCreate, "", req)
		}
		*r = remote{}
	case engage.StartHandler:
		_, err = bus.Call(ctx, l.w.Bus, command.HandlerStart, "", command.EngagementRef{Engagement: id})
	case engage.AwaitReady:
		var by string
		if by, err = l.awaitReady(ctx, t.generation); err == nil {
			l.put(engage.Input{On: engage.HandlerReady, By: by, Generation: t.generation})
		}
	case engage.Divert:
		err = l.patient(ctx, func(ctx context.Context) error {
			return l.plan.conn.Cluster.Annotate(ctx, l.plan.ref, lease.AnnotationHandler, lease.HandlerRun)
		})
	}
	return err
}

// redirect tells vif where the traffic goes, and who may use the volumes. It may
// be repeated.
func (l *Live) redirect(ctx context.Context) error {
	_, err := bus.Call(ctx, l.w.Bus, command.Engage, l.plan.conn.ID, command.EngageHandler{
		Engagement: l.plan.req.ID, Address: l.plan.req.Address, Ports: l.snapshot().Ports, Volumes: l.plan.volumes.use(), ToPod: l.plan.req.ToPod,
	})
	return err
}

// handlerEnv is the remote environment and what Berth adds to it: of the mounts,
// each is found at its path below root.
func handlerEnv(env lease.Environment, spec lease.EngagementSpec, mounts []string, root string) [][]byte {
	return append(slices.Clone(env.Env),
		[]byte("BERTH_CONTAINER="+spec.Container),
		[]byte("BERTH_MOUNTS="+strings.Join(mounts, ":")),
		[]byte("BERTH_ROOT="+root),
		[]byte("BERTH_ENGAGEMENT_ID="+spec.ID),
	)
}

// undo sends what undoes, all at once, when nothing goes forward any more, and
// reports when the local half is done. A handler with volumes is stopped first.
func (l *Live) undo(do []engage.Do) {
	l.work.Wait()
	var local sync.WaitGroup
	if l.plan.volumes != nil && slices.Contains(do, engage.StopHandler) {
		stopped := make(chan struct{})
		local.Go(func() {
			defer close(stopped)
			l.insist(engage.StopHandler)
		})
		select {
		case <-stopped:
		case <-time.After(volumeGrace):
		case <-l.life.Done():
		}
		do = slices.DeleteFunc(slices.Clone(do), func(d engage.Do) bool { return d == engage.StopHandler })
	}
	for _, d := range do {
		if d == engage.Release || d == engage.Delete {
			l.undoing.Go(func() { l.insist(d) })
			continue
		}
		local.Go(func() { l.insist(d) })
	}
	local.Wait()
	l.put(engage.Input{On: engage.HandlerGone})
}

// insist sends a command that undoes until it succeeds or the engagement is over.
func (l *Live) insist(d engage.Do) {
	err := l.patient(l.life, func(ctx context.Context) error { return l.back(ctx, d) })
	if errors.Is(err, errRunnerGone) {
		l.log.Warn("the handler is left to the next runner's sweep", "err", err)
		return
	}
	if err != nil && l.life.Err() == nil {
		l.log.Warn("the undoing is incomplete", "command", d, "err", err)
	}
	if d == engage.StopHandler && err == nil {
		l.awaitHandler()
	}
}

var errRunnerGone = errors.New("runner is gone")

// back sends one command that undoes. Each may be repeated, and each is done
// where what it undoes is not there, or whoever held it is gone.
func (l *Live) back(ctx context.Context, d engage.Do) (err error) {
	ref := command.EngagementRef{Engagement: l.plan.req.ID}
	switch d {
	case engage.Disengage:
		_, err = bus.Call(ctx, l.w.Bus, command.Disengage, l.plan.conn.ID, ref)
		// A vif that is gone has no redirections.
		if c := fault.CodeOf(err); c == fault.NotFound || c == fault.Unavailable {
			err = nil
		}
	case engage.StopHandler:
		if l.plan.req.Handler == nil {
			return nil
		}
		_, err = bus.Call(ctx, l.w.Bus, command.HandlerStop, "", ref)
		switch fault.CodeOf(err) {
		case fault.NotFound:
			err = nil
		case fault.Unavailable:
			if l.w.Bus.Gone(ctx, presence.Runner) {
				err = errRunnerGone
			}
		}
	case engage.Release:
		err = l.plan.conn.Cluster.Annotate(ctx, l.plan.ref, lease.AnnotationRelease, "true")
		if fault.CodeOf(err) == fault.NotFound {
			err = nil // gone already
		}
	case engage.Delete:
		err = l.plan.conn.Cluster.Drop(ctx, l.plan.ref)
	}
	return err
}

// awaitHandler waits for runner to tell the end of a handler that was made:
// "left" means that its container is gone, and its exit code is part of the end.
func (l *Live) awaitHandler() {
	if l.snapshot().Handler == "" {
		return
	}
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		l.log.Warn("runner does not tell the handler's end")
	case <-l.life.Done():
	}
}

// patient repeats what is unavailable until ctx ends. Other faults do not mend
// themselves.
func (l *Live) patient(ctx context.Context, f func(context.Context) error) error {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(try)
		cancel()
		if fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}
