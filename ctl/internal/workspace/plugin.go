package workspace

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/bus/fault"
	"berth.dev/deploy/plugin"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
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
	list, lerr := w.Engine.API.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", LabelComponent+"=telemount"))})
	switch {
	case lerr == nil && len(list) > 0:
		return "socket plugin in the container berth-telemount, version " + list[0].Labels[LabelVersion], nil
	case err != nil:
		return "", fault.New(fault.FailedPrecondition, "ctl doctor", "the engine takes no managed plugins (%v), and no socket plugin runs", err)
	}
	return "", nil
}

// removePlugin removes the managed plugin if no workspace is left that may need
// it and none of its volumes.
func (w *Workspace) removePlugin(ctx context.Context) error {
	s, err := w.pluginEngine().State(ctx)
	if err != nil || !s.Installed {
		return nil // none, or an engine that has no plugins
	}
	runners, err := w.Engine.API.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", LabelComponent+"=runner"))})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if len(runners) > 0 {
		return nil
	}
	if err := w.pluginEngine().RemoveUnused(ctx); err != nil && !errors.Is(err, plugin.ErrInUse) {
		return err
	}
	return nil
}
