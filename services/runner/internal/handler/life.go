package handler

import (
	"context"
	"maps"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// outputTime is how long the end of a handler waits for its last output to be recorded.
const outputTime = 2 * time.Second

// create makes the container; r's turn is taken.
func (s *Set) create(ctx context.Context, r *record, req command.CreateHandler, p *Plan) {
	want, err := s.wantBeside(ctx, r.owner(), p)
	var has beside.Has
	if err == nil {
		has, err = s.opt.Beside.Open(ctx, r.owner(), want)
	}
	var id, image string
	if err == nil {
		maps.Copy(p.Config.Labels, has.Labels())
		id, image, err = s.createContainer(ctx, req, p)
	}
	s.mu.Lock()
	r.container = id // if there is one, whatever failed after it
	s.mu.Unlock()
	if err != nil {
		s.fail(ctx, r, err)
		return
	}
	s.mu.Lock()
	r.image, r.phase = image, created
	s.mu.Unlock()
	s.state(ctx, r, event.HandlerCreated{Container: p.Name, ContainerID: id, Image: image, Published: has.Published})
}

func (s *Set) createContainer(ctx context.Context, req command.CreateHandler, p *Plan) (id, image string, err error) {
	if image, err = s.eng.ImageID(ctx, p.Config.Image); err != nil {
		return "", "", err
	}
	if err := s.createVolumes(ctx, req, p.addMounts(req.Mounts)); err != nil {
		return "", "", err
	}
	c, err := s.eng.API.ContainerCreate(ctx, p.Config, p.Host, p.Networking, p.Platform, p.Name)
	if cerrdefs.IsConflict(err) {
		// Somebody took the name since it was checked, or the one before us is
		// about to let it go.
		if err := s.freeName(ctx, p.Name, ""); err != nil {
			return "", "", err
		}
		c, err = s.eng.API.ContainerCreate(ctx, p.Config, p.Host, p.Networking, p.Platform, p.Name)
	}
	if err != nil {
		return "", "", engine.Fault(err, "create container %s", p.Name)
	}
	for _, w := range c.Warnings {
		s.log.Warn("the engine warns about the handler", "engagement", req.Engagement, "warning", w)
	}
	return c.ID, image, s.copyFiles(ctx, c.ID, p.addFiles(req.Files))
}

// fail ends r in HandlerFailed and removes what there is of it.
func (s *Set) fail(ctx context.Context, r *record, err error) {
	s.clean(ctx, r)
	s.log.Warn("the handler failed", "engagement", r.engagement, "err", err)
	s.end(ctx, r, event.HandlerFailed{Error: *fault.From(err)})
	close(r.gone)
}

// clean removes r's container and volumes.
func (s *Set) clean(ctx context.Context, r *record) {
	s.mu.Lock()
	id := r.container
	s.mu.Unlock()
	if id != "" {
		if err := s.eng.Remove(ctx, id); err != nil {
			s.log.Warn("the handler's container is left to the next sweep", "engagement", r.engagement, "err", err)
		}
	}
	s.opt.Beside.Close(ctx, r.owner())
	s.removeVolumes(ctx, r.engagement)
}

// end states r's last fact.
func (s *Set) end(ctx context.Context, r *record, last event.Data) {
	s.state(ctx, r, last)
	s.setPhase(r, ended)
	close(r.done)
}

// start starts r's container and follows it to its end.
func (s *Set) start(ctx context.Context, r *record) {
	if !r.take(ctx) {
		return
	}
	if s.phaseOf(r) != created { // started, stopped or failed meanwhile
		r.release()
		return
	}
	s.setPhase(r, starting)
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The wait stands before the start, so does the attachment: a container
	// that lives for a millisecond has an exit code and output too.
	wait := s.eng.NextExit(waitCtx, r.container)
	output := s.attach(waitCtx, r)
	if err := s.eng.API.ContainerStart(ctx, r.container, container.StartOptions{}); err != nil {
		s.fail(ctx, r, startFault(err, r.name))
		r.release()
		return
	}
	s.setPhase(r, running)
	s.state(ctx, r, event.HandlerStarted{Container: r.name, ContainerID: r.container})
	r.release()
	s.follow(ctx, r, wait, output)
}

// startFault is why a container could not be started: a mistake in the user's
// arguments if the engine says so.
func startFault(err error, name string) error {
	f := fault.From(engine.Fault(err, "start container %s", name))
	if f.Code == fault.NotFound { // of the executable, not of the container
		f.Code = fault.InvalidArgument
	}
	return f
}

// follow waits for the end of r's container and tells it.
func (s *Set) follow(ctx context.Context, r *record, wait *engine.Waiting, output <-chan struct{}) {
	exit, err := wait.Exit(ctx, s.watch)
	if err != nil {
		return // runner ends, after everything was undone or given up
	}
	select { // the last lines come before the fact that there are no more
	case <-output:
	case <-time.After(outputTime):
	case <-ctx.Done():
	}
	last := event.Data(event.HandlerExited{Container: r.name, ContainerID: r.container, ExitCode: exit.Code, OOMKilled: exit.OOM})
	if exit.Unknown {
		last = event.HandlerFailed{Error: *fault.New(fault.Unavailable, "ctl doctor", "the handler %s is gone and its exit code is not known: the Docker Engine was restarted", r.name)}
	}
	s.log.Info("the handler ended", "engagement", r.engagement, "exitCode", exit.Code, "oomKilled", exit.OOM)
	s.end(ctx, r, last)
	if err := s.eng.Gone(ctx, r.container); err != nil {
		s.log.Warn("the handler's container is not removed yet", "engagement", r.engagement, "err", err)
	}
	s.closeBeside(ctx, r)
	s.removeVolumes(ctx, r.engagement)
	close(r.gone)
}

// attach sends r's output to the bus. A terminal's output belongs to whoever
// has the terminal.
func (s *Set) attach(ctx context.Context, r *record) <-chan struct{} {
	none := make(chan struct{})
	close(none)
	if r.tty {
		return none
	}
	out := s.opt.Output(r.engagement)
	copied, err := s.eng.Attach(ctx, r.container, nil, out.Stdout(), out.Stderr())
	if err != nil {
		s.log.Warn("the handler's output is not recorded", "engagement", r.engagement, "err", err)
		copied = none
	}
	done := make(chan struct{})
	s.opt.Go(func(ctx context.Context) {
		defer close(done)
		<-copied
		ctx, cancel := context.WithTimeout(ctx, outputTime)
		defer cancel()
		if err := out.Close(ctx); err != nil {
			s.log.Warn("the record of the handler's output is incomplete", "engagement", r.engagement, "err", err)
		}
	})
	return done
}

// stop ends r's container, within limit if that is positive. Whether it ran
// long enough to be told of is follow's to say.
func (s *Set) stop(ctx context.Context, r *record, limit time.Duration) {
	if !r.take(ctx) {
		return
	}
	if s.phaseOf(r) == created {
		s.clean(ctx, r)
		s.end(ctx, r, event.HandlerFailed{Error: *fault.New(fault.FailedPrecondition, "", "the handler %s was removed before it had been started", r.name)})
		close(r.gone)
		r.release()
		return
	}
	r.release()
	for {
		select {
		case <-r.done:
			return
		case <-ctx.Done():
			return
		default:
		}
		err := s.eng.Stop(ctx, r.container, limit)
		if err == nil {
			return
		}
		s.log.Warn("the handler could not be stopped yet", "engagement", r.engagement, "err", err)
		select {
		case <-time.After(time.Second): // the engine is away: ask again when it may be back
		case <-ctx.Done():
		case <-r.done:
		}
	}
}
