package workspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-connections/nat"
	"golang.org/x/sync/errgroup"
)

const socketPath = "/var/run/docker.sock"

// undoTimeout bounds what is undone after a failure.
const undoTimeout = 15 * time.Second

// undo is what has been created, to be removed in reverse.
type undo []func(context.Context) error

func (u undo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, f := range slices.Backward(u) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

// image makes sure of the image; nothing is ever pulled.
func (w *Workspace) image(ctx context.Context) (image.InspectResponse, error) {
	in, err := w.Engine.API.ImageInspect(ctx, w.Image)
	switch {
	case errdefs.IsNotFound(err):
		return in, &fault.Error{Code: fault.FailedPrecondition, Stage: "image", Hint: "make images",
			Message: "the Docker Engine has no image " + w.Image + ", and Berth pulls none by itself"}
	case err != nil:
		return in, &fault.Error{Code: fault.Unavailable, Stage: "image", Hint: "docker image inspect " + w.Image, Message: "look at the image " + w.Image + ": " + err.Error()}
	}
	return in, nil
}

// errRaced says that another ctl creates the workspace at this moment.
var errRaced = errors.New("another ctl is creating the workspace")

// create makes a workspace where there is none. When it fails, all that it made
// is gone again.
func (w *Workspace) create(ctx context.Context) (up *Up, err error) {
	var made undo
	defer func() {
		if err != nil {
			err = errors.Join(err, made.run(ctx))
		}
	}()
	cFiles, rFiles, cfg, err := w.keys()
	if err != nil {
		return nil, err
	}
	// The name is the lock: from here on this ctl, and no other, makes the rest.
	// The network too, which engines let two make under one name; they ask for it
	// when the container starts.
	cID, err := w.createContainer(ctx, subject.Connector)
	if errdefs.IsConflict(err) {
		return nil, errRaced
	}
	if err != nil {
		return nil, err
	}
	made = append(made, func(ctx context.Context) error { return w.remove(ctx, cID, 0) })
	netID, created, err := w.ensureNetwork(ctx)
	if err != nil {
		return nil, err
	}
	if created { // last of all: containers are on it
		made = slices.Insert(made, 0, func(ctx context.Context) error { return w.removeUnused(ctx, netID, cID) })
	}

	var cLog, rLog *tailLog
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		cLog, err = w.start(gctx, cID, cFiles)
		return err
	})
	var rID string
	group.Go(func() (err error) {
		if rID, err = w.createContainer(gctx, subject.Runner); err != nil {
			return err
		}
		rLog, err = w.start(gctx, rID, rFiles)
		return err
	})
	err = group.Wait()
	if rID != "" {
		made = append(made, func(ctx context.Context) error { return w.remove(ctx, rID, 0) })
	}
	defer cLog.close()
	defer rLog.close()
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %v", readyTimeout))
	defer cancel()
	conn, err := w.dial(ready, cID, cfg, readyTimeout)
	if err != nil {
		return nil, died(w.container(subject.Connector), err, cLog)
	}
	state, err := Answers(ready, conn)
	if err != nil {
		conn.Close()
		if strings.HasPrefix(err.Error(), "runner") {
			return nil, died(w.container(subject.Runner), err, rLog)
		}
		return nil, died(w.container(subject.Connector), err, cLog)
	}
	return &Up{Conn: conn, State: state, Created: true}, nil
}

// recreateRunner starts a runner for a connector that lost its own.
func (w *Workspace) recreateRunner(ctx context.Context, connector string) error {
	cfg, err := w.fetch(ctx, connector, runnerConfigFile)
	if err != nil {
		return fmt.Errorf("read runner's key from the connector's container: %w", err)
	}
	if _, _, err := w.ensureNetwork(ctx); err != nil {
		return err
	}
	id, err := w.createContainer(ctx, subject.Runner)
	if errdefs.IsConflict(err) {
		return errRaced
	}
	if err != nil {
		return err
	}
	log, err := w.start(ctx, id, files{bus.ConfigFile: cfg})
	defer log.close()
	if err != nil {
		return errors.Join(err, undo{func(ctx context.Context) error { return w.remove(ctx, id, 0) }}.run(ctx))
	}
	return nil
}

// createContainer creates connector or runner, without starting it.
func (w *Workspace) createContainer(ctx context.Context, s subject.Service) (string, error) {
	cfg := &container.Config{
		Image: w.Image, Cmd: []string{string(s), bus.FilesArg}, Labels: w.labels(s),
		// Connector's stays open for those who introduce themselves.
		OpenStdin: true, StdinOnce: s != subject.Connector,
		Env: []string{"BERTH_WORKSPACE=" + w.Name, "BERTH_NETWORK=" + w.Network()},
	}
	host := &container.HostConfig{
		AutoRemove:  true,
		NetworkMode: container.NetworkMode(w.Network()),
		CapDrop:     []string{"ALL"},
		SecurityOpt: []string{"no-new-privileges"},
	}
	switch s {
	case subject.Connector:
		port := nat.Port(BusPort + "/tcp")
		cfg.ExposedPorts = nat.PortSet{port: struct{}{}}
		host.PortBindings = nat.PortMap{port: []nat.PortBinding{{HostIP: "127.0.0.1", HostPort: w.freePort()}}}
	case subject.Runner, subject.Builder:
		source, err := w.engineSocket(ctx)
		if err != nil {
			return "", err
		}
		host.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: source, Target: socketPath}}
	}
	// Not cut short by a Ctrl-C: the engine would create it all the same, and
	// nobody would know its ID.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	r, err := w.Engine.API.ContainerCreate(whole, cfg, host, nil, nil, w.container(s))
	if err != nil {
		return "", fmt.Errorf("create the container %s: %w", w.container(s), err)
	}
	return r.ID, nil
}

// engineSocket is the path of the engine's socket on the engine's own machine.
func (w *Workspace) engineSocket(ctx context.Context) (string, error) {
	p := w.Engine.Socket()
	if p == "" || p == socketPath || p == "/run/docker.sock" {
		return socketPath, nil
	}
	info, err := w.Engine.API.Info(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the engine what it is: %w", err)
	}
	if strings.Contains(info.OperatingSystem, "Docker Desktop") {
		return socketPath, nil // the socket here leads into the engine's virtual machine
	}
	return p, nil
}

// start gives the container its files, listens to what it says, and starts it.
func (w *Workspace) start(ctx context.Context, id string, f files) (*tailLog, error) {
	// Attached before the start: a container that removes itself takes its log along.
	log, err := w.listen(ctx, id, f)
	if err != nil {
		return nil, err
	}
	if err := w.Engine.API.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return log, fmt.Errorf("start the container: %w", err)
	}
	return log, nil
}

func died(name string, err error, log *tailLog) error {
	msg := fmt.Sprintf("the container %s did not become ready: %v", name, err)
	if last := log.String(); last != "" {
		msg += "; its last lines:\n" + last
	}
	return fault.New(fault.Unavailable, "ctl quit --all", "%s", msg)
}

// HasImage is nil if the image is there.
func (w *Workspace) HasImage(ctx context.Context) error {
	_, err := w.image(ctx)
	return err
}
