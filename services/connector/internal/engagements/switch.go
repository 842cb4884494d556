package engagements

import (
	"context"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/connector/internal/engage"
)

// Limits of a switch.
const (
	// pauseFor is how long new connections wait for a handler at most; vif lets
	// them go by itself then.
	pauseFor = 60 * time.Second
	// drainWithin is how long the old handler gets for what is under way before
	// it is sent its stop signal.
	drainWithin = 3 * time.Second
	drainEvery  = 20 * time.Millisecond
)

// Switch serves EngagementSwitch: it accepts another handler for an active
// engagement, or refuses it with the present one untouched.
func (s *Set) Switch(ctx context.Context, req command.SwitchHandler) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Engagement}
	l, err := s.find(command.CloseEngagement{ID: req.Engagement})
	switch {
	case err != nil:
		return accepted, err
	case l == nil:
		return accepted, fault.New(fault.NotFound, "ctl status", "there is no engagement %s", req.Engagement)
	case l.plan.req.Handler == nil:
		return accepted, fault.New(fault.FailedPrecondition, "", "the engagement's handler is its caller's own: there is none to take the place of")
	}
	if err := l.reserveSwitch(); err != nil {
		return accepted, err
	}
	checked, err := bus.Call(ctx, l.w.Bus, command.HandlerCheck, "", command.CheckHandler{
		Connection: l.plan.conn.ID, Engagement: req.Engagement, Again: true, Handler: req.Handler, Name: l.plan.handlerName, Ports: l.plan.ports,
	})
	l.mu.Lock()
	if err != nil {
		l.switching = false
		l.mu.Unlock()
		return accepted, err
	}
	l.handler = &req.Handler
	l.mu.Unlock()
	mode := engage.Detached
	if req.Handler.Attach {
		mode = engage.Attach
	}
	l.put(engage.Input{On: engage.SwitchAsked, Image: checked.Image, Mode: mode})
	return accepted, nil
}

// reserveSwitch lets one switch in at a time.
func (l *Live) reserveSwitch() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch st := l.state.Stage; {
	case l.switching:
		return fault.New(fault.FailedPrecondition, "", "another handler is taking the place already")
	case st != engage.Active && st != engage.Vacant:
		return fault.New(fault.FailedPrecondition, "ctl status", "the engagement is not active, it is %s", st.Phase())
	}
	l.switching = true
	return nil
}

// current is the handler that is to be created.
func (l *Live) current() command.Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.handler
}

// pause makes new connections wait, and lets what is under way end.
func (l *Live) pause(ctx context.Context) error {
	for limit := time.Now().Add(drainWithin); ; {
		p, err := bus.Call(ctx, l.w.Bus, command.EngagePause, l.plan.conn.ID, command.PauseEngagement{
			Engagement: l.plan.req.ID, Millis: pauseFor.Milliseconds(),
		})
		if err != nil || p.Busy == 0 || time.Now().After(limit) {
			return err
		}
		select {
		case <-time.After(drainEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stopOld stops the handler that there is, and returns when nothing is left of it.
func (l *Live) stopOld(ctx context.Context) error {
	for {
		rep, err := bus.Call(ctx, l.w.Bus, command.HandlerStop, "", command.EngagementRef{Engagement: l.plan.req.ID})
		if err != nil || rep.Already {
			return err
		}
		select {
		case <-time.After(drainEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle waits until the failure of a switch has been taken note of, so that
// what else belongs to it is not done.
func (l *Live) settle(t task) {
	for l.snapshot().Generation == t.generation && l.forward.Err() == nil {
		select {
		case <-time.After(time.Millisecond):
		case <-l.forward.Done():
		}
	}
}
