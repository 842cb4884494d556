package handler

import (
	"context"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/owner"
)

// pluginTime is how long Check waits for the volume plugin, whose installation
// takes about a second; who asks has limits of his own.
const pluginTime = 8 * time.Second

// Check serves HandlerCheck: could this handler be created? It removes a dead
// container of ours that has the name, and touches nothing else, since the
// cluster has not been touched either.
func (s *Set) Check(ctx context.Context, req command.CheckHandler) (command.CheckedHandler, error) {
	var none command.CheckedHandler
	if err := validID("connection", req.Connection); err != nil {
		return none, err
	}
	p, err := s.newPlan(req.Handler, req.Name)
	if err != nil {
		return none, err
	}
	if p.Name == "" {
		return none, fault.New(fault.InvalidArgument, "", "the handler has no name")
	}
	image, err := s.eng.ImageID(ctx, p.Config.Image)
	if err != nil {
		return none, err
	}
	if !s.opt.OnMachine {
		if _, err := s.eng.DaemonOf(ctx, req.Connection); err != nil {
			return none, err
		}
	} else if !req.Again { // its predecessor has them, until it has ended
		if err := p.portsOfMachineFree(ctx, req.Ports); err != nil {
			return none, err
		}
	}
	if err := s.PortsFree(req.Connection, req.Engagement, req.Ports); err != nil {
		return none, err
	}
	replaced := ""
	if req.Again {
		replaced = req.Engagement
	}
	if err := s.freeName(ctx, p.Name, replaced); err != nil {
		return none, err
	}
	checked := command.CheckedHandler{Name: p.Name, Image: image, Forwarded: s.opt.OnMachine && !p.Host.NetworkMode.IsHost()}
	if req.Volumes {
		// It may have to be installed first.
		wait, cancel := context.WithTimeout(ctx, pluginTime)
		defer cancel()
		v, err := s.opt.VolumePlugin(wait, command.None{})
		if err != nil {
			return none, err
		}
		checked.Volumes = &v
	}
	o := owner.Owner{Connection: req.Connection, Engagement: req.Engagement, Name: p.Name}
	want, err := s.wantBeside(ctx, o, p)
	if err != nil {
		return none, err
	}
	if req.Engagement != "" && !req.Again { // it holds them from here on, until Stop
		if _, err := s.opt.Beside.Open(ctx, o, want); err != nil {
			return none, err
		}
	}
	if req.Again {
		s.keepBeside(req.Engagement)
	}
	return checked, nil
}

// switchTime is longer than it takes connector to have one handler take the place
// of another, both of which may be slow to end or to start.
const switchTime = 2 * time.Minute

// keepBeside has an engagement keep what its handler has beside the shared
// network when that ends, for the one that takes its place: a port that the
// engine chose stays the same. If none comes, it is given back.
func (s *Set) keepBeside(engagement string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[engagement]
	if r == nil || r.followed {
		return
	}
	r.followed = true
	s.opt.Go(func(ctx context.Context) {
		select {
		case <-time.After(switchTime):
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		r.followed = false
		alone := r.phase == ended && s.records[engagement] == r
		s.mu.Unlock()
		if alone {
			s.opt.Beside.Close(ctx, r.owner())
		}
	})
}

// closeBeside takes back what r's handler has beside the shared network, unless
// it is for the next one.
func (s *Set) closeBeside(ctx context.Context, r *record) {
	s.mu.Lock()
	followed := r.followed
	s.mu.Unlock()
	if !followed {
		s.opt.Beside.Close(ctx, r.owner())
	}
}

// wantBeside is what a handler is to have beside the shared network, once it is
// known that no other handler of the connection has its ports.
func (s *Set) wantBeside(ctx context.Context, o owner.Owner, p *Plan) (beside.Want, error) {
	if s.opt.OnMachine {
		return beside.Want{}, nil // the engine sees to all of it
	}
	want, err := p.Beside(ctx, s.eng)
	if err != nil {
		return want, err
	}
	return want, s.PortsFree(o.Connection, o.Engagement, EventPorts(want.Ports))
}

// freeName makes sure that a container may get the name: what holds it is
// removed if it is ours and of no use to anybody, else named. The handler of the
// engagement replaced may have it: it is going to be stopped.
func (s *Set) freeName(ctx context.Context, name, replaced string) error {
	h, err := s.eng.Holder(ctx, name)
	if err != nil || h == nil {
		return err
	}
	switch {
	case h.Ours && replaced != "" && h.Labels[engine.LabelComponent] == engine.Handler && h.Labels[engine.LabelEngagement] == replaced:
		return nil
	case !h.Ours:
		return h.Conflict(name, "docker rm -f "+name)
	case !h.Alive, h.State == "created" && !s.live(h.Labels[engine.LabelEngagement]):
		return s.eng.Remove(ctx, h.ID)
	case h.Labels[engine.LabelComponent] == engine.Handler:
		return h.Conflict(name, "ctl leave "+h.Labels[engine.LabelEngagement])
	}
	return h.Conflict(name, "docker rm -f "+name)
}

// PortsFree refuses a port on which another container of the connection listens:
// they share one network, and the second bind would fail.
func (s *Set) PortsFree(connection, engagement string, ports []event.Port) error {
	if err := s.opt.Beside.Clash(owner.Owner{Connection: connection, Engagement: engagement}, natPorts(ports)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.connection != connection || r.engagement == engagement || r.phase == ended {
			continue
		}
		if p, clash := samePort(ports, r.ports); clash {
			return fault.New(fault.AlreadyExists, "ctl leave "+r.engagement, "port %d/%s is the port of the handler %s already, and no two handlers of a connection can have the same one", listens(p), p.Protocol, r.name)
		}
	}
	return nil
}
