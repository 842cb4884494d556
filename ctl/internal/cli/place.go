package cli

import (
	"context"
	"io"
	"os"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/workspace"

	"github.com/docker/docker/client"
)

// place is where the services run: in containers of a Docker Engine.
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
	Close()
}

var _ place = (*workspace.Workspace)(nil)

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

// join joins the services; if they are not up, that is a fault with a hint.
func (a *App) join(ctx context.Context) (*session, error) {
	at, err := a.containers(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := at.Connect(ctx, answerWithin)
	if err != nil {
		at.Close()
		return nil, err
	}
	state, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
	if err != nil {
		conn.Close()
		at.Close()
		return nil, err
	}
	return &session{at, conn, state}, nil
}

func (s *session) close() {
	s.conn.Close()
	s.at.Close()
}
