// Package workspace owns the containers that Berth runs once per Docker engine,
// connector and runner, and the network between them: it finds them, starts what
// is missing, repairs what is half dead, and takes all of it down by label.
//
// It keeps no state. What is there is what the engine says is there: everything
// carries the label berth.dev/workspace. A ctl makes a key for each of its calls, and
// introduces itself through the engine, on the standard input of the connector's
// container. Whoever may use the engine may use the bus; no file lies on the host.
//
// Two ctl may call [Workspace.Ensure] at once. The connector's container name is
// the lock: who creates it makes the rest, who does not waits for it. Creating
// is undone when it fails, in reverse; what a kill -9 leaves between two steps is
// found by the next Ensure, which repairs it, or by [Workspace.Teardown].
package workspace

import (
	"context"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/kubeconfig"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// Labels on everything of Berth's; the same words as in runner.
const (
	LabelWorkspace  = "berth.dev/workspace"
	LabelComponent  = "berth.dev/component"
	LabelVersion    = "berth.dev/version"
	LabelConnection = "berth.dev/connection"
	LabelEngagement = "berth.dev/engagement"
)

// DefaultName is the workspace that is meant where none is named.
const DefaultName = "default"

// BusPort is the bus's port in the connector's container.
const BusPort = "4222"

// Workspace is the workspace of that name on an engine, whether it is up or not.
type Workspace struct {
	Engine  *engine.Engine
	Name    string
	Version string // of this ctl
	Image   string // of what it starts
}

// New is the workspace of that name; empty fields have their defaults.
func New(e *engine.Engine, name, version, image string) (*Workspace, error) {
	if name == "" {
		name = DefaultName
	}
	if !subject.Valid(name) {
		return nil, fault.New(fault.InvalidArgument, "", "%q is no name for a workspace: use a-z, 0-9 and -", name)
	}
	if image == "" {
		image = "berth:" + version
	}
	return &Workspace{Engine: e, Name: name, Version: version, Image: image}, nil
}

// Network is the name of the workspace's Docker network.
func (w *Workspace) Network() string { return strings.TrimSuffix(w.container(""), "-") }

// container is the name of a component's container: berth-connector, and in
// another workspace berth-<workspace>-connector.
func (w *Workspace) container(s subject.Service) string {
	if w.Name == DefaultName {
		return "berth-" + string(s)
	}
	return "berth-" + w.Name + "-" + string(s)
}

func (w *Workspace) labels(s subject.Service) map[string]string {
	l := map[string]string{LabelWorkspace: w.Name, LabelVersion: w.Version}
	if s != "" {
		l[LabelComponent] = string(s)
	}
	return l
}

// ours selects what carries the workspace's label.
func (w *Workspace) ours(more ...string) filters.Args {
	f := filters.NewArgs(filters.Arg("label", LabelWorkspace+"="+w.Name))
	for _, m := range more {
		f.Add("label", m)
	}
	return f
}

// Part is one of the workspace's own containers.
type Part struct {
	ID      string
	Name    string
	Version string
	Image   string
	Running bool
	Created time.Time // by the engine's clock
}

// same reports whether both are the same container in the same state, or neither
// is there.
func (p *Part) same(q *Part) bool {
	return p == q || p != nil && q != nil && p.ID == q.ID && p.Running == q.Running
}

// Parts are the workspace's own containers; nil for one that is not there.
type Parts struct{ Connector, Runner, Builder *Part }

// Find looks for the workspace's own containers.
func (w *Workspace) Find(ctx context.Context) (Parts, error) {
	var p Parts
	list, err := w.Engine.API.ContainerList(ctx, container.ListOptions{All: true, Filters: w.ours()})
	if err != nil {
		return p, fault.New(fault.Unavailable, "docker ps", "list the workspace's containers: %v", err)
	}
	for _, c := range list {
		part := &Part{ID: c.ID, Image: c.Image, Version: c.Labels[LabelVersion], Running: c.State == container.StateRunning, Created: time.Unix(c.Created, 0)}
		if len(c.Names) > 0 {
			part.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		switch c.Labels[LabelComponent] {
		case string(subject.Connector):
			p.Connector = part
		case string(subject.Runner):
			p.Runner = part
		case string(subject.Builder):
			p.Builder = part
		}
	}
	return p, nil
}

// ErrDown is the fault of a workspace that is not up.
func ErrDown() error {
	return fault.New(fault.FailedPrecondition, "ctl connect --docker", "not connected: no workspace runs on this Docker Engine")
}

// Connect connects to the bus of a workspace that is up; see ErrDown. A
// connector that does not answer within limit is an Unavailable fault.
func (w *Workspace) Connect(ctx context.Context, limit time.Duration) (*bus.Conn, error) {
	p, err := w.Find(ctx)
	if err != nil {
		return nil, err
	}
	if p.Connector == nil || !p.Connector.Running {
		return nil, ErrDown()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, engineTimeout, fmt.Errorf("the engine took longer than %v", engineTimeout))
	defer cancel()
	conn, err := w.enter(ctx, p.Connector.ID, limit)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ctl quit --all", "the connector in the container %s does not answer: %v", p.Connector.Name, err)
	}
	return conn, nil
}

// String is the workspace for people.
func (w *Workspace) String() string { return fmt.Sprintf("workspace %s", w.Name) }

// Names are those of all that carries the workspace's label.
func (w *Workspace) Names(ctx context.Context) ([]string, error) {
	l, err := w.Leftovers(ctx)
	return l.Names(), err
}

// Locate makes the target's API server one that containers reach.
func (w *Workspace) Locate(ctx context.Context, t *kubeconfig.Target) (kubeconfig.Reach, error) {
	return t.Locate(ctx, w.Engine.API, w.Engine.Local())
}

// Docker is the engine.
func (w *Workspace) Docker(context.Context) (*engine.Engine, error) { return w.Engine, nil }

// Close closes what was opened for the engine.
func (w *Workspace) Close() { w.Engine.Close() }
