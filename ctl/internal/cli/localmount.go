package cli

import (
	"context"
	"path"
	"strings"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/hostmount"
)

// localMount is the remote volumes on this machine, for a local command.
type localMount struct {
	app   *App
	asked bool // --mount was given: without them the command does not run
	child *hostmount.Mount
	done  bool
}

// mountHere gets ready to mount, before the cluster is touched: what is missing is
// an error if the user asked for mounts, and else a line.
func (h *handling) mountHere(ctx context.Context, req *command.OpenEngagement, f *engageFlags) (*localMount, error) {
	m := &localMount{app: h.app, asked: f.mount != "" || f.mountTime != 0}
	if f.mount == "false" {
		return m, nil
	}
	dir, readOnly := strings.CutSuffix(f.mount, ":ro")
	if dir = path.Clean(dir); f.mount == "" || dir == "true" {
		dir = hostmount.Fresh()
	}
	var err error
	if m.child, err = h.startMount(ctx, dir); err != nil {
		return m, m.without(err)
	}
	req.VolumesPin, req.Mount = m.child.Pin, dir
	if readOnly {
		req.Mount += ":ro"
	}
	return m, nil
}

func (h *handling) startMount(ctx context.Context, dir string) (*hostmount.Mount, error) {
	if err := hostmount.Check(); err != nil {
		return nil, err
	}
	program, err := h.s.at.Telemount(ctx, h.daemon)
	if err != nil {
		return nil, err
	}
	return hostmount.Start(program, dir)
}

// without goes on without the mounts, unless the user asked for them.
func (m *localMount) without(why error) error {
	m.close()
	if m.asked {
		return why
	}
	m.app.print.Notice("ctl: the command is without the remote volumes: %s", fault.From(why).Message)
	return nil
}

// mount mounts what the engaged container has.
func (m *localMount) mount(ctx context.Context, v *command.RemoteVolumes) error {
	switch {
	case m.child == nil:
		return nil
	case v == nil:
		return m.without(fault.New(fault.Unavailable, "ctl quit --all", "connector does not say where the volumes are: it is of another version"))
	}
	if err := m.child.Mount(ctx, *v); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return m.without(err)
	}
	m.done = true
	m.app.print.Progress("  volumes                     %d below %s (BERTH_ROOT), until the command ends", len(v.Mounts), m.child.Dir)
	return nil
}

func (m *localMount) mounted() bool { return m.done }

// tell says so when the volumes go while the command runs.
func (m *localMount) tell(ran <-chan struct{}) {
	if !m.done {
		return
	}
	select {
	case <-m.child.Lost():
		m.app.print.Notice("ctl: the volumes below %s are gone: what mounted them has been killed; they come back with the next run of this command", m.child.Dir)
	case <-ran:
	}
}

// close unmounts.
func (m *localMount) close() {
	if m.child != nil {
		m.child.Close()
	}
}

// sweepMounts removes what a crash left mounted on this machine.
func (a *App) sweepMounts() error {
	gone, err := hostmount.Sweep()
	for _, d := range gone {
		a.print.Result("removed the mount %s", d)
	}
	return err
}
