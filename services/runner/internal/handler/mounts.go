package handler

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
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
		p.Host.Mounts = append(p.Host.Mounts, mount.Mount{
			Type: mount.TypeVolume, Source: m.Volume, Target: target, ReadOnly: m.ReadOnly,
			// Else the engine would fill an empty volume of the workload's with
			// what the handler's image has at that path.
			VolumeOptions: &mount.VolumeOptions{NoCopy: true},
		})
		kept = append(kept, m)
	}
	return kept
}

// targets are paths at which something is mounted.
type targets map[string]bool

func (p *Plan) targets() targets {
	t := targets{}
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

// addFiles are those files that are to be copied into the container: where the
// user has mounted something, or a remote volume is, the file is his, or is seen
// in that volume.
func (p *Plan) addFiles(files []command.File) (kept []command.File) {
	taken := p.targets()
	for _, f := range files {
		if !taken.cover(path.Clean(f.Path)) {
			kept = append(kept, f)
		}
	}
	return kept
}

// cover reports whether target or a folder above it is mounted.
func (t targets) cover(target string) bool {
	for d := target; ; d = path.Dir(d) {
		if t[d] {
			return true
		}
		if d == "/" || d == "." {
			return false
		}
	}
}

// copyFiles copies files into a container that has not been started. They go by
// the engine's own copy and lie in the container's layer: none is on the host.
func (s *Set) copyFiles(ctx context.Context, id string, files []command.File) error {
	if len(files) == 0 {
		return nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		// Files alone: an entry for a folder would replace a link of that name.
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Clean(f.Path), "/"),
			Mode: int64(f.Mode & 0o7777), Uid: f.UID, Gid: f.GID, Size: int64(len(f.Content)), ModTime: time.Now()})
		if err == nil {
			_, err = w.Write(f.Content)
		}
		if err != nil {
			return fmt.Errorf("pack %s for the handler: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack files for the handler: %w", err)
	}
	err := s.eng.API.CopyToContainer(ctx, id, "/", &b, container.CopyToContainerOptions{CopyUIDGID: true})
	return engine.Fault(err, "copy %s into the handler", files[0].Path)
}

// createVolumes creates the volumes of an engagement. Creating one that exists
// with the same driver is harmless in Docker.
func (s *Set) createVolumes(ctx context.Context, req command.CreateHandler, mounts []command.Mount) error {
	for _, m := range mounts {
		driver := m.Driver
		if driver == "" {
			driver = s.opt.VolumeDriver
		}
		_, err := s.eng.API.VolumeCreate(ctx, volume.CreateOptions{
			Name: m.Volume, Driver: driver, DriverOpts: m.Options,
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
