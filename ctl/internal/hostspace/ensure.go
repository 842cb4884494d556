package hostspace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/standby"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/workspace"
)

// readyWithin bounds the wait for processes that have been started.
const readyWithin = 10 * time.Second

// Ensure makes sure that the workspace is up and of this ctl's version: starts
// what is missing, repairs what is half dead, replaces an idle one of another
// version. It returns when both connector and runner have answered. An existing
// workspace of another version that is in use is a FailedPrecondition fault.
func (s *Space) Ensure(ctx context.Context) (*workspace.Up, error) {
	up, err := s.ensure(ctx)
	if err != nil {
		return nil, fault.At(workspace.Stage, err)
	}
	return up, nil
}

func (s *Space) ensure(ctx context.Context) (*workspace.Up, error) {
	for _, c := range []subject.Service{subject.Connector, subject.Runner, subject.VIF} {
		if _, err := program(c); err != nil {
			return nil, err // before anything is started
		}
	}
	mine, err := s.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer mine.Release()
	// Each turn mends one thing.
	for range 4 {
		up, err := s.attempt(ctx)
		if up != nil || err != nil {
			return up, err
		}
	}
	return nil, fault.New(fault.Unavailable, "ctl quit --all", "the processes in %s do not stay up: see the logs there", s.dir)
}

// attempt brings the workspace closer to being up; (nil, nil) asks for another turn.
func (s *Space) attempt(ctx context.Context) (*workspace.Up, error) {
	_, lives, err := proclock.Holder(s.lockOf(subject.Connector))
	if err != nil {
		return nil, err
	}
	if !lives {
		// What else there is has lost its bus, and cannot get it back.
		if err := s.clear(ctx); err != nil {
			return nil, err
		}
		return s.create(ctx)
	}
	conn, state, err := s.join(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, s.clear(ctx) // it runs and does not answer: it is of no use to anybody
	}
	if state.Version != s.Version {
		conn.Close()
		if len(state.Connections)+len(state.Engagements) > 0 {
			return nil, fault.New(fault.FailedPrecondition, "ctl quit --all", "processes of version %s are in use, this is version %s", state.Version, s.Version)
		}
		return nil, s.clear(ctx)
	}
	limit := time.Second
	if _, lives, _ := proclock.Holder(s.lockOf(subject.Runner)); lives {
		limit = readyWithin
	}
	soon, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if state, err = workspace.Answers(soon, conn); err == nil {
		return &workspace.Up{Conn: conn, State: state}, nil
	}
	conn.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := s.end(ctx, subject.Runner, 0); err != nil {
		return nil, err
	}
	_, err = s.startRunner()
	return nil, err
}

// join connects to a connector that lives and asks what it knows.
func (s *Space) join(ctx context.Context) (*bus.Conn, command.State, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready within %v", readyWithin))
	defer cancel()
	var state command.State
	conn, err := s.Connect(ctx, readyWithin)
	if err != nil {
		return nil, state, err
	}
	for {
		state, err = bus.Call(ctx, conn, command.StateGet, "", command.None{})
		if err == nil {
			return conn, state, nil
		}
		if perr := pause(ctx); perr != nil {
			conn.Close()
			return nil, state, err
		}
	}
}

// create makes a workspace where there is none. When it fails, all that it made
// is gone again.
func (s *Space) create(ctx context.Context) (up *workspace.Up, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.clear(context.WithoutCancel(ctx)))
		}
	}()
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	ids, cfg, err := workspace.Identities(func(subject.Service) string { return "nats://127.0.0.1:" + port })
	if err != nil {
		return nil, err
	}
	if err := s.write(identitiesFile, ids); err != nil {
		return nil, err
	}
	for c, b := range cfg {
		if err := s.write(string(c)+".json", b); err != nil {
			return nil, err
		}
	}
	connector, err := s.start(subject.Connector, "-listen-host", "127.0.0.1", "-listen-port", port, "-advertise", "127.0.0.1",
		"-on-host", "-store-dir", s.path(storeDir), "-identities", s.path(identitiesFile))
	if err != nil {
		return nil, err
	}
	runner, err := s.startRunner()
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready within %v", readyWithin))
	defer cancel()
	ready, stop := connector.orGone(ready)
	defer stop()
	ready, stop = runner.orGone(ready)
	defer stop()
	conn, err := dial(ready, cfg[subject.Ctl])
	if err != nil {
		return nil, s.died(ready, err)
	}
	state, err := workspace.Answers(ready, conn)
	if err != nil {
		conn.Close()
		return nil, s.died(ready, err)
	}
	return &workspace.Up{Conn: conn, State: state, Created: true}, nil
}

func (s *Space) startRunner() (*process, error) {
	args := []string{"-workspace", s.label(), "-standby", s.path(standby.SocketName)}
	if s.usedEngine() {
		args = append(args, "-engine-used")
	}
	if path, err := program("telemount"); err == nil { // else handlers in containers are without volumes, and told so
		args = append(args, "-telemount", path)
	}
	return s.start(subject.Runner, args...)
}

// died tells why the processes did not come up: the one that ended says it best.
func (s *Space) died(ctx context.Context, err error) error {
	if gone := new(goneError); errors.As(context.Cause(ctx), &gone) {
		return fault.New(fault.Unavailable, "ctl quit --all", "%v", gone)
	}
	return fault.New(fault.Unavailable, "ctl quit --all", "the processes in %s do not answer: %v", s.dir, err)
}
