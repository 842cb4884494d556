package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/hostspace"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/workspace"

	"github.com/docker/docker/client"
)

// place is where the services run: in containers of a Docker Engine
// (workspace.Workspace), or as processes of this machine (hostspace.Space).
type place interface {
	// Ensure makes sure that they run and answer.
	Ensure(ctx context.Context) (*workspace.Up, error)
	// Connect connects to their bus; see workspace.ErrDown.
	Connect(ctx context.Context, limit time.Duration) (*bus.Conn, error)
	// Names are those of all that is there of them; none: they are down.
	Names(ctx context.Context) ([]string, error)
	// Teardown removes all of it, whatever of it is still alive.
	Teardown(ctx context.Context) error
	// TeardownConnection removes what belongs to one connection.
	TeardownConnection(ctx context.Context, id string) error
	// Orphans removes what belongs to a connection that is not known, and names it.
	Orphans(ctx context.Context, known map[string]bool) ([]string, error)
	// Locate makes the target's API server one that the services reach.
	Locate(ctx context.Context, t *kubeconfig.Target) (kubeconfig.Reach, error)
	// Docker is the engine that runs handlers.
	Docker(ctx context.Context) (*engine.Engine, error)
	// Builder is a stream to builder, which is started if it does not run.
	Builder(ctx context.Context, conn *bus.Conn) (io.ReadWriteCloser, error)
	// Telemount is the program that mounts volumes on this machine, for the
	// connection of that daemon.
	Telemount(ctx context.Context, daemon string) ([]byte, error)
	Close()
}

var (
	_ place = (*workspace.Workspace)(nil)
	_ place = (*hostspace.Space)(nil)
)

// containers opens the engine and the workspace on it, whether it is up or not.
func (a *App) containers(ctx context.Context) (*workspace.Workspace, error) {
	e, err := engine.Open(ctx)
	if err != nil {
		return nil, err
	}
	image := a.image
	if image == "" {
		image = os.Getenv("BERTH_IMAGE")
	}
	return workspace.New(e, a.workspace, a.Version, image)
}

// onHost is the workspace of processes of this machine, whether it is up or not.
func (a *App) onHost() (*hostspace.Space, error) { return hostspace.New(a.workspace, a.Version) }

// places are where something may run: on this machine where there is anything of
// it, and on the engine if there is one. An engine that does not answer is an error
// only if nothing is on this machine: that needs no engine.
func (a *App) places(ctx context.Context) ([]place, error) {
	host, err := a.onHost()
	if err != nil {
		return nil, err
	}
	var all []place
	if host.Exists() {
		all = append(all, host)
	}
	ws, err := a.containers(ctx)
	switch {
	case err == nil:
		return append(all, ws), nil
	case (len(all) > 0 || errors.Is(err, engine.ErrAbsent)) && ctx.Err() == nil:
		return all, nil
	}
	return nil, err
}

// anywhere is where connector may run for what needs nothing else: in a container,
// or on this machine where there is no engine.
func (a *App) anywhere(ctx context.Context) (place, error) {
	ws, err := a.containers(ctx)
	if errors.Is(err, engine.ErrAbsent) {
		return a.onHost()
	}
	if err != nil {
		return nil, err
	}
	return ws, nil
}

// answerWithin is how long a connector that runs may take to answer.
const answerWithin = 5 * time.Second

// session is the bus of services that are up, and what connector knew at first.
type session struct {
	at    place
	conn  *bus.Conn
	state command.State
}

// docker is the engine's API, for handlers in containers.
func (s *session) docker(ctx context.Context) (client.APIClient, error) {
	e, err := s.at.Docker(ctx)
	if err != nil {
		return nil, err
	}
	return e.API, nil
}

// join joins the services that have the connection to use; if none are up, that is
// a fault with a hint.
func (a *App) join(ctx context.Context) (*session, error) {
	all, err := a.sessions(ctx)
	if err != nil {
		return nil, err
	}
	mine, err := a.pick(all)
	for _, s := range all {
		if s != mine {
			s.close()
		}
	}
	return mine, err
}

// sessions are those of all services that are up. That none are is an error.
func (a *App) sessions(ctx context.Context) ([]*session, error) {
	places, err := a.places(ctx)
	if err != nil {
		return nil, err
	}
	var all []*session
	var down error = fault.New(fault.FailedPrecondition, "ctl connect", "not connected")
	for _, at := range places {
		conn, state, err := a.ask(ctx, at)
		if err != nil {
			at.Close()
			if len(places) == 1 || fault.CodeOf(err) != fault.FailedPrecondition {
				down = err // more than that it is down
			}
			continue
		}
		all = append(all, &session{at, conn, state})
	}
	if len(all) == 0 {
		return nil, down
	}
	return all, nil
}

// pick is the session with the connection to use. Where only one has any, that is
// meant; an ambiguous choice is wrong usage that lists what there is.
func (a *App) pick(all []*session) (*session, error) {
	if len(all) == 1 {
		return all[0], nil
	}
	var both []command.Connection
	var with []*session
	for _, s := range all {
		both = append(both, s.state.Connections...)
		if len(s.state.Connections) > 0 {
			with = append(with, s)
		}
	}
	if len(with) == 0 {
		return all[0], nil
	}
	if len(with) == 1 && a.use == "" {
		return with[0], nil
	}
	rec, err := choose(both, a.use)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(with, func(s *session) bool {
		return slices.ContainsFunc(s.state.Connections, func(c command.Connection) bool { return c.ID == rec.ID })
	})
	return with[i], nil
}

func (s *session) close() {
	s.conn.Close()
	s.at.Close()
}
