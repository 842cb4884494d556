package workspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
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
	// engineTimeout bounds the engine's part of reaching a connector. An engine at
	// which many ctls are at work is slow, and connector is not to be taken for dead.
	engineTimeout = 30 * time.Second
	// startTimeout bounds the wait for a container that another ctl has created and
	// is about to start.
	startTimeout = 6 * time.Second
	// probeEvery is the pause between two probes of something that is not ready,
	// and probeLater that after a second of it.
	probeEvery = 15 * time.Millisecond
	probeLater = 200 * time.Millisecond
	// RunnerPresence is the id under which runner holds its presence.
	RunnerPresence = "default"
)

// errSilent says that a connector was asked and did not answer.
var errSilent = errors.New("no answer")

// dial connects to the bus in the connector's container and retries for as long as
// limit, since the container's port opens before its server does; what the engine
// takes to say where that is does not count. A connector that does not answer is
// errSilent.
//
// The container's own address comes first where it can be dialled, on Linux: it
// stays when the connector joins another network, while the engine may take the
// published port down and up again then. The port is for engines in a virtual
// machine, and the address again for a ctl in a container of its own.
func (w *Workspace) dial(ctx context.Context, id string, cfg bus.Config, limit time.Duration) (*bus.Conn, error) {
	var last error
	var pace pacer
	for {
		places, err := w.places(ctx, id)
		if err != nil {
			return nil, errors.Join(err, last)
		}
		began := time.Now()
		for _, p := range places {
			cfg.URL = p.url
			one, cancel := context.WithTimeout(ctx, p.patience)
			conn, err := bus.Connect(one, cfg)
			cancel()
			if err == nil {
				return conn, nil
			}
			if last = err; fault.CodeOf(err) == fault.PermissionDenied {
				return nil, err
			}
		}
		if err := pace.pause(ctx); err != nil {
			return nil, fmt.Errorf("%w (last: %w)", err, last)
		}
		if limit -= time.Since(began); limit <= 0 {
			return nil, fmt.Errorf("%w: %w", errSilent, last)
		}
	}
}

// place is where the bus may be reached.
type place struct {
	url      string
	patience time.Duration
}

// places are those of a running connector; an error says that it does not run.
func (w *Workspace) places(ctx context.Context, id string) ([]place, error) {
	in, err := w.Engine.API.ContainerInspect(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("inspect the connector: %w", err)
	}
	if in.State == nil || !in.State.Running {
		return nil, errors.New("the connector has exited")
	}
	var address, published []place
	if e := in.NetworkSettings.Networks[w.Network()]; e != nil && e.IPAddress != "" {
		address = append(address, place{"nats://" + net.JoinHostPort(e.IPAddress, BusPort), 500 * time.Millisecond})
	}
	for _, b := range in.NetworkSettings.Ports[nat.Port(BusPort+"/tcp")] {
		if b.HostPort != "" {
			published = append(published, place{"nats://" + net.JoinHostPort(b.HostIP, b.HostPort), 2 * time.Second})
			break
		}
	}
	switch {
	case !w.Engine.Local():
		return address, nil
	case runtime.GOOS == "linux":
		return append(address, published...), nil
	}
	return append(published, address...), nil
}

// freePort is a port of this machine that nobody has at the moment. The engine
// is told one, since one of its own choice changes whenever the connector joins
// a network. Empty leaves it to the engine.
func (w *Workspace) freePort() string {
	if !w.Engine.Local() {
		return ""
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return ""
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	return port
}

// Answers waits until connector answers a command and runner holds its presence.
func Answers(ctx context.Context, conn *bus.Conn) (command.State, error) {
	var state command.State
	live := subject.Live(subject.Runner, RunnerPresence)
	var pace pacer
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
		if perr := pace.pause(ctx); perr != nil {
			return state, fmt.Errorf("%s: %w", missing, err)
		}
	}
}

// pacer spaces the probes of something that is not ready: close at first, when
// most things are, and wide later, as who waits takes time from what is waited for.
// The zero value is ready.
type pacer struct{ first time.Time }

// pause waits for the next probe, or returns ctx's error.
func (p *pacer) pause(ctx context.Context) error {
	every := probeEvery
	switch {
	case p.first.IsZero():
		p.first = time.Now()
	case time.Since(p.first) > time.Second:
		every = probeLater
	}
	t := time.NewTimer(every)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
