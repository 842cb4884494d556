// Package cluster creates, repairs, fills and removes the one devcluster of a
// container engine: a container, a volume with all of its state and a network,
// every one of them named berth-devcluster and labelled berth.dev/devcluster=true.
//
// The container can be thrown away at any time: the volume holds the state, and
// a new container around it is the same cluster. Callers hold the cache's lock,
// so one process at a time changes anything.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"berth.dev/deploy/devcluster/engine"
)

const (
	// Name is the name of the container, the volume and the network.
	Name  = "berth-devcluster"
	label = "berth.dev/devcluster=true"
)

// container is what `docker inspect` says of the node's container.
type container struct {
	exists  bool
	running bool
	image   string // as it was asked for
	port    string // the API's published port
}

func inspect(ctx context.Context) (container, error) {
	out, err := engine.Run(ctx, "container", "inspect", Name)
	if engine.NotFound(err) {
		return container{}, nil
	}
	if err != nil {
		return container{}, err
	}
	return parseInspect(out)
}

func parseInspect(out string) (container, error) {
	var list []struct {
		State  struct{ Running bool }
		Config struct{ Image string }
		// The wish rather than the fact in NetworkSettings: a stopped
		// container has no ports.
		HostConfig struct {
			PortBindings map[string][]struct{ HostPort string }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		return container{}, fmt.Errorf("read docker inspect %s: %d objects: %w", Name, len(list), err)
	}
	c := container{exists: true, running: list[0].State.Running, image: list[0].Config.Image}
	if b := list[0].HostConfig.PortBindings["6443/tcp"]; len(b) > 0 {
		c.port = b[0].HostPort
	}
	return c, nil
}

// Down removes the cluster and all of its state. The caches stay.
func Down(ctx context.Context, say func(format string, args ...any)) error {
	for _, step := range []struct {
		what string
		args []string
	}{
		{"container", []string{"container", "rm", "--force", "--volumes", Name}},
		{"volume", []string{"volume", "rm", Name}},
		{"network", []string{"network", "rm", Name}},
	} {
		if step.what == "network" {
			if err := disconnectAll(ctx, say); err != nil {
				return err
			}
		}
		_, err := engine.Run(ctx, step.args...)
		if engine.NotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", step.what, err)
		}
		say("removed %s %s", step.what, Name)
	}
	return nil
}

// disconnectAll takes foreign containers off the network, which could not be
// removed otherwise. They go on running.
func disconnectAll(ctx context.Context, say func(format string, args ...any)) error {
	out, err := engine.Run(ctx, "network", "inspect", "--format", "{{range .Containers}}{{.Name}} {{end}}", Name)
	if engine.NotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, other := range strings.Fields(out) {
		if _, err := engine.Run(ctx, "network", "disconnect", "--force", Name, other); err != nil {
			return err
		}
		say("took container %s off the network", other)
	}
	return nil
}
