// Package network joins containers of the workspace to Docker networks.
//
// The workspace's own network is made by ctl; which others are needed is
// connector's to know (that of the API server). Nothing has to be undone: an
// endpoint goes with its container.
package network

import (
	"context"
	"strings"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// Joiner serves NetworkJoin.
type Joiner struct{ Engine *engine.Engine }

// Join attaches the workspace's container of a component to a network. One that
// is on it already is fine.
func (j Joiner) Join(ctx context.Context, req command.JoinNetwork) (command.Accepted, error) {
	var none command.Accepted
	if req.Component != engine.Connector {
		return none, fault.New(fault.InvalidArgument, "", "component %q cannot be joined to a network, only %s can", req.Component, engine.Connector)
	}
	n, err := j.Engine.API.NetworkInspect(ctx, req.Network, network.InspectOptions{})
	if cerrdefs.IsNotFound(err) || req.Network == "" {
		return none, fault.New(fault.NotFound, "docker network ls", "the Docker network %q does not exist", req.Network)
	}
	if err != nil {
		return none, engine.Fault(err, "inspect network %s", req.Network)
	}
	list, err := j.Engine.List(ctx, engine.Is(engine.LabelComponent, req.Component))
	if err != nil {
		return none, err
	}
	for _, c := range list {
		if c.State != container.StateRunning {
			continue
		}
		for _, ep := range c.NetworkSettings.Networks {
			if ep.NetworkID == n.ID {
				return command.Accepted{ID: n.ID, Already: true}, nil
			}
		}
		err := j.Engine.API.NetworkConnect(ctx, n.ID, c.ID, nil)
		if err != nil && strings.Contains(err.Error(), "already exists in network") {
			// Another connect was quicker by a moment. The engine has no code of its
			// own for this: it answers 403, as it does to other things.
			return command.Accepted{ID: n.ID, Already: true}, nil
		}
		if err != nil {
			return none, engine.Fault(err, "join %s to network %s", req.Component, req.Network)
		}
		return command.Accepted{ID: n.ID}, nil
	}
	return none, fault.New(fault.NotFound, "ctl status", "no container of this workspace is its %s", req.Component)
}
