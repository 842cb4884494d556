package handler

import (
	"context"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// Adopt takes over the handlers that an earlier runner left: those that run are
// followed to their end, those that were only created may be started. It must
// have returned before commands are served.
func (s *Set) Adopt(ctx context.Context) error {
	list, err := s.eng.List(ctx, engine.Is(engine.LabelComponent, engine.Handler))
	if err != nil {
		return err
	}
	for _, c := range list {
		id := c.Labels[engine.LabelEngagement]
		if s.get(id) != nil || validID("engagement", id) != nil {
			continue
		}
		if err := s.adopt(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) adopt(ctx context.Context, c container.Summary) error {
	in, err := s.eng.API.ContainerInspect(ctx, c.ID)
	if cerrdefs.IsNotFound(err) {
		return nil // ended since: Missed tells
	}
	if err != nil {
		return engine.Fault(err, "inspect container %s", c.ID)
	}
	name := in.Name
	if len(name) > 0 && name[0] == '/' {
		name = name[1:]
	}
	r := newRecord(c.Labels[engine.LabelEngagement], c.Labels[engine.LabelConnection], name, readPorts(c.Labels[engine.LabelPorts]))
	r.container, r.image, r.tty, r.adopted = c.ID, in.Image, in.Config.Tty, true
	r.phase = running
	if in.State.Status == container.StateCreated {
		r.phase = created
	}
	s.mu.Lock()
	s.records[r.engagement] = r
	s.mu.Unlock()
	s.log.Info("a handler was adopted", "engagement", r.engagement, "container", name, "state", in.State.Status)
	if r.phase == running {
		s.opt.Go(func(ctx context.Context) {
			wait := s.eng.Ended(ctx, r.container)
			output := s.attach(ctx, r)
			s.follow(ctx, r, wait, output)
		})
	}
	return nil
}

// CatchUp states what an earlier runner may have died over, once connector has
// said which engagements there are: facts about adopted handlers that it has
// not seen, and the end of handlers that ended while nobody looked.
func (s *Set) CatchUp(ctx context.Context, known []command.Engagement) {
	for _, e := range known {
		r := s.get(e.ID)
		switch {
		case r == nil && (e.Phase == "created" || e.Phase == "active") && e.Handler != "":
			s.missed(ctx, e)
		case r == nil || !r.adopted:
		case e.Phase == "requested" || e.Phase == "prepared":
			s.state(ctx, r, event.HandlerCreated{Container: r.name, ContainerID: r.container, Image: r.image})
			fallthrough
		case e.Phase == "created":
			if s.phaseOf(r) == running {
				s.state(ctx, r, event.HandlerStarted{Container: r.name, ContainerID: r.container})
			}
		}
	}
}

// missed tells how a handler ended that is gone.
func (s *Set) missed(ctx context.Context, e command.Engagement) {
	r := newRecord(e.ID, e.Connection, e.Handler, nil)
	s.mu.Lock()
	if s.records[e.ID] != nil {
		s.mu.Unlock()
		return
	}
	s.records[e.ID] = r
	s.mu.Unlock()
	exit, ok := s.watch.DiedOf(ctx, e.ID, 2*time.Second)
	if !ok || exit.Unknown {
		s.fail(ctx, r, fault.New(fault.Unavailable, "ctl status", "the handler %s ended while runner was away, and its exit code is not known", e.Handler))
		return
	}
	s.opt.Beside.Close(ctx, r.owner())
	s.removeVolumes(ctx, e.ID)
	s.end(ctx, r, event.HandlerExited{Container: e.Handler, ExitCode: exit.Code, OOMKilled: exit.OOM})
	close(r.gone)
}
