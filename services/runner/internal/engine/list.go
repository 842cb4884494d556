package engine

import (
	"context"
	"strings"
	"time"

	"berth.dev/bus/fault"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/go-connections/nat"
)

// List returns this workspace's containers, dead ones too, that have the labels.
func (e *Engine) List(ctx context.Context, labels ...Label) ([]container.Summary, error) {
	l, err := e.API.ContainerList(ctx, container.ListOptions{All: true, Filters: e.filter(labels...)})
	return l, Fault(err, "list containers")
}

// DaemonOf returns the ID of the running daemon container of a connection.
func (e *Engine) DaemonOf(ctx context.Context, connection string) (string, error) {
	list, err := e.List(ctx, Is(LabelComponent, Daemon), Is(LabelConnection, connection))
	if err != nil {
		return "", err
	}
	for _, c := range list {
		if c.State == container.StateRunning {
			return c.ID, nil
		}
	}
	return "", fault.New(fault.FailedPrecondition, "ctl status", "the daemon container of connection %s does not run", connection)
}

// ImageID returns the ID of an image that must be on the engine already.
func (e *Engine) ImageID(ctx context.Context, image string) (string, error) {
	if image == "" {
		return "", fault.New(fault.InvalidArgument, "", "no image was named")
	}
	in, err := e.API.ImageInspect(ctx, image)
	if cerrdefs.IsNotFound(err) {
		return "", fault.New(fault.NotFound, "docker pull "+image, "image %s is not on the Docker Engine: pull it, or build it with docker build -t %s", image, image)
	}
	return in.ID, Fault(err, "inspect image %s", image)
}

// Exposed are the ports that an image declares with EXPOSE.
func (e *Engine) Exposed(ctx context.Context, image string) (nat.PortSet, error) {
	in, err := e.API.ImageInspect(ctx, image)
	if err != nil {
		return nil, Fault(err, "inspect image %s", image)
	}
	set := nat.PortSet{}
	if in.Config != nil {
		for p := range in.Config.ExposedPorts {
			port, err := nat.NewPort(nat.SplitProtoPort(p))
			if err == nil {
				set[port] = struct{}{}
			}
		}
	}
	return set, nil
}

// Name makes any text into what Docker accepts as a container's name.
func Name(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !nameByte(c) {
			b[i] = '-'
		}
	}
	return string(b)
}

// ValidName reports whether Docker accepts s as a container's name.
func ValidName(s string) bool {
	return len(s) > 1 && Name(s) == s && !strings.ContainsRune("_.-", rune(s[0]))
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
}

// Held says who has a container's name.
type Held struct {
	ID     string
	Ours   bool // carries this workspace's label
	Alive  bool // created, running, paused or restarting: not to be removed unasked
	State  string
	Labels map[string]string
	Image  string
	Since  string // when it was started, or created
}

// Holder returns who has a container's name, or nil.
func (e *Engine) Holder(ctx context.Context, name string) (*Held, error) {
	in, err := e.API.ContainerInspect(ctx, name)
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, Fault(err, "inspect container %s", name)
	}
	h := &Held{ID: in.ID, Labels: in.Config.Labels, Image: in.Config.Image, State: in.State.Status, Since: in.Created}
	h.Ours = in.Config.Labels[LabelWorkspace] == e.Workspace
	switch in.State.Status {
	case container.StateExited, container.StateDead, container.StateRemoving:
	default:
		h.Alive = true
	}
	if in.State.Running {
		h.Since = in.State.StartedAt
	}
	if t, err := time.Parse(time.RFC3339Nano, h.Since); err == nil {
		h.Since = t.UTC().Format(time.RFC3339)
	}
	return h, nil
}

// Conflict is the fault that names the holder of a name.
func (h *Held) Conflict(name, hint string) error {
	verb := "created"
	if h.State == container.StateRunning {
		verb = "running since"
	}
	return fault.New(fault.AlreadyExists, hint, "the container name %s is taken by a container of image %s, %s %s", name, h.Image, verb, h.Since)
}

// Remove kills and removes a container with its anonymous volumes, and returns
// when its name is free. One that is gone or being removed is fine.
func (e *Engine) Remove(ctx context.Context, id string) error {
	err := e.API.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	switch {
	case cerrdefs.IsNotFound(err):
		return nil
	case cerrdefs.IsConflict(err): // removal by AutoRemove is under way
	case err != nil:
		return Fault(err, "remove container %s", id)
	}
	return e.Gone(ctx, id)
}

// Gone waits until a container that is ending has been removed.
func (e *Engine) Gone(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	res, errs := e.API.ContainerWait(ctx, id, container.WaitConditionRemoved)
	select {
	case <-res:
		return nil
	case err := <-errs:
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		return Fault(err, "wait for the removal of container %s", id)
	}
}

// Stop ends a container as `docker stop` does: its stop signal, its time (10 s
// unless it has its own, at most limit if limit is positive), then SIGKILL. It
// returns when the container has ended. One that is gone is fine.
func (e *Engine) Stop(ctx context.Context, id string, limit time.Duration) error {
	var o container.StopOptions
	if limit > 0 {
		in, err := e.API.ContainerInspect(ctx, id)
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return Fault(err, "inspect container %s", id)
		}
		s := int(limit / time.Second)
		if own := in.Config.StopTimeout; own != nil && *own >= 0 {
			s = min(s, *own)
		}
		o.Timeout = &s
	}
	err := e.API.ContainerStop(ctx, id, o)
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	return Fault(err, "stop container %s", id)
}

// Volumes returns this workspace's volumes that have the labels.
func (e *Engine) Volumes(ctx context.Context, labels ...Label) ([]*volume.Volume, error) {
	l, err := e.API.VolumeList(ctx, volume.ListOptions{Filters: e.filter(labels...)})
	return l.Volumes, Fault(err, "list volumes")
}

// Networks returns this workspace's networks that have the labels.
func (e *Engine) Networks(ctx context.Context, labels ...Label) ([]network.Summary, error) {
	l, err := e.API.NetworkList(ctx, network.ListOptions{Filters: e.filter(labels...)})
	return l, Fault(err, "list networks")
}

// NameOf is a listed container's name.
func NameOf(c container.Summary) string {
	for _, n := range c.Names { // a link makes a second, with a slash inside
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return c.ID
}
