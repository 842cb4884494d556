package handler

import (
	"context"
	"path"
	"strings"

	"berth.dev/bus/command"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
)

// This file is the seam to telemount: remote volumes are Docker volumes of its
// driver, one for each mount of an engagement, created before the handler and
// removed after it. Their labels say to whom they belong, so that a sweep finds
// what a kill left.

// addMounts mounts each remote volume at its path, unless the user has
// something of his own there: the same target twice is never an error.
func (p *Plan) addMounts(mounts []command.Mount) (kept []command.Mount) {
	taken := p.targets()
	for _, m := range mounts {
		target := path.Clean(m.Path)
		if taken[target] {
			continue
		}
		taken[target] = true
		p.Host.Mounts = append(p.Host.Mounts, mount.Mount{Type: mount.TypeVolume, Source: m.Volume, Target: target, ReadOnly: m.ReadOnly})
		kept = append(kept, m)
	}
	return kept
}

// targets are the paths at which the user has mounted something.
func (p *Plan) targets() map[string]bool {
	t := map[string]bool{}
	for _, b := range p.Host.Binds { // source:target[:options]
		if f := strings.Split(b, ":"); len(f) > 1 {
			t[path.Clean(f[1])] = true
		}
	}
	for _, m := range p.Host.Mounts {
		t[path.Clean(m.Target)] = true
	}
	for v := range p.Config.Volumes {
		t[path.Clean(v)] = true
	}
	for v := range p.Host.Tmpfs {
		t[path.Clean(v)] = true
	}
	return t
}

// createVolumes creates the volumes of an engagement. Creating one that exists
// with the same driver is harmless in Docker.
func (s *Set) createVolumes(ctx context.Context, req command.CreateHandler, mounts []command.Mount) error {
	for _, m := range mounts {
		_, err := s.eng.API.VolumeCreate(ctx, volume.CreateOptions{
			Name: m.Volume, Driver: s.opt.VolumeDriver, DriverOpts: m.Options,
			Labels: s.eng.Labels(engine.Handler, req.Connection, req.Engagement, nil),
		})
		if err != nil {
			return engine.Fault(err, "create volume %s for %s", m.Volume, m.Path)
		}
	}
	return nil
}

// removeVolumes removes the volumes of an engagement whose handler is gone.
func (s *Set) removeVolumes(ctx context.Context, engagement string) {
	list, err := s.eng.Volumes(ctx, engine.Is(engine.LabelEngagement, engagement))
	if err != nil {
		s.log.Warn("the handler's volumes could not be listed", "engagement", engagement, "err", err)
		return
	}
	for _, v := range list {
		if err := s.eng.API.VolumeRemove(ctx, v.Name, true); err != nil && !cerrdefs.IsNotFound(err) {
			s.log.Warn("a volume of the handler is left to the next sweep", "engagement", engagement, "volume", v.Name, "err", err)
		}
	}
}
