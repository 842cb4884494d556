package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/containerd/errdefs"
)

// Builder is a stream to builder, which is started if it does not run. conn is
// the bus of this workspace, which must be up.
func (w *Workspace) Builder(ctx context.Context, conn *bus.Conn) (io.ReadWriteCloser, error) {
	id, err := w.ensureBuilder(ctx, conn)
	if err != nil {
		return nil, err
	}
	p, err := openPipe(ctx, w.Engine.API, id)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// ensureBuilder makes sure that builder runs, and returns the ID of its
// container. It is started by the first build rather than with the workspace:
// most connections never build, and a first build hides the start behind its
// own preparation.
//
// Two ctl may call it at once: the container's name is the lock.
func (w *Workspace) ensureBuilder(ctx context.Context, conn *bus.Conn) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %v", readyTimeout))
	defer cancel()
	var pace pacer
	for {
		p, err := w.Find(ctx)
		switch {
		case err != nil:
			return "", err
		case p.Connector == nil:
			return "", ErrDown()
		case p.Builder != nil && p.Builder.Running:
			return p.Builder.ID, w.awaitBuilder(ctx, conn, p.Builder.ID)
		case p.Builder != nil:
			// Another ctl is about to start it, or died before it did.
			if started, err := w.awaitStart(ctx, p.Builder.ID); err == nil && !started {
				err = w.remove(ctx, p.Builder.ID, 0)
				if err != nil {
					return "", err
				}
			}
		default:
			id, err := w.startBuilder(ctx, p.Connector.ID)
			if err == nil {
				return id, w.awaitBuilder(ctx, conn, id)
			}
			if !errdefs.IsConflict(err) {
				return "", fault.New(fault.Unavailable, "ctl quit --all", "start the builder: %v", err)
			}
		}
		if err := pace.pause(ctx); err != nil {
			return "", fault.New(fault.Unavailable, "ctl quit --all", "start the builder: %v", err)
		}
	}
}

// startBuilder creates and starts the container; a conflict says that another
// ctl was faster.
func (w *Workspace) startBuilder(ctx context.Context, connector string) (string, error) {
	cfg, err := w.fetch(ctx, connector, builderConfigFile)
	if err != nil {
		return "", fmt.Errorf("read builder's key from the connector's container (was this workspace made by an older ctl?): %w", err)
	}
	if err := w.HasImage(ctx); err != nil {
		return "", err
	}
	id, err := w.createContainer(ctx, subject.Builder)
	if err != nil {
		return "", err
	}
	log, err := w.start(ctx, id, files{bus.ConfigFile: cfg})
	defer log.close()
	if err != nil {
		return "", errors.Join(err, undo{func(ctx context.Context) error { return w.remove(ctx, id, 0) }}.run(ctx))
	}
	return id, nil
}

// awaitBuilder waits until builder shows that it lives.
func (w *Workspace) awaitBuilder(ctx context.Context, conn *bus.Conn, id string) error {
	live := subject.Live(subject.Builder, RunnerPresence)
	var pace pacer
	for {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := conn.NC.RequestWithContext(one, live, nil)
		cancel()
		if err == nil {
			return nil
		}
		if in, ierr := w.Engine.API.ContainerInspect(ctx, id); errdefs.IsNotFound(ierr) || ierr == nil && in.State != nil && !in.State.Running {
			return fault.New(fault.Unavailable, "ctl doctor", "the container %s ended at once", w.container(subject.Builder))
		}
		if perr := pace.pause(ctx); perr != nil {
			return fault.New(fault.Unavailable, "ctl quit --all", "the builder does not answer: %v", err)
		}
	}
}
