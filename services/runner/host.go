package main

import (
	"context"
	"log/slog"
	"os"
	"sync"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/facts"
	"berth.dev/services/runner/internal/hostvif"
)

// serveHost is runner's life as a process of a machine, whose daemon is a process
// too: it needs no Docker Engine. It ends as serve does.
func serveHost(ctx context.Context, cfg config, log *slog.Logger) error {
	conn, err := bus.Await(ctx, cfg.bus)
	if err != nil {
		return err
	}
	defer conn.Close()
	life, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	vifs := hostvif.New(hostvif.Options{
		Socket: cfg.standby, Log: log, Output: os.Stderr, State: facts.Stater{Bus: conn, Log: log}.State,
		Go: func(f func(context.Context)) { wg.Go(func() { f(life) }) },
	})
	if err := vifs.Listen(); err != nil {
		return err
	}
	stop, err := answerHost(conn, vifs)
	if err != nil {
		return err
	}
	log.Info("runner is ready", "version", version, "workspace", cfg.workspace)
	select {
	case <-ctx.Done():
		log.Info("runner was told to end")
	case <-conn.Lost():
		log.Error("the bus is lost: everything is undone")
	}
	stop()
	limited, done := context.WithTimeout(life, undoTime)
	defer done()
	vifs.StopAll(limited)
	return nil
}

// answerHost serves the commands and holds runner's presence, until stop.
func answerHost(conn *bus.Conn, vifs *hostvif.Set) (stop func(), err error) {
	svc, err := conn.Serve(subject.Runner, version)
	if err != nil {
		return nil, err
	}
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.DaemonStart, "", vifs.Start) },
		func() error { return bus.Handle(svc, command.DaemonStop, "", vifs.Stop) },
		func() error {
			return bus.Handle(svc, command.HandlerCheck, "", notHere[command.CheckHandler, command.CheckedHandler])
		},
		func() error {
			return bus.Handle(svc, command.HandlerCreate, "", notHere[command.CreateHandler, command.Accepted])
		},
		func() error { return bus.Handle(svc, command.HandlerStop, "", noHandler) },
		func() error { return bus.Handle(svc, command.VolumesEnsure, "", noVolumes) },
	} {
		if err := add(); err != nil {
			svc.Stop()
			return nil, err
		}
	}
	release, err := conn.Hold(subject.Runner, presence)
	if err != nil {
		svc.Stop()
		return nil, err
	}
	return func() { release(); svc.Stop() }, nil
}

// notHere refuses what takes a daemon container.
func notHere[Req, Rep any](context.Context, Req) (Rep, error) {
	var none Rep
	return none, fault.New(fault.FailedPrecondition, "ctl connect --docker", "handlers in containers need a connection with --docker in this version; a command of this machine can be one here (-- COMMAND)")
}

// noHandler serves HandlerStop: nothing is left of a handler.
func noHandler(_ context.Context, req command.EngagementRef) (command.Accepted, error) {
	return command.Accepted{ID: req.Engagement, Already: true}, nil
}

// noVolumes serves VolumesEnsure.
func noVolumes(context.Context, command.None) (command.VolumePlugin, error) {
	return command.VolumePlugin{Reason: "remote volumes are not mounted on this machine itself yet: ctl connect --docker"}, nil
}
