// Package engine is runner's view of the Docker Engine: one client, the labels
// by which Berth's objects are known, faults instead of HTTP errors, and the
// three ways to learn that a container has ended (wait, event, inspection).
//
// It owns no container. What it promises is that every question has an answer
// that stays true across an engine that restarts: [Engine.End] returns only
// when the container is proven to have ended, and [Watch] reopens its stream
// where it broke off.
//
// All methods may be called concurrently. API is the plain client for what
// needs no rule of ours.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// Options say which engine and whose objects.
type Options struct {
	Workspace string // value of LabelWorkspace
	Version   string // value of LabelVersion on what is created
	Image     string // image of what runner itself starts; empty: that of runner's own container
	Log       *slog.Logger
}

// Engine is the Docker Engine as one workspace uses it.
type Engine struct {
	API       client.APIClient
	Workspace string
	Version   string
	// Image is what daemon containers and other containers of Berth's own run.
	Image string
	// Self is the ID of runner's own container; empty when runner is a host process.
	Self string
	Log  *slog.Logger
}

// Open connects to the engine of the environment (DOCKER_HOST and its kin; by
// default the socket), negotiates the API version and finds runner's own
// container. An engine that does not answer is an Unavailable fault.
func Open(ctx context.Context, o Options) (*Engine, error) {
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("make the docker client: %w", err)
	}
	e := &Engine{API: remembering{c}, Workspace: o.Workspace, Version: o.Version, Image: o.Image, Log: o.Log}
	if _, err := c.Ping(ctx); err != nil {
		return nil, errors.Join(Fault(err, "reach the Docker Engine"), c.Close())
	}
	if err := e.findSelf(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return e, nil
}

// Close closes idle connections.
func (e *Engine) Close() error { return e.API.Close() }

// findSelf looks for runner's own container by its label. Where several carry
// it (a second workspace start lost a race), the host name tells which is ours:
// Docker sets it to the ID's beginning.
func (e *Engine) findSelf(ctx context.Context) error {
	list, err := e.List(ctx, Is(LabelComponent, Runner))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host name: %w", err)
	}
	self := container.Summary{}
	for _, c := range list {
		if strings.HasPrefix(c.ID, host) || (len(list) == 1 && inContainer()) {
			self = c
		}
	}
	e.Self = self.ID
	switch {
	case e.Image != "":
		return nil
	case self.ID == "":
		return fault.New(fault.FailedPrecondition, "", "runner does not run in a container of workspace %s and no --image was given: it would not know which image daemon containers run", e.Workspace)
	}
	// The name as ctl gave it reads better in `docker ps`; a tag that has moved
	// since would start another version than this one, so the ID then.
	e.Image = self.ImageID
	if in, err := e.API.ImageInspect(ctx, self.Image); err == nil && in.ID == self.ImageID {
		e.Image = self.Image
	}
	return nil
}

// inContainer: the engine puts this file into every container.
func inContainer() bool {
	_, err := os.Stat("/.dockerenv")
	return err == nil
}
