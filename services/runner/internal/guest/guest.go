// Package guest creates the containers on a connection's network that are no
// handlers: ctl curl's and ctl docker-run's.
//
// Runner only creates them; the caller attaches and starts them through the
// engine, so that terminal, signals and exit code are Docker's own. They end
// with the connection, whose network is all that they are for.
//
// Who removes them after a kill -9: the engine when they end (AutoRemove); a
// sweep removes those of an unknown connection, and those that nobody started.
package guest

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/handler"

	cerrdefs "github.com/containerd/errdefs"
)

// Components are what may be created.
func Components() []string { return []string{engine.Curl, engine.DockerRun} }

// Maker serves ContainerCreate.
type Maker struct{ Engine *engine.Engine }

// Create creates a container; no image means Berth's own.
func (m Maker) Create(ctx context.Context, req command.CreateContainer) (command.CreatedContainer, error) {
	var none command.CreatedContainer
	if !slices.Contains(Components(), req.Component) {
		return none, fault.New(fault.InvalidArgument, "", "component %q is not one of %s", req.Component, strings.Join(Components(), ", "))
	}
	if !subject.Valid(req.Connection) {
		return none, fault.New(fault.InvalidArgument, "", "%q is not the id of a connection", req.Connection)
	}
	p, err := handler.NewPlan(req.Handler, "berth-"+req.Component+"-"+strings.ToLower(rand.Text()[:8]))
	if err != nil {
		return none, err
	}
	if p.Config.Image == "" {
		p.Config.Image = m.Engine.Image
	}
	if _, err := m.Engine.ImageID(ctx, p.Config.Image); err != nil {
		return none, err
	}
	daemon, err := m.Engine.DaemonOf(ctx, req.Connection)
	if err != nil {
		return none, err
	}
	p.Join(daemon)
	p.Config.Labels = m.Engine.Labels(req.Component, req.Connection, "", maps.Clone(p.Config.Labels))
	if h, err := m.Engine.Holder(ctx, p.Name); err != nil {
		return none, err
	} else if h != nil && h.Ours && !h.Alive {
		if err := m.Engine.Remove(ctx, h.ID); err != nil {
			return none, err
		}
	} else if h != nil {
		return none, h.Conflict(p.Name, "docker rm -f "+p.Name)
	}
	c, err := m.Engine.API.ContainerCreate(ctx, p.Config, p.Host, nil, p.Platform, p.Name)
	if cerrdefs.IsConflict(err) {
		return none, fault.New(fault.AlreadyExists, "docker rm -f "+p.Name, "create container %s: %s", p.Name, engine.Message(err))
	}
	if err != nil {
		return none, engine.Fault(err, "create container %s", p.Name)
	}
	return command.CreatedContainer{ContainerID: c.ID, Warnings: c.Warnings}, nil
}

// End stops and removes the containers of a connection that has ended.
func (m Maker) End(ctx context.Context, connection string, limit time.Duration) error {
	for _, component := range Components() {
		list, err := m.Engine.List(ctx, engine.Is(engine.LabelComponent, component), engine.Is(engine.LabelConnection, connection))
		if err != nil {
			return err
		}
		for _, c := range list {
			if err := m.Engine.Stop(ctx, c.ID, limit); err != nil {
				return err
			}
			if err := m.Engine.Remove(ctx, c.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
