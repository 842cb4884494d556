package handler

import (
	"context"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// Health serves HandlerHealth: what the engine says of the handler right now.
func (s *Set) Health(ctx context.Context, req command.EngagementRef) (command.Health, error) {
	var h command.Health
	if err := validID("engagement", req.Engagement); err != nil {
		return h, err
	}
	r := s.get(req.Engagement)
	if r == nil {
		return h, fault.New(fault.NotFound, "", "engagement %s has no handler", req.Engagement)
	}
	s.mu.Lock()
	id := r.container
	s.mu.Unlock()
	in, err := s.eng.API.ContainerInspect(ctx, id)
	switch {
	case cerrdefs.IsNotFound(err):
		return h, nil // ended: its last fact tells
	case err != nil:
		return h, engine.Fault(err, "inspect container %s", r.name)
	}
	h.Running = in.State.Running
	if st := in.State.Health; st != nil && st.Status != container.NoHealthcheck {
		h.Health = st.Status
	}
	return h, nil
}
