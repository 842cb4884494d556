package handlerrun

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"berth.dev/bus/command"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Spec is the container that the user's arguments describe.
type Spec struct {
	Handler command.Handler
	TTY     bool
}

// wrapper passes everything to the engine but the making of the container, and
// notes how far the command came. Docker's command calls it from one goroutine,
// but for what drives the terminal.
type wrapper struct {
	client.APIClient
	hooks Hooks
	where string // the user's arguments stand

	mu      sync.Mutex
	missing string // image that was not there
	pulling bool
	created bool
	started bool
	failed  error // what a hook said
}

// ImageCreate pulls an image.
func (w *wrapper) ImageCreate(ctx context.Context, ref string, o image.CreateOptions) (io.ReadCloser, error) {
	w.mu.Lock()
	w.pulling, w.missing = true, ref
	w.mu.Unlock()
	return w.APIClient.ImageCreate(ctx, ref, o)
}

// ContainerCreate hands over what was parsed. A missing image is told to
// Docker's command first, which pulls it and calls again.
func (w *wrapper) ContainerCreate(ctx context.Context, cfg *container.Config, host *container.HostConfig, nets *network.NetworkingConfig, p *ocispec.Platform, name string) (container.CreateResponse, error) {
	var none container.CreateResponse
	_, err := w.ImageInspect(ctx, cfg.Image)
	w.mu.Lock()
	w.pulling, w.missing = false, ""
	if errdefs.IsNotFound(err) {
		w.missing = cfg.Image
	}
	w.mu.Unlock()
	if err != nil {
		return none, err
	}
	spec, err := specOf(cfg, host, nets, p, name)
	if err != nil {
		return none, w.fail(err)
	}
	id, warnings, err := w.hooks.Create(ctx, spec)
	if err != nil {
		return none, w.fail(err)
	}
	w.mu.Lock()
	w.created = true
	w.mu.Unlock()
	return container.CreateResponse{ID: id, Warnings: warnings}, nil
}

// ContainerStart starts it. After a failure Docker's command waits for the
// container to be gone, so it is removed.
func (w *wrapper) ContainerStart(ctx context.Context, id string, o container.StartOptions) error {
	start := func() error { return w.APIClient.ContainerStart(ctx, id, o) }
	if w.hooks.Start != nil {
		start = func() error { return w.hooks.Start(ctx, id) }
	}
	if err := start(); err != nil {
		if rerr := w.ContainerRemove(ctx, id, container.RemoveOptions{Force: true}); rerr != nil && !errdefs.IsNotFound(rerr) && !errdefs.IsConflict(rerr) {
			err = fmt.Errorf("%w (and remove the container: %w)", err, rerr)
		}
		return w.fail(err)
	}
	w.mu.Lock()
	w.started = true
	w.mu.Unlock()
	return nil
}

// hookError hides the kind of a hook's error from Docker's command, which would
// pull the image for one that is NotFound.
type hookError struct{ msg string }

func (e hookError) Error() string { return e.msg }

func (w *wrapper) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = err
	return hookError{err.Error()}
}

func specOf(cfg *container.Config, host *container.HostConfig, nets *network.NetworkingConfig, p *ocispec.Platform, name string) (Spec, error) {
	s := Spec{TTY: cfg.Tty, Handler: command.Handler{Name: name, Attach: true}}
	for _, x := range []struct {
		to *json.RawMessage
		v  any
	}{{&s.Handler.Config, cfg}, {&s.Handler.HostConfig, host}, {&s.Handler.Networking, nets}} {
		b, err := json.Marshal(x.v)
		if err != nil {
			return s, fmt.Errorf("marshal the container: %w", err)
		}
		*x.to = b
	}
	if p != nil {
		s.Handler.Platform = p.OS + "/" + p.Architecture
		if p.Variant != "" {
			s.Handler.Platform += "/" + p.Variant
		}
	}
	return s, nil
}
