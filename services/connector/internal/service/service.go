// Package service is connector on the bus: it serves the commands, passes the
// facts of the other services on to those whom they concern, and watches that
// runner lives.
//
// It wires and decides nothing: connections and engagements belong to the
// packages of that name.
//
// Start: facts of an earlier life that lack a terminal one get it (see
// closeOrphans), then the tail of facts stands, then commands are taken. Stop:
// no more commands, every connection ended with its engagements, their terminal
// facts stated, then the tail ends.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/connections"
	"berth.dev/services/connector/internal/engagements"
	"berth.dev/services/connector/internal/link"
	"berth.dev/services/connector/internal/presence"

	"golang.org/x/sync/errgroup"
)

// Options are what the service is given.
type Options struct {
	Bus       *bus.Conn
	Admission connections.Admission
	BusURL    string // where a daemon container reaches the bus
	Version   string
	Image     string // of the cluster side, unless a command names one
	OnHost    bool   // connections are a machine's own
	Log       *slog.Logger
	// Open and Link are the ways to a cluster; nil for the real ones.
	Open func(kubeconfig []byte, server string) (*cluster.Cluster, error)
	Link func(connection, managerNamespace string) (connections.Link, error)
}

// closeTime is what connections get to end in when the service is told to; what
// the cluster has not restored by then is left to the manager.
const closeTime = 5 * time.Second

type service struct {
	o             Options
	connections   *connections.Set
	engagements   *engagements.Set
	installations *installations
}

// Run serves until ctx ends or the bus is lost.
func Run(ctx context.Context, o Options) error {
	s := wire(o)
	started := time.Now()
	if err := closeOrphans(ctx, o.Bus, started, o.Log); err != nil {
		return err
	}
	// The tail and the probes outlive ctx: ending needs the facts that others
	// state meanwhile.
	life, end := context.WithCancel(context.Background())
	defer end()
	g, life := errgroup.WithContext(life)
	tail, err := o.Bus.TailFacts(ctx, started)
	if err != nil {
		return err
	}
	g.Go(func() error { return s.follow(life, tail, started) })
	g.Go(func() error { s.watchRunner(life); return nil })

	stop, err := s.serve()
	if err != nil {
		end()
		_ = g.Wait()
		return err
	}
	o.Log.Info("connector is ready", "version", o.Version)
	select {
	case <-ctx.Done():
		o.Log.Info("connector was told to end")
	case <-o.Bus.Lost():
		o.Log.Error("the bus is lost: everything is undone")
	case <-life.Done():
	}
	stop()
	s.installations.stop()
	within, cancel := context.WithTimeout(context.Background(), closeTime)
	s.connections.CloseAll(within, event.ConnectorStopped)
	cancel()
	s.engagements.Wait()
	end()
	return g.Wait()
}

// wire makes the parts and ties them; nothing runs yet.
func wire(o Options) *service {
	if o.Open == nil {
		o.Open = func(kubeconfig []byte, server string) (*cluster.Cluster, error) {
			return cluster.Open(kubeconfig, server, "berth-connector/"+o.Version)
		}
	}
	if o.Link == nil {
		o.Link = func(connection, ns string) (connections.Link, error) {
			return link.New(link.Options{Connection: connection, Namespace: ns, Version: o.Version, Logger: o.Log.With("connection", connection)})
		}
	}
	s := &service{o: o, installations: newInstallations(o)}
	s.engagements = engagements.New(engagements.World{Bus: o.Bus, Log: o.Log, Connection: s.connected})
	s.connections = connections.New(connections.World{
		Bus: o.Bus, Admission: o.Admission, BusURL: o.BusURL, Version: o.Version, OnHost: o.OnHost, Log: o.Log,
		Open: o.Open, Link: o.Link, EndEngagements: s.engagements.EndAll,
	})
	return s
}

// connected is a connection through which an engagement can be made.
func (s *service) connected(id string) (engagements.Connection, error) {
	l, ok := s.connections.Get(id)
	if !ok {
		return engagements.Connection{}, fault.New(fault.FailedPrecondition, "ctl connect --docker", "there is no connection %s", id)
	}
	r, req := l.Record(), l.Request()
	if r.Phase != "connected" {
		return engagements.Connection{}, fault.New(fault.FailedPrecondition, "ctl status", "the connection %s is %s", r.Name, r.Phase)
	}
	return engagements.Connection{ID: id, Name: r.Name, Namespace: r.Namespace, Resolver: r.Resolver, Virtual: r.Virtual, Client: req.Client, Manager: l.Manager(), Cluster: l.Cluster, Link: l.Link}, nil
}

// serve answers the commands and holds connector's presence, until stop.
func (s *service) serve() (stop func(), err error) {
	svc, err := s.o.Bus.Serve(subject.Connector, s.o.Version)
	if err != nil {
		return nil, err
	}
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.ConnectionOpen, "", s.connections.Open) },
		func() error { return bus.Handle(svc, command.ConnectionClose, "", s.closeConnection) },
		func() error { return bus.Handle(svc, command.EngagementOpen, "", s.engagements.Open) },
		func() error { return bus.Handle(svc, command.EngagementClose, "", s.closeEngagement) },
		func() error { return bus.Handle(svc, command.EngagementSwitch, "", s.engagements.Switch) },
		func() error { return bus.Handle(svc, command.EngagementEnvironment, "", s.engagements.Environment) },
		func() error { return bus.Handle(svc, command.StateGet, "", s.state) },
		func() error { return bus.Handle(svc, command.WorkloadsList, "", s.workloads) },
		func() error { return bus.Handle(svc, command.Install, "", s.installations.install) },
		func() error { return bus.Handle(svc, command.Uninstall, "", s.installations.uninstall) },
	} {
		if err := add(); err != nil {
			svc.Stop()
			return nil, err
		}
	}
	release, err := s.o.Bus.Hold(subject.Connector, presence.ID)
	if err != nil {
		svc.Stop()
		return nil, err
	}
	return func() { release(); svc.Stop() }, nil
}

func (s *service) closeConnection(_ context.Context, req command.CloseConnection) (command.Accepted, error) {
	if !subject.Valid(req.ID) {
		return command.Accepted{}, fault.New(fault.InvalidArgument, "", "the connection's id %q is not a token", req.ID)
	}
	return s.connections.Close(req.ID, req.Cause)
}

func (s *service) closeEngagement(_ context.Context, req command.CloseEngagement) (command.Accepted, error) {
	return s.engagements.Close(req)
}

func (s *service) state(context.Context, command.None) (command.State, error) {
	return command.State{Version: s.o.Version, Connections: s.connections.Records(), Engagements: s.engagements.Records()}, nil
}

// follow passes facts on until ctx ends. A tail that breaks is opened again at
// the last fact that was read: what comes twice, the tables drop.
func (s *service) follow(ctx context.Context, tail *bus.Tail, since time.Time) error {
	defer func() { tail.Stop() }()
	for {
		env, err := tail.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			since = env.Time
			s.deliver(env)
			continue
		}
		s.o.Log.Warn("the tail of facts is opened again", "err", err)
		tail.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.o.Bus.Lost():
				return nil
			case <-time.After(250 * time.Millisecond):
			}
			if again, err := s.o.Bus.TailFacts(ctx, since); err == nil {
				tail = again
				break
			}
		}
	}
}

// deliver: connector's own facts are where they came from already.
func (s *service) deliver(env event.Envelope) {
	if env.Source == "/services/"+string(subject.Connector) {
		return
	}
	s.engagements.Deliver(env)
	s.connections.Deliver(env)
}

// watchRunner fails the connections when runner is proven to be gone. A runner
// that has not come yet is not gone: it has come when it has started a daemon
// container.
func (s *service) watchRunner(ctx context.Context) {
	why := fault.New(fault.Unavailable, "ctl quit --all && ctl connect --docker", "runner is gone: nobody looks after the containers")
	if s.o.OnHost {
		why = fault.New(fault.Unavailable, "ctl connect", "runner is gone, and vif and handlers with it")
	}
	came := func(c command.Connection) bool { return c.Daemon != "" }
	for ctx.Err() == nil {
		if slices.ContainsFunc(s.connections.Records(), came) && presence.Watch(ctx, s.o.Bus, presence.Runner, presence.Seldom) {
			s.o.Log.Error("runner is gone")
			s.connections.Break(why)
		}
		select {
		case <-ctx.Done():
		case <-time.After(presence.Seldom):
		}
	}
}

// idFault is nil for an id that is a token.
func idFault(what, id string) error {
	if subject.Valid(id) {
		return nil
	}
	return fault.New(fault.InvalidArgument, "", "%s", fmt.Sprintf("the %s's id %q is not a token", what, id))
}
