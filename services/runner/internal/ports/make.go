package ports

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/owner"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/go-connections/nat"
	"golang.org/x/sync/errgroup"
)

type port = nat.Port

// Parts of a forwarder; the names of its subcommands.
const (
	front = iota
	back
)

var partNames = [...]string{"front", "back"}

// partOf tells the two apart: only the front is on a network of its own.
func partOf(c container.Summary) int {
	if strings.HasPrefix(c.HostConfig.NetworkMode, "container:") {
		return back
	}
	return front
}

// readyWithin is how long a forwarder may take to be ready. Most of it is the
// engine's: it starts a process of its own for each published port, and of a busy one
// twenty take a quarter of a minute. A part that fails is heard of at once. ctl waits
// for a minute.
const readyWithin = 40 * time.Second

// socketDir is where the volume is mounted in both.
const socketDir = "/run/berth-forward"

// open makes both parts, side by side, and returns when they carry. On an error
// nothing is left of them. fresh: the owner does not run yet, so a port on which
// something listens is somebody else's.
func (s *Set) open(ctx context.Context, f *forwarder, fresh bool) (got []event.Published, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := s.remove(ctx, f.owner); err != nil { // what an earlier attempt left
		return nil, err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
			defer cancel()
			err = errors.Join(err, s.remove(undo, f.owner))
		}
	}()
	daemon, err := s.eng.DaemonOf(ctx, f.owner.Connection)
	if err != nil {
		return nil, err
	}
	vol, err := s.eng.API.VolumeCreate(ctx, volume.CreateOptions{
		Name: "berth-forward-" + strings.ToLower(rand.Text()[:12]), Labels: s.labels(f),
	})
	if err != nil {
		return nil, engine.Fault(err, "create a volume for the forwarder")
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		cfg, host := s.part(f, front, vol.Name)
		cfg.ExposedPorts = nat.PortSet{}
		for p := range f.want {
			cfg.ExposedPorts[p] = struct{}{}
		}
		host.NetworkMode = container.NetworkMode(s.opt.Network)
		host.PortBindings = f.want
		host.CapAdd = []string{"NET_BIND_SERVICE"}
		return s.launch(ctx, gctx, f, front, cfg, host)
	})
	group.Go(func() error {
		cfg, host := s.part(f, back, vol.Name)
		if fresh {
			cfg.Cmd = append(cfg.Cmd, "--check")
		}
		host.NetworkMode = container.NetworkMode("container:" + daemon)
		return s.launch(ctx, gctx, f, back, cfg, host)
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	id := f.ids[front]
	s.mu.Unlock()
	in, err := s.eng.API.ContainerInspect(ctx, id)
	if err != nil {
		return nil, engine.Fault(err, "inspect the forwarder of %s", f.owner.Name)
	}
	return published(in.NetworkSettings.Ports), nil
}

func (s *Set) labels(f *forwarder) map[string]string {
	var extra map[string]string
	if f.owner.Guest != "" {
		extra = map[string]string{engine.LabelGuest: f.owner.Guest}
	}
	return s.eng.Labels(engine.Forwarder, f.owner.Connection, f.owner.Engagement, extra)
}

// part is what the two have in common: nothing of the host, no right but to
// their own files, and the volume.
func (s *Set) part(f *forwarder, part int, vol string) (*container.Config, *container.HostConfig) {
	return &container.Config{
			Image: s.eng.Image, Entrypoint: []string{"forwarder"},
			Cmd:    []string{partNames[part], "--ports", flagValue(f.want), "--socket", socketDir + "/front.sock"},
			Labels: s.labels(f),
		}, &container.HostConfig{
			AutoRemove: true, ReadonlyRootfs: true, CapDrop: []string{"ALL"},
			// On SELinux each container has a category of its own, and no connection
			// between two is allowed, whoever has the socket's file.
			SecurityOpt: []string{"no-new-privileges:true", "label=disable"},
			Mounts:      []mount.Mount{{Type: mount.TypeVolume, Source: vol, Target: socketDir}},
		}
}

// told is the line that a part writes to stdout; see services/forwarder.
type told struct {
	Ready bool     `json:"ready"`
	Busy  []string `json:"busy"`
}

// launch creates and starts a part and waits until it says that it is ready, or
// until wait ends because the other part failed. What the engine is asked for is
// not cut short: it would do it all the same, and nobody would know.
func (s *Set) launch(ctx, wait context.Context, f *forwarder, part int, cfg *container.Config, host *container.HostConfig) error {
	name := fmt.Sprintf("berth-ports-%s-%s", f.owner.Name, partNames[part])
	c, err := s.eng.API.ContainerCreate(ctx, cfg, host, nil, nil, name)
	if cerrdefs.IsConflict(err) { // the name only helps people
		c, err = s.eng.API.ContainerCreate(ctx, cfg, host, nil, nil, "")
	}
	if err != nil {
		return engine.Fault(err, "create the forwarder of %s", f.owner.Name)
	}
	s.mu.Lock()
	f.ids[part] = c.ID
	s.mu.Unlock()
	r, w := io.Pipe()
	defer r.Close()
	last := &engine.LastLines{}
	actx, cancel := context.WithCancel(wait)
	defer cancel()
	output, err := s.eng.Attach(actx, c.ID, nil, w, last)
	if err != nil {
		return err
	}
	go func() { <-output; w.Close() }()
	if err := s.eng.API.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		return s.startFault(ctx, f, err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	var t told
	if err == nil {
		err = json.Unmarshal([]byte(line), &t)
	}
	switch {
	case len(t.Busy) > 0:
		return fault.New(fault.AlreadyExists, "docker ps", "port %s is listened on already in the connection's network, which all its containers share: by one that was started without saying so", strings.Join(t.Busy, ", "))
	case wait.Err() != nil:
		return fault.New(fault.Unavailable, "ctl doctor", "the forwarder of %s was not ready in time: %v", f.owner.Name, context.Cause(wait))
	case err != nil || !t.Ready:
		return fault.New(fault.Unavailable, "ctl doctor", "the forwarder of %s ended before it was ready: %s", f.owner.Name, last)
	}
	return nil
}

// hostPort finds the address in what the engine says of a port that it cannot
// publish, as in "Bind for 0.0.0.0:8080 failed: port is already allocated" or
// "listen tcp4 0.0.0.0:8080: bind: address already in use".
var hostPort = regexp.MustCompile(`((?:\d+\.){3}\d+|\[[0-9a-fA-F:.]*\]|:::?):(\d+)`)

// startFault says why the engine did not start the front: who has the port.
func (s *Set) startFault(ctx context.Context, f *forwarder, err error) error {
	msg := engine.Message(err)
	addr := hostPort.FindStringSubmatch(msg)
	switch {
	case addr == nil:
	case strings.Contains(msg, "already allocated"), strings.Contains(msg, "address already in use"), strings.Contains(msg, "ports are not available"):
		n, _ := strconv.ParseUint(addr[2], 10, 16) // checked by the expression
		if name, hint := s.holder(ctx, f, uint16(n)); name != "" {
			return fault.New(fault.AlreadyExists, hint, "the port %s of this machine is taken: it is published by the container %s", addr[2], name)
		}
		return fault.New(fault.AlreadyExists, "ss -tulpn 'sport = :"+addr[2]+"'", "the port %s of this machine is taken, by a process that is no container: %s", addr[2], msg)
	case strings.Contains(msg, "cannot assign requested address"):
		return fault.New(fault.InvalidArgument, "ip address", "--publish: %s is no address of the Docker Engine's machine", strings.Trim(addr[1], "[]"))
	case strings.Contains(msg, "permission denied"):
		return fault.New(fault.PermissionDenied, "--publish 8080:80", "the Docker Engine may not open the port %s of its machine: %s", addr[2], msg)
	}
	return engine.Fault(err, "start the forwarder of %s", f.owner.Name)
}

// holder is the container that has a port of the host published, and what ends
// it; "" if there is none.
func (s *Set) holder(ctx context.Context, f *forwarder, host uint16) (name, hint string) {
	list, err := s.eng.API.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return "", ""
	}
	for _, c := range list {
		for _, p := range c.Ports {
			if p.PublicPort != host || owner.Of(c.Labels).Key() == f.owner.Key() {
				continue
			}
			s.mu.Lock()
			other := s.all[owner.Of(c.Labels).Key()]
			s.mu.Unlock()
			if other != nil && c.Labels[engine.LabelWorkspace] == s.eng.Workspace {
				return other.owner.Name, other.owner.Hint()
			}
			name := engine.NameOf(c)
			return name + " of image " + c.Image, "docker stop " + name
		}
	}
	return "", ""
}
