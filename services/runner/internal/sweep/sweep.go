// Package sweep removes what has no owner: it compares what the engine holds
// under this workspace's label with what connector knows.
//
// A sweep runs when runner starts and whenever the engine tells that a container
// has ended; there is no timer. It can never take something that is about to be
// used: connector records a connection or engagement before it asks runner for
// a container, and the sweep lists first and asks connector afterwards. Where
// connector does not answer, nothing is proven and nothing is removed.
//
// Undo is the other end: connector is dead for good, so nothing has an owner.
//
// Run is one goroutine; Trigger may be called from anywhere and never blocks.
package sweep

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// Handlers is what a sweep asks of package handler.
type Handlers interface {
	Discard(ctx context.Context, engagement string)
	Forget(known func(engagement string) bool)
	CatchUp(ctx context.Context, known []command.Engagement)
}

// Daemons is what a sweep asks of package daemon.
type Daemons interface {
	Stop(ctx context.Context, req command.StopDaemon) (command.Accepted, error)
}

// Beside is what a sweep asks of packages ports and network.
type Beside interface {
	// Holds reports whether a forwarder's container or volume, by its labels,
	// belongs to somebody.
	Holds(labels map[string]string, known func(engagement string) bool) bool
	// Reconcile leaves networks that were joined for nobody who is left.
	Reconcile(ctx context.Context, known func(engagement string) bool) error
}

// Sweeper removes what has no owner.
type Sweeper struct {
	Engine   *engine.Engine
	Handlers Handlers
	Daemons  Daemons
	Beside   Beside
	// State asks connector for all that it knows.
	State func(ctx context.Context) (command.State, error)
	Log   *slog.Logger

	trigger chan struct{}
}

// unstarted is the age after which a container that its caller was to start is
// taken for forgotten. The caller starts it at once.
const unstarted = time.Minute

// New completes a sweeper.
func New(s Sweeper) *Sweeper {
	s.trigger = make(chan struct{}, 1)
	return &s
}

// Trigger asks for a sweep.
func (s *Sweeper) Trigger() {
	select {
	case s.trigger <- struct{}{}:
	default: // one is due already
	}
}

// Run sweeps on every trigger until ctx ends. The first sweep also states what
// an earlier runner died over; until connector has answered it, it is tried
// again every second.
func (s *Sweeper) Run(ctx context.Context) {
	caughtUp := false
	s.Trigger()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.trigger:
		}
		err := s.Sweep(ctx, !caughtUp)
		caughtUp = caughtUp || err == nil
		switch {
		case err == nil, ctx.Err() != nil:
		case fault.CodeOf(err) == fault.Unavailable: // connector is on its way, or the engine
			s.Log.Debug("nothing was swept yet", "err", err)
			time.AfterFunc(time.Second, s.Trigger)
		default:
			s.Log.Warn("nothing was swept", "err", err)
		}
	}
}

// Sweep is one round.
func (s *Sweeper) Sweep(ctx context.Context, catchUp bool) error {
	has, err := s.list(ctx)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := s.State(ask)
	if err != nil {
		return err
	}
	known := func(engagement string) bool {
		return slices.ContainsFunc(st.Engagements, func(e command.Engagement) bool { return e.ID == engagement })
	}
	connected := func(connection string) bool {
		return slices.ContainsFunc(st.Connections, func(c command.Connection) bool { return c.ID == connection })
	}
	if catchUp {
		s.Handlers.CatchUp(ctx, st.Engagements)
	}
	for _, c := range has.containers {
		why := orphan(c, known, connected)
		if c.Labels[engine.LabelComponent] == engine.Forwarder && why == "" && !s.Beside.Holds(c.Labels, known) {
			why = "what it was for is over"
		}
		if why != "" {
			s.Log.Info("a container without an owner is removed", "container", c.Names, "connection", c.Labels[engine.LabelConnection], "engagement", c.Labels[engine.LabelEngagement], "why", why)
			s.remove(ctx, c)
		}
	}
	s.sweepVolumes(ctx, has, known)
	s.sweepNetworks(ctx, has, connected)
	if err := s.Beside.Reconcile(ctx, known); err != nil {
		s.Log.Warn("networks that were joined for a container could not be left", "err", err)
	}
	s.Handlers.Forget(known)
	return nil
}

// orphan says why a container has no owner; empty if it has one.
func orphan(c container.Summary, known, connected func(string) bool) string {
	switch c.Labels[engine.LabelComponent] {
	case engine.Handler:
		if !known(c.Labels[engine.LabelEngagement]) {
			return "its engagement is over"
		}
		return ""
	case engine.Curl, engine.DockerRun:
		if c.State == container.StateCreated && time.Since(time.Unix(c.Created, 0)) > unstarted {
			return "nobody started it"
		}
	}
	if id := c.Labels[engine.LabelConnection]; id != "" && !connected(id) {
		return "its connection is over"
	}
	return ""
}

func (s *Sweeper) remove(ctx context.Context, c container.Summary) {
	switch c.Labels[engine.LabelComponent] {
	case engine.Handler:
		s.Handlers.Discard(ctx, c.Labels[engine.LabelEngagement])
	case engine.Daemon:
		// Ends it by the record that adoption made, so that its end is stated.
		if a, err := s.Daemons.Stop(ctx, command.StopDaemon{Connection: c.Labels[engine.LabelConnection]}); err == nil && !a.Already {
			return
		}
	}
	if err := s.Engine.Remove(ctx, c.ID); err != nil {
		s.Log.Warn("a container without an owner could not be removed", "container", c.Names, "err", err)
	}
}

func (s *Sweeper) sweepVolumes(ctx context.Context, has inventory, known func(string) bool) {
	for _, v := range has.volumes {
		if v.Labels[engine.LabelComponent] == engine.Forwarder {
			if s.Beside.Holds(v.Labels, known) {
				continue
			}
		} else if id := v.Labels[engine.LabelEngagement]; id == "" || known(id) {
			continue
		}
		if err := s.Engine.API.VolumeRemove(ctx, v.Name, true); err != nil && !cerrdefs.IsNotFound(err) {
			s.Log.Warn("a volume without an owner could not be removed", "volume", v.Name, "err", err)
		}
	}
}

func (s *Sweeper) sweepNetworks(ctx context.Context, has inventory, connected func(string) bool) {
	for _, n := range has.networks {
		if id := n.Labels[engine.LabelConnection]; id == "" || connected(id) {
			continue
		}
		if err := s.Engine.API.NetworkRemove(ctx, n.ID); err != nil && !cerrdefs.IsNotFound(err) {
			s.Log.Warn("a network without an owner could not be removed", "network", n.Name, "err", err)
		}
	}
}
