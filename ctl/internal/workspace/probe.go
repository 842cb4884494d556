package workspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/docker/go-connections/nat"
)

const (
	// readyTimeout bounds the wait for containers that have been started.
	readyTimeout = 10 * time.Second
	// probeEvery is the pause between two probes of something that is not ready.
	probeEvery = 15 * time.Millisecond
	// RunnerPresence is the id under which runner holds its presence.
	RunnerPresence = "default"
)

// dial connects to the bus in the connector's container and retries until ctx
// ends, since the container's port opens before its server does. The published
// port is tried first, then the container's own addresses, which are what works
// from a container that uses the engine's socket.
func (w *Workspace) dial(ctx context.Context, id string, cfg bus.Config) (*bus.Conn, error) {
	var last error
	for {
		urls, err := w.urls(ctx, id)
		if err != nil {
			return nil, errors.Join(err, last)
		}
		for _, u := range urls {
			cfg.URL = u
			one, cancel := context.WithTimeout(ctx, 2*time.Second)
			conn, err := bus.Connect(one, cfg)
			cancel()
			if err == nil {
				return conn, nil
			}
			if last = err; fault.CodeOf(err) == fault.PermissionDenied {
				return nil, err
			}
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("%w (last: %w)", err, last)
		}
	}
}

// urls are the addresses of the bus; an error says that the container does not run.
func (w *Workspace) urls(ctx context.Context, id string) ([]string, error) {
	in, err := w.Engine.API.ContainerInspect(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("inspect the connector: %w", err)
	}
	if in.State == nil || !in.State.Running {
		return nil, errors.New("the connector has exited")
	}
	var urls []string
	for _, b := range in.NetworkSettings.Ports[nat.Port(BusPort+"/tcp")] {
		if b.HostPort != "" && w.Engine.Local() {
			urls = append(urls, "nats://"+net.JoinHostPort(w.Engine.Address(), b.HostPort))
			break
		}
	}
	for _, e := range in.NetworkSettings.Networks {
		if e != nil && e.IPAddress != "" {
			urls = append(urls, "nats://"+net.JoinHostPort(e.IPAddress, BusPort))
		}
	}
	return urls, nil
}

// answers waits until connector answers a command and runner holds its presence.
func (w *Workspace) answers(ctx context.Context, conn *bus.Conn) (command.State, error) {
	var state command.State
	live := subject.Live(subject.Runner, RunnerPresence)
	for {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		s, err := bus.Call(one, conn, command.StateGet, "", command.None{})
		missing := "connector does not answer"
		if err == nil {
			state, missing = s, ""
			// Gone is proof; what cannot be asked in time is not ready either.
			if _, perr := conn.NC.RequestWithContext(one, live, nil); perr != nil {
				missing, err = "runner does not answer", perr
			}
		}
		cancel()
		if missing == "" {
			return state, nil
		}
		if perr := pause(ctx); perr != nil {
			return state, fmt.Errorf("%s: %w", missing, err)
		}
	}
}

// pause waits for the next probe, or returns ctx's error.
func pause(ctx context.Context) error {
	t := time.NewTimer(probeEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
