// Package connections carries out what package connection decides.
//
// Each connection is a [Live] with one goroutine that takes inputs from its
// inbox, asks the table, states the fact and sends the commands; whatever takes
// time runs beside it and reports with another input. A Live ends when its
// terminal fact is stated, and only then leaves the [Set].
//
// What a connection creates, and who removes it when this process is killed:
// the daemon container (runner, which loses the bus), the Lease (the manager,
// when it is not renewed), the identity on the bus (it lives in this process),
// the token (it expires).
//
// Locks: Set.mu before Live.mu; neither is held over a call to the bus, the
// cluster or another package.
package connections

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
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/connection"
)

// Link is the connector's own tunnel to the manager; *link.Link is one.
type Link interface {
	Pin() string
	Use(a command.Access, managerPin string)
	Ping(ctx context.Context) error
	Environment(ctx context.Context, engagement string) (lease.Environment, error)
	File(ctx context.Context, engagement, token, path string) (command.File, error)
	Close()
}

// Admission is who lets identities onto the bus; *embed.Server is one.
type Admission interface {
	Add(bus.Identity) error
	Remove(name string)
}

// World is what connections act on.
type World struct {
	Bus       *bus.Conn
	Admission Admission
	BusURL    string // where a daemon container reaches the bus
	Version   string
	OnHost    bool // the machine's resolver is to know the cluster's namespaces
	Log       *slog.Logger
	Open      func(kubeconfig []byte, server string) (*cluster.Cluster, error)
	Link      func(connection, managerNamespace string) (Link, error)
	// EndEngagements ends those of a connection and returns when they are over
	// or ctx ends; why is nil for a quit.
	EndEngagements func(ctx context.Context, connection, cause string, why *fault.Error)
}

// Limits of connecting and of its undoing.
const (
	ConnectWithin = 18 * time.Second
	reachWithin   = 5 * time.Second
	undoWithin    = 10 * time.Second // each command of it
	exitWithin    = 5 * time.Second  // runner's word that the daemon container is gone
	endWithin     = 70 * time.Second // engagements: their own limit is 60 s
)

// atOnce is how many connections come up at a time. More of them would not be up
// sooner, as the engine makes one container after another, but each would wait for
// all others, for longer than ConnectWithin.
const atOnce = 4

// Set is all connections. Its methods may be called concurrently.
type Set struct {
	w World

	mu   sync.Mutex
	byID map[string]*Live
	done *recent
	wg   sync.WaitGroup
	// turns holds one for each connection that is coming up.
	turns chan struct{}
}

// New returns an empty set.
func New(w World) *Set {
	return &Set{w: w, byID: map[string]*Live{}, done: newRecent(256), turns: make(chan struct{}, atOnce)}
}

// Open accepts or refuses a connection. The same call again is accepted; the
// same name with other options is refused.
func (s *Set) Open(ctx context.Context, req command.OpenConnection) (command.Accepted, error) {
	if err := validate(&req); err != nil {
		return command.Accepted{}, err
	}
	c, err := s.w.Open(req.Kubeconfig, req.Server)
	if err != nil {
		return command.Accepted{}, fault.At(string(event.StageAPIServer), err)
	}
	lk, err := s.w.Link(req.ID, req.ManagerNamespace)
	if err != nil {
		return command.Accepted{}, err
	}
	options := digest(req)
	l := newLive(s.w, req, options, c, lk, s.turns)
	s.mu.Lock()
	already, err := s.conflict(req, options)
	if already != "" || err != nil {
		s.mu.Unlock()
		lk.Close()
		return command.Accepted{ID: already, Already: already != ""}, err
	}
	s.byID[req.ID] = l
	s.wg.Add(1)
	s.mu.Unlock()

	r := l.Record()
	requested := event.ConnectionRequested{Name: r.Name, Context: r.Context, Namespace: r.Namespace, Server: r.Server}
	if err := s.w.Bus.State(ctx, req.ID, requested); err != nil {
		s.forget(req.ID)
		s.wg.Done()
		lk.Close()
		return command.Accepted{}, fault.New(fault.Unavailable, "ctl status", "state that the connection was requested: %v", err)
	}
	go func() {
		defer s.wg.Done()
		defer s.forget(req.ID)
		l.run()
	}()
	return command.Accepted{ID: req.ID}, nil
}

// conflict looks for a connection of the same id or name; s.mu is held.
func (s *Set) conflict(req command.OpenConnection, options string) (already string, err error) {
	if s.byID[req.ID] != nil || s.done.has(req.ID) {
		return req.ID, nil
	}
	for id, other := range s.byID {
		r := other.Record()
		switch {
		case r.Name != req.Name || other.isOver():
		case r.Phase == "disconnecting":
			return "", fault.New(fault.FailedPrecondition, "ctl connect --docker --name "+req.Name, "the connection %s is just being ended", r.Name)
		case r.Options == options:
			return id, nil
		default:
			return "", fault.New(fault.FailedPrecondition, "ctl quit --use "+req.Name, "the connection %s is there with other flags (context %s, namespace %s): quit it first, or give this one another --name", r.Name, r.Context, r.Namespace)
		}
	}
	return "", nil
}

func (s *Set) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	s.done.add(id)
}

// Close asks a connection to end. One that has ended, or was never there, is
// accepted: that is what was asked for.
func (s *Set) Close(id, cause string) (command.Accepted, error) {
	s.mu.Lock()
	l := s.byID[id]
	s.mu.Unlock()
	if l == nil {
		return command.Accepted{ID: id, Already: true}, nil
	}
	if cause == "" {
		cause = "quit"
	}
	already := l.Record().Phase == "disconnecting"
	l.put(connection.Input{On: connection.CloseAsked, Cause: cause})
	return command.Accepted{ID: id, Already: already}, nil
}

// Get returns a connection by id.
func (s *Set) Get(id string) (*Live, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.byID[id]
	return l, ok
}

// Records are those of all connections, by name.
func (s *Set) Records() []command.Connection {
	all := []command.Connection{}
	for _, l := range s.all() {
		if !l.isOver() {
			all = append(all, l.Record())
		}
	}
	slices.SortFunc(all, func(a, b command.Connection) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return all
}

func (s *Set) all() []*Live {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Live
	for _, l := range s.byID {
		all = append(all, l)
	}
	return all
}

// Deliver passes on a fact that another service stated about a connection.
func (s *Set) Deliver(env event.Envelope) {
	l, ok := s.Get(env.Subject)
	if !ok {
		return
	}
	if in, ok := connection.InputOf(env); ok {
		l.put(in)
	}
}

// Break fails every connection: runner is gone, say.
func (s *Set) Break(why *fault.Error) {
	for _, l := range s.all() {
		l.put(connection.Input{On: connection.Broken, Error: why})
	}
}

// CloseAll asks every connection to end and waits until they have, or ctx ends;
// then it gives up what they wait for.
func (s *Set) CloseAll(ctx context.Context, cause string) {
	for _, l := range s.all() {
		l.put(connection.Input{On: connection.CloseAsked, Cause: cause})
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		for _, l := range s.all() {
			l.giveUp()
		}
		<-done
	}
}
