// Package guest creates the containers on a connection's network that are no
// handlers: ctl curl's and ctl docker-run's.
//
// Runner only creates them; the caller attaches and starts them through the
// engine, so that terminal, signals and exit code are Docker's own. They end
// with the connection, whose network is all that they are for. What one has
// beside that network (package beside) is there before it is, and is taken back
// when it has ended, by the goroutine that follows it.
//
// Who removes them after a kill -9: the engine when they end (AutoRemove); the
// next runner follows those that live; a sweep removes those of an unknown
// connection, those that nobody started, and what belongs to none that lives.
package guest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/handler"
	"berth.dev/services/runner/internal/owner"

	cerrdefs "github.com/containerd/errdefs"
)

// Components are what may be created.
func Components() []string { return []string{engine.Curl, engine.DockerRun} }

// Maker serves ContainerCreate.
type Maker struct {
	Engine *engine.Engine
	Watch  *engine.Watch
	Beside beside.Holder
	// PortsFree refuses ports on which a handler of the connection listens.
	PortsFree func(connection, engagement string, ports []event.Port) error
	// Go runs f in a goroutine that runner waits for; its context ends after
	// everything has been undone.
	Go  func(f func(context.Context))
	Log *slog.Logger
}

// Create creates a container; no image means Berth's own.
func (m Maker) Create(ctx context.Context, req command.CreateContainer) (command.CreatedContainer, error) {
	var none command.CreatedContainer
	if !slices.Contains(Components(), req.Component) {
		return none, fault.New(fault.InvalidArgument, "", "component %q is not one of %s", req.Component, strings.Join(Components(), ", "))
	}
	if !subject.Valid(req.Connection) {
		return none, fault.New(fault.InvalidArgument, "", "%q is not the id of a connection", req.Connection)
	}
	id := strings.ToLower(rand.Text()[:12])
	p, err := handler.NewPlan(req.Handler, "berth-"+req.Component+"-"+id[:8])
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
	if err := m.freeName(ctx, p.Name); err != nil {
		return none, err
	}
	o := owner.Owner{Connection: req.Connection, Guest: "g-" + id, Name: p.Name}
	want, err := p.Beside(ctx, m.Engine)
	if err != nil {
		return none, err
	}
	if err := m.PortsFree(req.Connection, "", handler.EventPorts(want.Ports)); err != nil {
		return none, err
	}
	has, err := m.Beside.Open(ctx, o, want)
	if err != nil {
		return none, err
	}
	p.Join(daemon)
	labels := has.Labels()
	labels[engine.LabelGuest] = o.Guest
	maps.Copy(p.Config.Labels, labels)
	p.Config.Labels = m.Engine.Labels(req.Component, req.Connection, "", p.Config.Labels)
	c, err := m.Engine.API.ContainerCreate(ctx, p.Config, p.Host, nil, p.Platform, p.Name)
	if err != nil {
		m.Beside.Close(ctx, o)
		if cerrdefs.IsConflict(err) {
			return none, fault.New(fault.AlreadyExists, "docker rm -f "+p.Name, "create container %s: %s", p.Name, engine.Message(err))
		}
		return none, engine.Fault(err, "create container %s", p.Name)
	}
	if len(has.Published)+len(has.Networks) > 0 {
		m.follow(o, c.ID, m.Engine.NextExit)
	}
	return command.CreatedContainer{ContainerID: c.ID, Warnings: c.Warnings, Published: has.Published}, nil
}

// freeName makes sure that a container may get the name: a dead one of ours that
// has it is removed, any other is named.
func (m Maker) freeName(ctx context.Context, name string) error {
	h, err := m.Engine.Holder(ctx, name)
	switch {
	case err != nil || h == nil:
		return err
	case h.Ours && !h.Alive:
		return m.Engine.Remove(ctx, h.ID)
	}
	return h.Conflict(name, "docker rm -f "+name)
}

// follow takes back what a container has beside its network when it has ended,
// or was removed before it had been started.
func (m Maker) follow(o owner.Owner, id string, wait func(context.Context, string) *engine.Waiting) {
	m.Go(func(ctx context.Context) {
		if _, err := wait(ctx, id).Exit(ctx, m.Watch); err != nil {
			return // runner ends, after everything was undone or given up
		}
		m.Log.Info("a container ended", "container", o.Name, "connection", o.Connection)
		m.Beside.Close(ctx, o)
	})
}

// Adopt follows the containers that an earlier runner created. It must have
// returned before commands are served, and come after Beside has adopted.
func (m Maker) Adopt(ctx context.Context) error {
	list, err := m.Engine.List(ctx, engine.Is(engine.LabelComponent, engine.DockerRun))
	if err != nil {
		return err
	}
	owners, _ := owner.Living(list)
	for _, c := range list {
		at := slices.IndexFunc(owners, func(o owner.Owner) bool { return o.Guest == c.Labels[engine.LabelGuest] })
		if at >= 0 && c.Labels[engine.LabelPublished]+c.Labels[engine.LabelNetworks] != "" {
			wait := m.Engine.Ended
			if c.State == "created" {
				wait = m.Engine.NextExit
			}
			m.follow(owners[at], c.ID, wait)
		}
	}
	return nil
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
