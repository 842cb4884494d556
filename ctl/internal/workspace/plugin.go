package workspace

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/bus/fault"
	"berth.dev/deploy/plugin"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
)

// The volume plugin is the engine's: runner installs it, and the last workspace
// takes it along. A socket plugin (a container) stays, see runner's volplugin.

func (w *Workspace) pluginEngine() plugin.Engine {
	e, _ := plugin.Of(w.Engine.API.HTTPClient(), w.Engine.API.DaemonHost())
	return e
}

// VolumePlugin says what the engine has of the volume plugin, for people; "" is
// nothing.
func (w *Workspace) VolumePlugin(ctx context.Context) (string, error) {
	s, err := w.pluginEngine().State(ctx)
	if err == nil && s.Installed {
		if !s.Enabled {
			return "", fault.New(fault.FailedPrecondition, "docker plugin rm -f "+plugin.Name, "the managed plugin %s is installed but not enabled", plugin.Name)
		}
		return fmt.Sprintf("managed plugin %s, version %s", plugin.Name, s.Version), nil
	}
	c, cerr := w.socketPlugin(ctx)
	switch {
	case cerr == nil && c != nil && c.State == container.StateRunning:
		return "socket plugin in the container " + socketPlugin + ", version " + c.Labels[LabelVersion], nil
	case err != nil:
		return "", fault.New(fault.FailedPrecondition, "ctl doctor", "the engine takes no managed plugins (%v), and no socket plugin runs", err)
	}
	return "", nil
}

// socketPlugin names the container of the socket plugin, and the volume with its
// mount points.
const socketPlugin = "berth-telemount"

// socketPlugin is the container of the socket plugin; nil: there is none.
func (w *Workspace) socketPlugin(ctx context.Context) (*container.Summary, error) {
	list, err := w.Engine.API.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", LabelComponent+"=telemount"))})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return &list[0], nil
}

// PluginStays says why the volume plugin stays when the last workspace has gone;
// "" if it does not.
func (w *Workspace) PluginStays(ctx context.Context) string {
	c, err := w.socketPlugin(ctx)
	if err != nil || c == nil {
		return ""
	}
	if n, err := w.runners(ctx); err != nil || n > 0 {
		return ""
	}
	return "the container " + socketPlugin + " stays, the volume plugin of an engine that takes no managed ones: without it each `docker volume ls` of an engine that has known it takes 15 s, until that is restarted. It is removed by: ctl gc --plugin"
}

// RemovePlugin removes the volume plugin, the socket plugin too, if no workspace is
// left that may need it. restart: the engine is to be restarted.
func (w *Workspace) RemovePlugin(ctx context.Context) (restart bool, err error) {
	runners, err := w.runners(ctx)
	if err != nil {
		return false, err
	}
	if runners > 0 {
		return false, fault.New(fault.FailedPrecondition, "ctl quit --all", "the volume plugin is in use: a connection is up on this engine")
	}
	if err := w.removePlugin(ctx); err != nil {
		return false, err
	}
	c, err := w.socketPlugin(ctx)
	if err != nil || c == nil {
		return false, err
	}
	if c.State == container.StateRunning {
		v, err := w.Engine.API.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("driver", "telemount"))})
		if err != nil {
			return false, fmt.Errorf("list volumes: %w", err)
		}
		if len(v.Volumes) > 0 {
			return false, fault.New(fault.FailedPrecondition, "docker volume rm "+v.Volumes[0].Name, "the volume plugin is in use: the engine has %d volumes of it", len(v.Volumes))
		}
	}
	// By its own end it unmounts, and takes its socket away.
	seconds := 5
	if err := w.Engine.API.ContainerStop(ctx, c.ID, container.StopOptions{Timeout: &seconds}); err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("stop the container %s: %w", socketPlugin, err)
	}
	if err := w.Engine.API.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
		return true, fmt.Errorf("remove the container %s: %w", socketPlugin, err)
	}
	if err := w.Engine.API.VolumeRemove(ctx, socketPlugin, true); err != nil && !errdefs.IsNotFound(err) {
		return true, fmt.Errorf("remove the volume %s: %w", socketPlugin, err)
	}
	return true, nil
}

// runners is the number of workspaces that are up.
func (w *Workspace) runners(ctx context.Context) (int, error) {
	list, err := w.Engine.API.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", LabelComponent+"=runner"))})
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	return len(list), nil
}

// removePlugin removes the managed plugin if no workspace is left that may need
// it and none of its volumes.
func (w *Workspace) removePlugin(ctx context.Context) error {
	s, err := w.pluginEngine().State(ctx)
	if err != nil || !s.Installed {
		return nil // none, or an engine that has no plugins
	}
	if n, err := w.runners(ctx); err != nil || n > 0 {
		return err
	}
	if err := w.pluginEngine().RemoveUnused(ctx); err != nil && !errors.Is(err, plugin.ErrInUse) {
		return err
	}
	return nil
}
