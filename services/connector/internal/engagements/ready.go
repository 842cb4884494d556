package engagements

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/connector/internal/engage"
)

// How often a handler that starts is looked at: its ports by vif, its health by
// the engine, which itself looks once a second at most.
const (
	probeEvery  = 50 * time.Millisecond
	healthEvery = 250 * time.Millisecond
)

// awaitReady returns when the handler is ready for traffic, and by what it was
// told. Until then the workload's own pods answer. It waits as long as the
// handler runs, unless the request has a limit: a container with a shell in it,
// in which the server is started by hand, is nobody's mistake.
func (l *Live) awaitReady(ctx context.Context, generation int) (by string, err error) {
	if ms := l.plan.req.WaitMillis; ms > 0 {
		limit := time.Duration(ms) * time.Millisecond
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("in %v", limit))
		defer cancel()
	}
	by = waitOf(l.plan.req)
	last := "it has not been looked at"
	for {
		if l.snapshot().Generation != generation {
			return by, errStale
		}
		what, err := l.missing(ctx, &by)
		if err != nil && fault.CodeOf(err) != fault.Unavailable {
			return by, err
		}
		if err == nil && what == "" {
			return by, nil
		}
		switch {
		case err == nil:
			last = what
		case ctx.Err() == nil: // not only the limit's own doing
			last = err.Error()
		}
		every := probeEvery
		if by == command.WaitHealthy {
			every = healthEvery
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.Canceled) {
				return by, ctx.Err()
			}
			return by, fault.New(fault.FailedPrecondition, "--wait none", "the handler is not ready %v: %s; no traffic went to it", context.Cause(ctx), last)
		}
	}
}

// waitOf is what the request waits for.
func waitOf(req command.OpenEngagement) string {
	switch {
	case req.Wait != "":
		return req.Wait
	case req.Handler != nil:
		return command.WaitListening
	}
	return command.WaitNone
}

// missing says what the handler lacks, "" for nothing. An image without
// HEALTHCHECK is healthy by its ports: by is changed then.
func (l *Live) missing(ctx context.Context, by *string) (string, error) {
	if *by == command.WaitHealthy {
		h, err := bus.Call(ctx, l.w.Bus, command.HandlerHealth, "", command.EngagementRef{Engagement: l.plan.req.ID})
		switch {
		case err != nil:
			return "", err
		case h.Health == "unhealthy":
			return "", fault.New(fault.FailedPrecondition, "docker run IMAGE", "the handler is unhealthy, its image's HEALTHCHECK says; no traffic went to it")
		case h.Health == "":
			*by = command.WaitListening
		case h.Health != "healthy":
			return "its image's HEALTHCHECK has not succeeded", nil
		default:
			return "", nil
		}
	}
	ports := l.snapshot().Ports
	if *by == command.WaitNone || len(ports) == 0 {
		return "", nil
	}
	rep, err := bus.Call(ctx, l.w.Bus, command.Listening, l.plan.conn.ID, command.AskListening{Address: l.plan.req.Address, Ports: ports, Forwarded: l.plan.forwarded})
	if err != nil || len(rep.Missing) == 0 {
		return "", err
	}
	return "nobody listens on " + addresses(l.plan.req.Address, rep.Missing), nil
}

func addresses(address string, ports []event.Port) string {
	var s []string
	for _, p := range ports {
		s = append(s, fmt.Sprintf("%d/%s", p.Handler, p.Protocol))
	}
	slices.Sort(s)
	return strings.Join(s, ", ") + " at " + address
}

// Environment serves EngagementEnvironment. The values are asked for anew: they
// are kept nowhere.
func (s *Set) Environment(ctx context.Context, req command.EngagementRef) (command.Environment, error) {
	var none command.Environment
	l, err := s.find(command.CloseEngagement{ID: req.Engagement})
	switch {
	case err != nil:
		return none, err
	case l == nil:
		return none, fault.New(fault.NotFound, "ctl status", "there is no engagement %s", req.Engagement)
	}
	switch st := l.snapshot().Stage; {
	case st == engage.Requested:
		return none, fault.New(fault.FailedPrecondition, "", "the workload is not prepared yet: its environment is not known")
	case st.Ending():
		return none, fault.New(fault.FailedPrecondition, "", "the engagement is ending")
	}
	ctx, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	env, err := l.environment(ctx)
	if err != nil {
		return none, err
	}
	mounts, root := l.plan.volumes.env(env)
	own, err := l.forCaller(ctx, env.Volumes)
	return command.Environment{Env: handlerEnv(env, l.plan.spec, mounts, root), Mounts: mounts, Volumes: own}, err
}
