// Package handler owns the handlers: the local containers that stand in for a
// workload's own, one for each engagement.
//
// A handler is checked before the cluster is touched, created with the remote
// environment in the daemon container's network, started when whoever attaches
// to it is ready, and ends by itself or by Stop. Each command is accepted or
// refused at once; what becomes of it is told by facts, in this order and at
// most once in the life of a runner:
//
//	HandlerCreated, HandlerStarted, HandlerExited
//	HandlerFailed in the place of whatever did not come about
//
// A container that was created and then removed without a start ends in
// HandlerFailed too, so that every HandlerCreated has an end.
//
// Who removes what after a kill -9: the engine removes the container (AutoRemove),
// the next runner adopts those that still run (Adopt), and a sweep removes what
// belongs to no engagement, volumes too.
//
// Concurrency: Set.mu guards the records. Create, Start and Stop of one
// engagement take turns (record.turn); a started handler is followed by one
// goroutine until it has ended.
package handler

import (
	"context"
	"io"
	"log/slog"
	"path"
	"sync"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/owner"

	"github.com/docker/go-connections/nat"
)

// Options are what a Set needs beside the engine.
type Options struct {
	VolumeDriver string
	Beside       Beside
	// OnMachine: the connection's daemon is a process of the engine's machine, and
	// a handler is an ordinary container with a network of its own; see machine.go.
	OnMachine bool
	// VolumePlugin makes sure of the driver, and says what it is.
	VolumePlugin func(context.Context, command.None) (command.VolumePlugin, error)
	// State states a fact; it returns when the fact is safe.
	State func(ctx context.Context, id string, d event.Data)
	// Output opens the record of a handler's output.
	Output func(engagement string) Output
	// Go runs f in a goroutine that runner waits for; its context ends after
	// everything has been undone.
	Go  func(f func(context.Context))
	Log *slog.Logger
}

// Beside is what a handler has beside a shared network.
type Beside interface {
	Open(ctx context.Context, o owner.Owner, w beside.Want) (beside.Has, error)
	Close(ctx context.Context, o owner.Owner)
	// Clash refuses ports that another owner of the connection has.
	Clash(o owner.Owner, want nat.PortMap) error
}

// Output is where a handler's output goes; Close returns when all of it is safe.
type Output interface {
	Stdout() io.Writer
	Stderr() io.Writer
	Close(ctx context.Context) error
}

// Set is all handlers of the workspace.
type Set struct {
	eng   *engine.Engine
	watch *engine.Watch
	opt   Options
	log   *slog.Logger

	mu      sync.Mutex
	records map[string]*record // by engagement
}

type phase int

const (
	creating phase = iota
	created
	starting
	running
	ended // kept until the engagement is forgotten, so that a late repeat of Create makes nothing
)

type record struct {
	engagement, connection, name string
	ports                        []event.Port
	turn                         chan struct{} // holds one token: who has it may change the container
	done                         chan struct{} // closed with ended
	gone                         chan struct{} // closed when container and volumes are removed, or given up to the sweep

	// Guarded by Set.mu.
	phase     phase
	container string // ID, from created on
	image     string // ID
	tty       bool
	stopping  bool
	adopted   bool // was here when this runner came
	silent    bool // of an engagement that connector does not know: no facts
	followed  bool // another handler is to take its place, and what it has beside
}

// New returns an empty set.
func New(e *engine.Engine, w *engine.Watch, o Options) *Set {
	return &Set{eng: e, watch: w, opt: o, log: o.Log, records: map[string]*record{}}
}

// Create serves HandlerCreate.
func (s *Set) Create(ctx context.Context, req command.CreateHandler) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Engagement}
	if err := validID("engagement", req.Engagement); err != nil {
		return accepted, err
	}
	if err := validID("connection", req.Connection); err != nil {
		return accepted, err
	}
	old := s.get(req.Engagement)
	if old != nil && req.Again {
		select {
		case <-old.gone:
		default:
			if s.phaseOf(old) == creating { // the same command, repeated
				accepted.Already = true
				return accepted, nil
			}
			return accepted, fault.New(fault.FailedPrecondition, "", "the handler %s, whose place is to be taken, has not ended", old.name)
		}
	} else if old != nil {
		accepted.Already = true
		return accepted, nil
	}
	p, err := s.plan(ctx, req)
	if err != nil {
		return accepted, err
	}
	if err := s.PortsFree(req.Connection, req.Engagement, req.Ports); err != nil {
		return accepted, err
	}
	r := newRecord(req.Engagement, req.Connection, p.Name, req.Ports)
	r.tty = p.Config.Tty
	s.mu.Lock()
	if s.records[req.Engagement] != old { // the same command, a moment earlier
		s.mu.Unlock()
		accepted.Already = true
		return accepted, nil
	}
	s.records[req.Engagement] = r
	s.mu.Unlock()
	<-r.turn // free: nobody else has seen the record with a token to take before
	s.opt.Go(func(ctx context.Context) {
		defer r.release()
		s.create(ctx, r, req, p)
	})
	return accepted, nil
}

// plan is the container of req, complete but for its name being free.
func (s *Set) plan(ctx context.Context, req command.CreateHandler) (*Plan, error) {
	p, err := s.newPlan(req.Handler, req.Name)
	if err != nil {
		return nil, err
	}
	if p.Name == "" {
		return nil, fault.New(fault.InvalidArgument, "", "the handler has no name")
	}
	for _, f := range req.Files {
		if !path.IsAbs(f.Path) {
			return nil, fault.New(fault.InvalidArgument, "", "the file %q has no absolute path", f.Path)
		}
	}
	if p.Config.Env, err = mergeEnv(req.Env, p.Config.Env); err != nil {
		return nil, err
	}
	if err := s.place(ctx, p, req); err != nil {
		return nil, err
	}
	extra := map[string]string{}
	for k, v := range p.Config.Labels {
		extra[k] = v
	}
	for k, v := range req.Labels {
		extra[k] = v
	}
	delete(extra, engine.LabelPorts)
	if l := portLabel(req.Ports); l != "" {
		extra[engine.LabelPorts] = l
	}
	p.Config.Labels = s.eng.Labels(engine.Handler, req.Connection, req.Engagement, extra)
	return p, nil
}

// newPlan is the plan of a container of this set's.
func (s *Set) newPlan(h command.Handler, auto string) (*Plan, error) {
	if s.opt.OnMachine {
		return newMachinePlan(h, auto)
	}
	return NewPlan(h, auto)
}

// place gives the plan its network.
func (s *Set) place(ctx context.Context, p *Plan, req command.CreateHandler) error {
	if s.opt.OnMachine {
		p.onMachine(req.Resolver, req.Ports)
		return nil
	}
	daemon, err := s.eng.DaemonOf(ctx, req.Connection)
	if err == nil {
		p.Join(daemon)
	}
	return err
}

// Start serves HandlerStart.
func (s *Set) Start(_ context.Context, req command.EngagementRef) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Engagement}
	if err := validID("engagement", req.Engagement); err != nil {
		return accepted, err
	}
	r := s.get(req.Engagement)
	if r == nil {
		return accepted, fault.New(fault.NotFound, "", "engagement %s has no handler", req.Engagement)
	}
	switch s.phaseOf(r) {
	case ended:
		return accepted, fault.New(fault.FailedPrecondition, "", "the handler %s has ended", r.name)
	case starting, running:
		accepted.Already = true
		return accepted, nil
	}
	s.opt.Go(func(ctx context.Context) { s.start(ctx, r) })
	return accepted, nil
}

// Stop serves HandlerStop: `docker stop`, or removal if it never was started.
// A reply with Already set means that nothing is left of the handler, and that
// no fact is to come; it waits for the engine to finish a removal.
func (s *Set) Stop(ctx context.Context, req command.EngagementRef) (command.Accepted, error) {
	accepted := command.Accepted{ID: req.Engagement}
	if err := validID("engagement", req.Engagement); err != nil {
		return accepted, err
	}
	r := s.get(req.Engagement)
	if r == nil {
		// What was opened at the check of a handler that was never created.
		s.opt.Beside.Close(ctx, owner.Owner{Engagement: req.Engagement})
		accepted.Already = true
		return accepted, nil
	}
	s.mu.Lock()
	over, stopping := r.phase == ended, r.stopping
	r.stopping = true
	s.mu.Unlock()
	if over {
		select {
		case <-r.gone:
			accepted.Already = true
		case <-time.After(removalTime):
		case <-ctx.Done():
		}
		return accepted, nil
	}
	if !stopping {
		s.opt.Go(func(ctx context.Context) { s.stop(ctx, r, 0) })
	}
	return accepted, nil
}

// removalTime is how long Stop waits for the engine to remove what has ended;
// the engine usually takes a tenth of a second.
const removalTime = 5 * time.Second

// StopAll ends every handler, each within limit, and waits until their facts
// are stated or ctx ends. No command may come any more.
func (s *Set) StopAll(ctx context.Context, limit time.Duration) {
	var wg sync.WaitGroup
	for _, r := range s.all() {
		wg.Go(func() {
			s.stop(ctx, r, limit)
			select {
			case <-r.done:
			case <-ctx.Done():
			}
		})
	}
	wg.Wait()
}

// Discard ends the handler of an engagement that nobody knows, without facts.
func (s *Set) Discard(ctx context.Context, engagement string) {
	r := s.get(engagement)
	if r == nil {
		return
	}
	s.mu.Lock()
	r.silent = true
	s.mu.Unlock()
	s.stop(ctx, r, 0)
}

// Forget drops what is remembered of ended handlers whose engagement is over.
func (s *Set) Forget(known func(engagement string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.records {
		if r.phase == ended && !known(id) {
			delete(s.records, id)
		}
	}
}

// owner is for whom r has ports and networks.
func (r *record) owner() owner.Owner {
	return owner.Owner{Connection: r.connection, Engagement: r.engagement, Name: r.name}
}

func newRecord(engagement, connection, name string, ports []event.Port) *record {
	r := &record{engagement: engagement, connection: connection, name: name, ports: ports, turn: make(chan struct{}, 1), done: make(chan struct{}), gone: make(chan struct{})}
	r.release()
	return r
}

// take waits for r's turn; false if ctx ended first.
func (r *record) take(ctx context.Context) bool {
	select {
	case <-r.turn:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *record) release() { r.turn <- struct{}{} }

func (s *Set) get(engagement string) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[engagement]
}

func (s *Set) all() []*record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []*record
	for _, r := range s.records {
		if r.phase != ended {
			l = append(l, r)
		}
	}
	return l
}

// live reports whether an engagement's handler is in this runner's hands.
func (s *Set) live(engagement string) bool {
	r := s.get(engagement)
	return r != nil && s.phaseOf(r) != ended
}

func (s *Set) phaseOf(r *record) phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.phase
}

func (s *Set) setPhase(r *record, p phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.phase = p
}

// state states a fact about r's engagement, if there is anybody to tell.
func (s *Set) state(ctx context.Context, r *record, d event.Data) {
	s.mu.Lock()
	silent := r.silent
	s.mu.Unlock()
	if !silent {
		s.opt.State(ctx, r.engagement, d)
	}
}

func validID(what, id string) error {
	if !subject.Valid(id) {
		return fault.New(fault.InvalidArgument, "", "%q is not the id of a %s", id, what)
	}
	return nil
}
