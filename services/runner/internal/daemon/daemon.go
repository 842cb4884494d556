// Package daemon owns the daemon containers: one for each connection, in whose
// network namespace vif puts the VIF and handlers live.
//
// Start and Stop are accepted or refused at once; DaemonStarted and DaemonExited
// tell the rest. DaemonExited is stated whenever a daemon container ends, asked
// for or not, or could not be started; where it died by itself, the fault
// carries the last that it said.
//
// Who removes it after a kill -9: the engine when it ends (AutoRemove), the next
// runner adopts it or, if its connection is unknown, removes it; vif itself ends
// when the bus is lost.
//
// Concurrency: Set.mu guards the records; one goroutine owns each container from
// its creation to its end.
package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
)

// Options are what a Set needs beside the engine.
type Options struct {
	Network string // the workspace's
	// State states a fact; it returns when the fact is safe.
	State func(ctx context.Context, id string, d event.Data)
	// Started is called when a daemon container has started, or failed to; may be nil.
	Started func()
	// Ended is called when a connection's daemon container has ended.
	Ended func(ctx context.Context, connection string)
	// Go runs f in a goroutine that runner waits for; its context ends after
	// everything has been undone.
	Go  func(f func(context.Context))
	Log *slog.Logger
}

// Set is all daemon containers of the workspace.
type Set struct {
	eng   *engine.Engine
	watch *engine.Watch
	opt   Options

	mu      sync.Mutex
	records map[string]*record // by connection
}

type record struct {
	connection, name string
	settled          chan struct{} // closed when it runs, or has failed to
	done             chan struct{} // closed after DaemonExited
	last             *engine.LastLines

	// Guarded by Set.mu.
	container string          // ID
	output    <-chan struct{} // closed when last has all that the container wrote
	stopping  bool
}

// stopTime is how long vif has to end by itself: its network namespace dies
// with the container, so that it has nothing to undo but its connections.
const stopTime = 3 * time.Second

// New returns an empty set.
func New(e *engine.Engine, w *engine.Watch, o Options) *Set {
	return &Set{eng: e, watch: w, opt: o, records: map[string]*record{}}
}

// Start serves DaemonStart.
func (s *Set) Start(ctx context.Context, req command.StartDaemon) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Connection}
	sp, err := s.newSpec(ctx, req)
	if err != nil {
		return accepted, err
	}
	r := newRecord(req.Connection, sp.name)
	s.mu.Lock()
	if s.records[req.Connection] != nil {
		s.mu.Unlock()
		accepted.Already = true
		return accepted, nil
	}
	s.records[req.Connection] = r
	s.mu.Unlock()
	if err := s.freeName(ctx, sp.name); err != nil {
		s.drop(r)
		close(r.settled)
		close(r.done)
		return accepted, err
	}
	s.opt.Go(func(ctx context.Context) { s.run(ctx, r, sp) })
	return accepted, nil
}

// freeName removes a dead container of ours that has the name. A living one of
// this connection would have a record: Adopt has seen to it.
func (s *Set) freeName(ctx context.Context, name string) error {
	h, err := s.eng.Holder(ctx, name)
	if err != nil || h == nil {
		return err
	}
	mine := h.Ours && h.Labels[engine.LabelComponent] == engine.Daemon
	if mine && s.ending(h.Labels[engine.LabelConnection]) {
		// The connection of this name was ended a moment ago: its container is on
		// its way out, and the engine removes it.
		return s.eng.Gone(ctx, h.ID)
	}
	if mine && (!h.Alive || h.State == container.StateCreated && !s.has(h.Labels[engine.LabelConnection])) {
		return s.eng.Remove(ctx, h.ID)
	}
	hint := "docker rm -f " + name
	if mine {
		hint = "ctl quit"
	}
	return h.Conflict(name, hint)
}

// ending reports whether a connection's container was told to stop.
func (s *Set) ending(connection string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[connection]
	return r != nil && r.stopping
}

// run creates and starts r's container, has it join its other networks and follows
// it to its end.
func (s *Set) run(ctx context.Context, r *record, sp *spec) {
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait, err := s.start(waitCtx, r, sp)
	if err == nil {
		err = s.join(ctx, r, sp)
	}
	if s.opt.Started != nil {
		s.opt.Started()
	}
	if err != nil {
		s.opt.Log.Warn("the daemon container could not be started", "connection", r.connection, "err", err)
		if id := s.idOf(r); id != "" {
			if err := s.eng.Remove(ctx, id); err != nil {
				s.opt.Log.Warn("the daemon container is left to the next sweep", "connection", r.connection, "err", err)
			}
		}
		s.drop(r)
		close(r.settled)
		s.opt.State(ctx, r.connection, event.DaemonExited{Container: r.name, Error: fault.From(err)})
		close(r.done)
		return
	}
	s.opt.State(ctx, r.connection, event.DaemonStarted{Container: r.name, ContainerID: s.idOf(r)})
	close(r.settled)
	s.follow(ctx, r, wait)
}

// start tries with IPv6 first, and without where the kernel has none.
func (s *Set) start(ctx context.Context, r *record, sp *spec) (*engine.Waiting, error) {
	for _, ipv6 := range []bool{true, false} {
		id, err := s.create(ctx, sp, ipv6)
		s.setID(r, id)
		if err != nil {
			return nil, err
		}
		wait := s.eng.NextExit(ctx, id)
		if err := s.attach(ctx, r, bus.Files{bus.ConfigFile: sp.req.Bus}); err != nil {
			return nil, err
		}
		err = s.eng.API.ContainerStart(ctx, id, container.StartOptions{})
		switch {
		case err == nil:
			return wait, nil
		case ipv6 && strings.Contains(err.Error(), "ipv6"):
			if err := s.eng.Remove(ctx, id); err != nil {
				return nil, err
			}
		default:
			return nil, startFault(err, r.name)
		}
	}
	panic("unreachable: the second round returns")
}

// join has r's container, which runs, join the networks beyond the workspace's: it
// takes the engine as long as a tenth of a start for each, in which vif gets ready anyhow.
func (s *Set) join(ctx context.Context, r *record, sp *spec) error {
	for _, n := range sp.networks[1:] {
		if err := s.eng.API.NetworkConnect(ctx, n, s.idOf(r), nil); err != nil {
			return engine.Fault(err, "join container %s to network %s", sp.name, n)
		}
	}
	return nil
}

// attach keeps the last lines of r's container, which gets files if it has not
// been started yet.
func (s *Set) attach(ctx context.Context, r *record, files bus.Files) error {
	var input []byte
	if files != nil {
		var err error
		if input, err = json.Marshal(files); err != nil {
			return fmt.Errorf("marshal the daemon container's files: %w", err)
		}
	}
	output, err := s.eng.Attach(ctx, s.idOf(r), input, r.last, r.last)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		r.output = output
	}
	return err
}

// startFault says why the engine refused to start the container.
func startFault(err error, name string) error {
	msg := engine.Message(err)
	switch {
	case strings.Contains(msg, "already allocated"), strings.Contains(msg, "address already in use"):
		return fault.New(fault.AlreadyExists, "docker ps", "a port given with --expose is taken: %s", msg)
	case strings.Contains(msg, "/dev/net/tun"):
		return fault.New(fault.FailedPrecondition, "ctl doctor", "the Docker Engine's machine has no /dev/net/tun: %s", msg)
	}
	return engine.Fault(err, "start container %s", name)
}

// follow waits for the end of r's container and tells it.
func (s *Set) follow(ctx context.Context, r *record, wait *engine.Waiting) {
	exit, err := wait.Exit(ctx, s.watch)
	if err != nil {
		return // runner ends, after everything was undone or given up
	}
	s.mu.Lock()
	asked, output := r.stopping, r.output
	s.mu.Unlock()
	select { // its last words
	case <-output:
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	fact := event.DaemonExited{Container: r.name, ExitCode: exit.Code}
	if asked {
		// Who asked waits for the fact, and finds nothing of it then.
		if err := s.eng.Remove(ctx, s.idOf(r)); err != nil {
			s.opt.Log.Warn("the engine has not removed the daemon container yet", "connection", r.connection, "err", err)
		}
	} else {
		fact.Error = died(r.name, exit, r.last.String())
		s.opt.Log.Error("the daemon container died", "connection", r.connection, "err", fact.Error)
	}
	s.drop(r)
	s.opt.State(ctx, r.connection, fact)
	close(r.done)
	s.opt.Ended(ctx, r.connection)
}

// died is the fault of a daemon container that ended unasked.
func died(name string, x engine.Exit, last string) *fault.Error {
	switch {
	case x.Unknown:
		return fault.New(fault.Unavailable, "ctl doctor", "the daemon container %s is gone: the Docker Engine was restarted", name)
	case x.OOM:
		return fault.New(fault.Unavailable, "ctl connect", "the daemon container %s ran out of memory", name)
	case last == "":
		return fault.New(fault.Unavailable, "ctl connect", "the daemon container %s exited with code %d", name, x.Code)
	}
	return fault.New(fault.Unavailable, "ctl connect", "the daemon container %s exited with code %d: %s", name, x.Code, last)
}

// Stop serves DaemonStop. A reply with Already set means that there is no such
// container and that no fact is to come.
func (s *Set) Stop(_ context.Context, req command.StopDaemon) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Connection}
	if err := validID(req.Connection); err != nil {
		return accepted, err
	}
	s.mu.Lock()
	r := s.records[req.Connection]
	stopping := r != nil && r.stopping
	if r != nil {
		r.stopping = true
	}
	s.mu.Unlock()
	if r == nil || stopping {
		accepted.Already = r == nil
		return accepted, nil
	}
	s.opt.Go(func(ctx context.Context) { s.stop(ctx, r) })
	return accepted, nil
}

// StopAll ends every daemon container and waits until that is stated or ctx
// ends. No command may come any more.
func (s *Set) StopAll(ctx context.Context) {
	s.mu.Lock()
	var all []*record
	for _, r := range s.records {
		r.stopping = true
		all = append(all, r)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() { s.stop(ctx, r) })
	}
	wg.Wait()
}

// stop ends r's container and waits for the fact.
func (s *Set) stop(ctx context.Context, r *record) {
	select {
	case <-r.settled:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case <-r.done:
			return
		default:
		}
		err := s.eng.Stop(ctx, s.idOf(r), stopTime)
		if err == nil {
			break
		}
		s.opt.Log.Warn("the daemon container could not be stopped yet", "connection", r.connection, "err", err)
		select {
		case <-time.After(time.Second):
		case <-r.done:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
	}
}

// Adopt takes over the daemon containers that an earlier runner left. It must
// have returned before commands are served.
func (s *Set) Adopt(ctx context.Context) error {
	list, err := s.eng.List(ctx, engine.Is(engine.LabelComponent, engine.Daemon))
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.State != container.StateRunning || s.has(c.Labels[engine.LabelConnection]) {
			continue
		}
		name := c.ID
		if len(c.Names) > 0 {
			name = strings.TrimPrefix(c.Names[0], "/")
		}
		r := newRecord(c.Labels[engine.LabelConnection], name)
		r.container = c.ID
		close(r.settled)
		s.mu.Lock()
		s.records[r.connection] = r
		s.mu.Unlock()
		s.opt.Log.Info("a daemon container was adopted", "connection", r.connection, "container", name)
		s.opt.Go(func(ctx context.Context) {
			if err := s.attach(ctx, r, nil); err != nil {
				s.opt.Log.Warn("the daemon container's log is not followed", "connection", r.connection, "err", err)
			}
			s.follow(ctx, r, s.eng.Ended(ctx, r.container))
		})
	}
	return nil
}

func newRecord(connection, name string) *record {
	output := make(chan struct{})
	close(output)
	return &record{connection: connection, name: name, output: output, settled: make(chan struct{}), done: make(chan struct{}), last: &engine.LastLines{}}
}

func validID(id string) error {
	if !subject.Valid(id) {
		return fault.New(fault.InvalidArgument, "", "%q is not the id of a connection", id)
	}
	return nil
}

func (s *Set) has(connection string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[connection] != nil
}

func (s *Set) drop(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, r.connection)
}

func (s *Set) setID(r *record, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.container = id
}

func (s *Set) idOf(r *record) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.container
}
