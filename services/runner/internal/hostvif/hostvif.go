// Package hostvif owns the vif processes of a machine, as package daemon owns
// daemon containers: the same commands, the same facts.
//
// Runner has no privilege and starts none of them: ctl does, and they stand by at
// runner's socket (bus/standby) until DaemonStart gives one of them to a
// connection. DaemonExited is stated whenever a vif ends, asked for or not; where
// it ended by itself, the fault carries the last that it said.
//
// Who ends it after a kill -9 of runner: vif itself, whose stream breaks. What a
// vif that is killed leaves is told in services/vif.
package hostvif

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/standby"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"
)

const (
	// comesWithin is how long DaemonStart waits for a vif, which ctl has started
	// before it asked for the connection.
	comesWithin = 3 * time.Second
	// idleWithin is how long one may stand by for nothing.
	idleWithin = 2 * time.Minute
)

// Options are what a Set needs.
type Options struct {
	Socket string // path
	Log    *slog.Logger
	Output io.Writer // for what vifs say
	// State states a fact; it returns when the fact is safe.
	State func(ctx context.Context, id string, d event.Data)
	// Go runs f in a goroutine that runner waits for; its context ends after
	// everything has been undone.
	Go func(f func(context.Context))
}

// Set is the vifs of this machine that are runner's.
type Set struct {
	opt     Options
	waiting chan *standby.Waiting

	mu      sync.Mutex
	records map[string]*record // by connection
}

// record is a vif that has a connection.
type record struct {
	connection string
	vif        *standby.Waiting // nil until one has come; guarded by Set.mu
	stopping   bool             // guarded by Set.mu
	done       chan struct{}    // closed after DaemonExited
}

// New returns an empty set.
func New(o Options) *Set {
	return &Set{opt: o, waiting: make(chan *standby.Waiting), records: map[string]*record{}}
}

// Listen opens the socket, which no living runner can have: runner holds the lock
// of its directory.
func (s *Set) Listen() error {
	if err := os.Remove(s.opt.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen for vif: %w", err)
	}
	l, err := net.Listen("unix", s.opt.Socket)
	if err != nil {
		return fmt.Errorf("listen for vif: %w", err)
	}
	s.opt.Go(func(ctx context.Context) {
		<-ctx.Done()
		_ = l.Close()
	})
	s.opt.Go(func(ctx context.Context) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			s.opt.Go(func(ctx context.Context) { s.admit(ctx, conn) })
		}
	})
	return nil
}

// admit has a vif stand by until a connection takes it.
func (s *Set) admit(ctx context.Context, conn net.Conn) {
	vif, err := standby.Accept(conn)
	if err != nil {
		s.opt.Log.Warn("who dialled is no vif", "err", err)
		_ = conn.Close()
		return
	}
	s.opt.Log.Info("a vif stands by", "pid", vif.PID)
	idle := time.NewTimer(idleWithin)
	defer idle.Stop()
	select {
	case s.waiting <- vif:
		return
	case <-idle.C:
		s.opt.Log.Warn("a vif is let go: no connection came for it", "pid", vif.PID)
	case <-ctx.Done():
	}
	vif.Close()
}

// catchUpWithin bounds CatchUp: connector may be on its way itself.
const catchUpWithin = 10 * time.Second

// CatchUp states the end of the vifs that an earlier runner had: they ended with
// it. It returns when connector has taken that in, and must have returned before
// commands are served.
func (s *Set) CatchUp(ctx context.Context, state func(context.Context) (command.State, error)) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	told := map[string]bool{}
	for {
		st, err := state(ctx)
		if fault.CodeOf(err) != fault.Unavailable && err != nil {
			return err
		}
		waiting := err != nil
		for _, c := range st.Connections {
			if c.Daemon == "" || c.Phase == "disconnecting" {
				continue
			}
			if waiting = true; !told[c.ID] {
				told[c.ID] = true
				s.opt.State(ctx, c.ID, event.DaemonExited{Container: c.Daemon, Error: fault.New(fault.Unavailable, "ctl connect", "%s ended with runner, which was killed", c.Daemon)})
			}
		}
		if !waiting {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("tell of the vifs of an earlier runner: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

// Start serves DaemonStart.
func (s *Set) Start(_ context.Context, req command.StartDaemon) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Connection}
	if err := validID(req.Connection); err != nil {
		return accepted, err
	}
	var cfg bus.Config
	if err := json.Unmarshal(req.Bus, &cfg); err != nil || cfg.Seed == "" {
		return accepted, fault.New(fault.InvalidArgument, "", "vif has no identity for the bus") // not err: it may quote the seed
	}
	if len(req.Networks)+len(req.Expose) > 0 || req.Hostname != "" {
		return accepted, fault.New(fault.InvalidArgument, "ctl connect --docker", "networks, ports and a host name are of a daemon container's, and this daemon runs on the machine itself")
	}
	r := &record{connection: req.Connection, done: make(chan struct{})}
	s.mu.Lock()
	if s.records[req.Connection] != nil {
		s.mu.Unlock()
		accepted.Already = true
		return accepted, nil
	}
	s.records[req.Connection] = r
	s.mu.Unlock()
	s.opt.Go(func(ctx context.Context) { s.run(ctx, r, standby.Order{Connection: req.Connection, Bus: cfg}) })
	return accepted, nil
}

// run gives r a vif, and follows that to its end.
func (s *Set) run(ctx context.Context, r *record, order standby.Order) {
	vif, err := s.take(ctx, order)
	if err != nil {
		s.end(ctx, r, event.DaemonExited{Container: "vif", Error: fault.From(err)})
		return
	}
	defer vif.Close()
	name := fmt.Sprintf("vif (process %d)", vif.PID)
	s.mu.Lock()
	r.vif = vif
	stopping := r.stopping
	s.mu.Unlock()
	if stopping {
		vif.Release()
	}
	s.opt.State(ctx, r.connection, event.DaemonStarted{Container: name})
	last := &engine.LastLines{}
	err = vif.Log(io.MultiWriter(s.opt.Output, last))
	s.mu.Lock()
	asked := r.stopping
	s.mu.Unlock()
	exited := event.DaemonExited{Container: name}
	if !asked {
		exited.Error = fault.New(fault.Unavailable, "ctl connect", "%s ended by itself: %s", name, last)
		s.opt.Log.Error("vif ended by itself", "connection", r.connection, "pid", vif.PID, "err", errors.Join(err, exited.Error))
	}
	s.end(ctx, r, exited)
}

// take waits for a vif that stands by, and gives it the order.
func (s *Set) take(ctx context.Context, order standby.Order) (*standby.Waiting, error) {
	wait, cancel := context.WithTimeout(ctx, comesWithin)
	defer cancel()
	for {
		select {
		case vif := <-s.waiting:
			err := vif.Give(order)
			if err == nil {
				return vif, nil
			}
			s.opt.Log.Warn("a vif that stood by is gone", "pid", vif.PID, "err", err)
			vif.Close()
		case <-wait.Done():
			return nil, fault.New(fault.FailedPrecondition, "ctl connect", "no vif stands by: ctl starts it, with the privilege that it takes")
		}
	}
}

func (s *Set) end(ctx context.Context, r *record, exited event.DaemonExited) {
	s.mu.Lock()
	delete(s.records, r.connection)
	s.mu.Unlock()
	s.opt.State(ctx, r.connection, exited)
	close(r.done)
}

// Stop serves DaemonStop. A reply with Already set means that there is no such
// vif and that no fact is to come.
func (s *Set) Stop(_ context.Context, req command.StopDaemon) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Connection}
	if err := validID(req.Connection); err != nil {
		return accepted, err
	}
	s.mu.Lock()
	r := s.records[req.Connection]
	if r != nil {
		s.release(r)
	}
	s.mu.Unlock()
	accepted.Already = r == nil
	return accepted, nil
}

// StopAll ends every vif and waits until that is stated or ctx ends. No command
// may come any more.
func (s *Set) StopAll(ctx context.Context) {
	s.mu.Lock()
	var all []*record
	for _, r := range s.records {
		s.release(r)
		all = append(all, r)
	}
	s.mu.Unlock()
	for _, r := range all {
		select {
		case <-r.done:
		case <-ctx.Done():
			return
		}
	}
}

// release is called with mu held.
func (s *Set) release(r *record) {
	r.stopping = true
	if r.vif != nil {
		r.vif.Release()
	}
}

func validID(id string) error {
	if !subject.Valid(id) {
		return fault.New(fault.InvalidArgument, "", "%q is not the id of a connection", id)
	}
	return nil
}
