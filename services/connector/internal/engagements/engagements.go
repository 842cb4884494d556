// Package engagements carries out what package engage decides.
//
// Each engagement is a [Live] with one goroutine that takes inputs from its
// inbox, asks the table, states the fact and sends the commands. What goes
// forward is sent by one worker, in order; when the undoing begins, the worker
// is told to stop and waited for, then what undoes is sent at once, each command
// until it succeeds or the time is over.
//
// What an engagement creates, and who removes it when this process is killed:
// the Lease and with it the swapped pods (the manager, when it is not renewed),
// the handler (runner, which loses the bus), the redirection (dies with vif).
// The environment is held from the manager's answer to runner's acceptance, in
// memory, and is part of no fact, log line or object.
//
// Locks: Set.mu before Live.mu; neither is held over a call to the bus, the
// cluster or another package.
package engagements

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/engage"
)

// Environment asks for the environment of an engaged container; a connection's
// link is one.
type Environment interface {
	Environment(ctx context.Context, engagement string) (lease.Environment, error)
	// File reads a volume that is a single file.
	File(ctx context.Context, engagement, token, path string) (command.File, error)
}

// Connection is what an engagement needs to know of the connection it is made
// through.
type Connection struct {
	ID        string
	Name      string
	Namespace string // connected
	Resolver  string // address of the DNS server at the VIF
	Virtual   []event.VirtualSubnet
	Client    string // user@host
	Manager   lease.Info
	Cluster   *cluster.Cluster
	Link      Environment
}

// World is what engagements act on.
type World struct {
	Bus *bus.Conn
	Log *slog.Logger
	// Connection returns a connection that is connected, or a fault.
	Connection func(id string) (Connection, error)
}

// Set is all engagements. Its methods may be called concurrently.
type Set struct {
	w World

	mu   sync.Mutex
	byID map[string]*Live // nil while its opening is being checked
	done []string         // the last ids that were over
	wg   sync.WaitGroup
}

// New returns an empty set.
func New(w World) *Set { return &Set{w: w, byID: map[string]*Live{}} }

// Open accepts an engagement, or refuses it before anything was touched.
func (s *Set) Open(ctx context.Context, req command.OpenEngagement) (command.Accepted, error) {
	if err := validate(&req); err != nil {
		return command.Accepted{}, err
	}
	conn, err := s.w.Connection(req.Connection)
	if err != nil {
		return command.Accepted{}, err
	}
	if !s.reserve(req.ID) {
		return command.Accepted{ID: req.ID, Already: true}, nil
	}
	l, err := s.open(ctx, req, conn)
	if err != nil {
		s.forget(req.ID, false)
		return command.Accepted{}, err
	}
	s.mu.Lock()
	s.byID[req.ID] = l
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		defer s.forget(req.ID, true)
		l.run()
	}()
	// Between the check above and now the connection may have begun to end, and
	// have ended only the engagements it saw.
	if _, err := s.w.Connection(req.Connection); err != nil {
		l.put(engage.Input{On: engage.CommandFailed, Error: fault.From(err)})
	}
	return command.Accepted{ID: req.ID}, nil
}

// reserve takes the id, unless it is or was there.
func (s *Set) reserve(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byID[id]; ok || slices.Contains(s.done, id) {
		return false
	}
	s.byID[id] = nil
	return true
}

func (s *Set) forget(id string, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	if over {
		if s.done = append(s.done, id); len(s.done) > 512 {
			s.done = slices.Delete(s.done, 0, len(s.done)-512)
		}
	}
}

// Close asks an engagement to end, by id or by name. By id, one that is over is
// accepted; by name there must be one.
func (s *Set) Close(req command.CloseEngagement) (command.Accepted, error) {
	if req.Cause == "" {
		req.Cause = "leave"
	}
	l, err := s.find(req)
	if err != nil {
		return command.Accepted{}, err
	}
	if l == nil {
		return command.Accepted{ID: req.ID, Already: true}, nil
	}
	r := l.Record()
	l.put(engage.Input{On: engage.EndAsked, Cause: req.Cause})
	return command.Accepted{ID: r.ID, Already: r.Phase == engage.Restoring.Phase()}, nil
}

func (s *Set) find(req command.CloseEngagement) (*Live, error) {
	if req.ID != "" {
		if !subject.Valid(req.ID) {
			return nil, fault.New(fault.InvalidArgument, "", "the engagement's id %q is not a token", req.ID)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.byID[req.ID], nil
	}
	if req.Name == "" {
		return nil, fault.New(fault.InvalidArgument, "ctl list", "the engagement to end is not named")
	}
	var found []*Live
	var names []string
	for _, l := range s.all() {
		r := l.Record()
		if req.Connection != "" && r.Connection != req.Connection {
			continue
		}
		names = append(names, r.Name)
		if r.ID == req.Name {
			return l, nil
		}
		if r.Name == req.Name || lease.Names(req.Name, r.WorkloadKind, r.Workload) || r.Workload+"/"+r.Container == req.Name {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if len(names) == 0 {
			return nil, fault.New(fault.NotFound, "ctl list", "there is no engagement")
		}
		slices.Sort(names)
		return nil, fault.New(fault.NotFound, "ctl leave "+names[0], "there is no engagement %s; there are: %s", req.Name, strings.Join(names, ", "))
	}
	var titles []string
	for _, l := range found {
		r := l.Record()
		titles = append(titles, r.ID+" ("+r.Kind+" "+r.Name+", namespace "+r.Namespace+", connection "+r.Connection+")")
	}
	return nil, fault.New(fault.InvalidArgument, "ctl leave "+found[0].Record().ID, "%s is ambiguous; each can be named by its id: %s", req.Name, strings.Join(titles, ", "))
}

// EndAll ends the engagements of a connection and waits until they are over, or
// until ctx ends: then it gives up what they wait for. why is nil where the user
// asked for it.
func (s *Set) EndAll(ctx context.Context, connection, cause string, why *fault.Error) {
	var mine []*Live
	for _, l := range s.all() {
		if l.Record().Connection == connection {
			mine = append(mine, l)
			if why != nil {
				l.put(engage.Input{On: engage.CommandFailed, Error: why})
			} else {
				l.put(engage.Input{On: engage.EndAsked, Cause: cause})
			}
		}
	}
	for _, l := range mine {
		select {
		case <-l.over:
		case <-ctx.Done():
			l.put(engage.Input{On: engage.TimeOver})
			<-l.over
		}
	}
}

// Records are those of all engagements, by name.
func (s *Set) Records() []command.Engagement {
	all := []command.Engagement{}
	for _, l := range s.all() {
		if !l.isOver() {
			all = append(all, l.Record())
		}
	}
	slices.SortFunc(all, func(a, b command.Engagement) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return all
}

func (s *Set) all() []*Live {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Live
	for _, l := range s.byID {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// Deliver passes on a fact that another service stated about an engagement. A
// handler of an engagement that is over is stopped, as the table says.
func (s *Set) Deliver(env event.Envelope) {
	in, ok := engage.InputOf(env)
	if !ok {
		return
	}
	id, via := env.Subject, ""
	if d, is := event.Decode[event.VolumesLost](env); is {
		id, via = d.Engagement, env.Subject
	}
	s.mu.Lock()
	l, there := s.byID[id]
	was := slices.Contains(s.done, id)
	s.mu.Unlock()
	switch {
	case via != "" && (l == nil || l.plan.conn.ID != via):
		// A vif speaks of its own connection's engagements only.
	case l != nil:
		l.put(in)
	case there || !was:
		// Not ours: of an engagement that another connector made.
	default:
		_, _, do, _ := engage.State{Stage: engage.Over}.Next(in)
		if slices.Contains(do, engage.StopHandler) {
			go s.stopLate(id)
		}
	}
}

func (s *Set) stopLate(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := bus.Call(ctx, s.w.Bus, command.HandlerStop, "", command.EngagementRef{Engagement: id}); err != nil {
		s.w.Log.Warn("a handler of an engagement that is over is left to runner's sweep", "engagement", id, "err", err)
	}
}

// Wait waits until every engagement is over.
func (s *Set) Wait() { s.wg.Wait() }
