package workspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/fault"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"golang.org/x/sync/errgroup"
)

// teardownTimeout bounds all of Teardown: containers that take part in their
// removal get graceOf, and an engine that is busy needs its time.
const teardownTimeout = 45 * time.Second

// order is that in which containers are removed, by component: first what runs
// in a daemon's network, last what tells the others what to do. Components that
// are not named are helpers and go with the first.
var order = []string{"handler", "daemon", "runner", "connector"}

// graceOf is how long a component gets to end by itself. A handler may have work
// to finish; connector and runner have been asked before.
func graceOf(component string) time.Duration {
	switch component {
	case "handler":
		return 5 * time.Second
	case "connector", "runner", "daemon":
		return 2 * time.Second
	}
	return 0
}

// Leftovers is what carries the workspace's label.
type Leftovers struct {
	Containers []container.Summary
	Volumes    []string
	Networks   []network.Summary
}

// Empty reports whether nothing is left.
func (l Leftovers) Empty() bool { return len(l.Containers)+len(l.Volumes)+len(l.Networks) == 0 }

// Names are all of them for people, as container/name.
func (l Leftovers) Names() []string {
	var n []string
	for _, c := range l.Containers {
		n = append(n, "container/"+strings.TrimPrefix(append(c.Names, c.ID)[0], "/"))
	}
	for _, v := range l.Volumes {
		n = append(n, "volume/"+v)
	}
	for _, x := range l.Networks {
		n = append(n, "network/"+x.Name)
	}
	return n
}

// Leftovers lists what carries the workspace's label and, where more labels are
// given, those too.
func (w *Workspace) Leftovers(ctx context.Context, more ...string) (Leftovers, error) {
	var l Leftovers
	f := w.ours(more...)
	var err error
	if l.Containers, err = w.Engine.API.ContainerList(ctx, container.ListOptions{All: true, Filters: f}); err != nil {
		return l, fmt.Errorf("list containers: %w", err)
	}
	vols, err := w.Engine.API.VolumeList(ctx, volume.ListOptions{Filters: f})
	if err != nil {
		return l, fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range vols.Volumes {
		l.Volumes = append(l.Volumes, v.Name)
	}
	if l.Networks, err = w.Engine.API.NetworkList(ctx, network.ListOptions{Filters: f}); err != nil {
		return l, fmt.Errorf("list networks: %w", err)
	}
	return l, nil
}

// Teardown removes everything of the workspace by label, whatever of it is still
// alive, and returns when nothing is left. It is idempotent, and harmless beside
// another Teardown. The volume plugin goes with the last workspace of the engine.
func (w *Workspace) Teardown(ctx context.Context) error {
	if err := w.teardown(ctx); err != nil {
		return err
	}
	if err := w.removePlugin(ctx); err != nil {
		return fault.New(fault.Unavailable, "docker plugin rm -f telemount", "remove the volume plugin: %v", err)
	}
	return nil
}

// TeardownConnection removes what belongs to one connection.
func (w *Workspace) TeardownConnection(ctx context.Context, id string) error {
	return w.teardown(ctx, LabelConnection+"="+id)
}

func (w *Workspace) teardown(ctx context.Context, more ...string) error {
	ctx, cancel := context.WithTimeout(ctx, teardownTimeout)
	defer cancel()
	var last error
	var pace pacer
	for {
		l, err := w.Leftovers(ctx, more...)
		if err != nil {
			return fault.New(fault.Unavailable, "docker ps -a", "look for what is left: %v", errors.Join(err, last))
		}
		if l.Empty() {
			return nil
		}
		// Again until nothing is left: a runner that is still alive may create
		// something while it is being stopped, and the engine removes in its own time.
		last = w.removeAll(ctx, l, graceOf)
		if err := pace.pause(ctx); err != nil {
			return fault.New(fault.Unavailable, "docker rm -f; ctl gc", "not removed within %v: %s: %v", teardownTimeout, strings.Join(l.Names(), ", "), last)
		}
	}
}

func (w *Workspace) removeAll(ctx context.Context, l Leftovers, grace func(component string) time.Duration) error {
	rank := func(c container.Summary) int { return max(0, slices.Index(order, c.Labels[LabelComponent])) }
	var errs []error
	for r := range order {
		group := new(errgroup.Group)
		for _, c := range l.Containers {
			if rank(c) == r {
				group.Go(func() error { return w.remove(ctx, c.ID, grace(c.Labels[LabelComponent])) })
			}
		}
		errs = append(errs, group.Wait())
	}
	for _, v := range l.Volumes {
		if err := w.Engine.API.VolumeRemove(ctx, v, true); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove the volume %s: %w", v, err))
		}
	}
	for _, n := range l.Networks {
		errs = append(errs, w.removeNetwork(ctx, n.ID))
	}
	return errors.Join(errs...)
}

// sweep removes the containers and volumes of a workspace that has no connector.
// The network stays: another ctl may have made it just now.
func (w *Workspace) sweep(ctx context.Context) error {
	l, err := w.Leftovers(ctx)
	if err != nil {
		return err
	}
	l.Networks = nil
	if slices.ContainsFunc(l.Containers, func(c container.Summary) bool { return c.Labels[LabelComponent] == "connector" }) {
		return errRaced
	}
	// Without a bus nothing of Berth's own has anything left to do in order.
	return w.removeAll(ctx, l, func(component string) time.Duration {
		if component == "handler" {
			return graceOf(component)
		}
		return 0
	})
}

// remove stops a container, gives it grace to end, and removes it. One that is
// gone, or on its way out, is fine.
func (w *Workspace) remove(ctx context.Context, id string, grace time.Duration) error {
	if grace > 0 {
		seconds := int(grace / time.Second)
		_ = w.Engine.API.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds}) // what does not stop is killed next
	}
	err := w.Engine.API.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	switch {
	case err == nil || errdefs.IsNotFound(err):
		return nil
	case strings.Contains(err.Error(), "already in progress"): // it has ended, and the engine is about to remove it
		removed, failed := w.Engine.API.ContainerWait(ctx, id, container.WaitConditionRemoved)
		select {
		case <-removed:
			return nil
		case err = <-failed:
		}
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
	}
	return fmt.Errorf("remove the container %.12s: %w", id, err)
}

// removeUnused removes a network that was made for a container that has gone. The
// engine takes its time to take that off it; and who came upon the network since
// then keeps it.
func (w *Workspace) removeUnused(ctx context.Context, id, container string) error {
	var pace pacer
	for {
		err := w.Engine.API.NetworkRemove(ctx, id)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		in, ierr := w.Engine.API.NetworkInspect(ctx, id, network.InspectOptions{})
		if ierr == nil {
			for c := range in.Containers {
				if c != container && w.lives(ctx, c) {
					return nil
				}
			}
		}
		if perr := pace.pause(ctx); perr != nil {
			return fmt.Errorf("remove the network %s: %w", id, err)
		}
	}
}

// lives tells whether the container runs.
func (w *Workspace) lives(ctx context.Context, id string) bool {
	in, err := w.Engine.API.ContainerInspect(ctx, id)
	return err == nil && in.State != nil && in.State.Running
}

// removeNetwork removes a network, with whoever of other people's is on it still.
func (w *Workspace) removeNetwork(ctx context.Context, id string) error {
	in, err := w.Engine.API.NetworkInspect(ctx, id, network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		for c := range in.Containers {
			_ = w.Engine.API.NetworkDisconnect(ctx, id, c, true) // the removal tells if it did not help
		}
	}
	if err := w.Engine.API.NetworkRemove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the network %s: %w", id, err)
	}
	return nil
}

// Orphans removes what carries the label of a connection that is not known (the
// connection "" is what belongs to none) and returns the names.
func (w *Workspace) Orphans(ctx context.Context, known map[string]bool) ([]string, error) {
	l, err := w.Leftovers(ctx)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "docker ps -a", "look for what is left: %v", err)
	}
	l.Volumes, l.Networks = nil, nil
	l.Containers = slices.DeleteFunc(l.Containers, func(c container.Summary) bool { return known[c.Labels[LabelConnection]] })
	return l.Names(), w.removeAll(ctx, l, graceOf)
}
