package sweep

import (
	"context"
	"sync"
	"time"

	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

// inventory is what the engine holds under the workspace's label.
type inventory struct {
	containers []container.Summary
	volumes    []*volume.Volume
	networks   []network.Summary
}

func (s *Sweeper) list(ctx context.Context) (has inventory, err error) {
	if has.containers, err = s.Engine.List(ctx); err != nil {
		return has, err
	}
	if has.volumes, err = s.Engine.Volumes(ctx); err != nil {
		return has, err
	}
	has.networks, err = s.Engine.Networks(ctx)
	return has, err
}

// Containers removes every container that belongs to a connection or an
// engagement. What packages handler and daemon stopped is gone already; this
// takes the rest: ctl's guests, and whatever a label says is ours.
func (s *Sweeper) Containers(ctx context.Context) {
	list, err := s.Engine.List(ctx)
	if err != nil {
		s.Log.Error("the workspace's containers could not be listed", "err", err)
		return
	}
	var wg sync.WaitGroup
	for _, c := range list {
		if c.Labels[engine.LabelConnection] == "" && c.Labels[engine.LabelEngagement] == "" {
			continue
		}
		wg.Go(func() {
			if err := s.Engine.Remove(ctx, c.ID); err != nil {
				s.Log.Error("a container is left", "container", c.Names, "err", err)
			}
		})
	}
	wg.Wait()
}

// Rest removes the workspace's volumes and networks once its containers are
// gone: connector is dead and nobody else will. Runner's own container is still
// on the network, so it leaves that first; its only other tie to the world is
// the engine's socket, which no network carries. Then it ends, and the engine
// removes it.
//
// A workspace container that still runs keeps its network: then somebody is
// there after all, and `ctl quit` removes both.
func (s *Sweeper) Rest(ctx context.Context) {
	has, err := s.list(ctx)
	if err != nil {
		s.Log.Error("what is left of the workspace could not be listed", "err", err)
		return
	}
	for _, v := range has.volumes {
		if v.Labels[engine.LabelComponent] == engine.Telemount {
			continue // of the volume plugin, which is removed after its volumes
		}
		s.until(ctx, "volume", v.Name, func() error { return s.Engine.API.VolumeRemove(ctx, v.Name, true) })
	}
	for _, n := range has.networks {
		if s.Engine.Self != "" {
			err := s.Engine.API.NetworkDisconnect(ctx, n.ID, s.Engine.Self, true)
			if err != nil && !cerrdefs.IsNotFound(err) {
				s.Log.Debug("runner was not on the network", "network", n.Name, "err", err)
			}
		}
		s.until(ctx, "network", n.Name, func() error { return s.Engine.API.NetworkRemove(ctx, n.ID) })
	}
}

// until tries for up to five seconds: an object stays in use until the engine
// has finished removing the container that used it.
func (s *Sweeper) until(ctx context.Context, kind, name string, remove func() error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		err := remove()
		if err == nil || cerrdefs.IsNotFound(err) {
			return
		}
		select {
		case <-ctx.Done():
			s.Log.Error("the "+kind+" is left to ctl quit", kind, name, "err", err)
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}
