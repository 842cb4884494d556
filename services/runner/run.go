package main

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/daemon"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/facts"
	"berth.dev/services/runner/internal/guest"
	"berth.dev/services/runner/internal/handler"
	"berth.dev/services/runner/internal/network"
	"berth.dev/services/runner/internal/ports"
	"berth.dev/services/runner/internal/sweep"
	"berth.dev/services/runner/internal/volplugin"
)

func run(ctx context.Context, args []string) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel})).With("service", "runner")
	if cfg.lock != "" {
		lock, err := proclock.Take(cfg.lock)
		if err != nil {
			return err
		}
		defer lock.Release()
	}
	if cfg.standby != "" {
		return serveHost(ctx, cfg, log)
	}
	return serve(ctx, cfg, log)
}

// serve is runner's life. It ends when ctx does (SIGTERM), with what belongs to
// connections undone and stated, or when the bus is lost, with everything
// undone: connector is dead then, and nobody else will. Every goroutine has
// ended when it returns.
func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	eng, err := engine.Open(ctx, engine.Options{Workspace: cfg.workspace, Version: version, Image: cfg.image, Log: log})
	if err != nil {
		return err
	}
	defer eng.Close()
	conn, err := bus.Await(ctx, cfg.bus)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := wire(eng, conn, cfg, log)
	defer r.end()
	if err := r.adopt(ctx); err != nil {
		return err
	}
	stop, err := r.answer(conn)
	if err != nil {
		return err
	}
	r.spawn(r.sweeper.Run)
	r.spawn(func(ctx context.Context) { _, _ = r.plugin.Ensure(ctx, command.None{}) }) // before somebody waits for it
	r.spawn(r.calmDown)
	log.Info("runner is ready", "version", version, "workspace", cfg.workspace, "image", eng.Image)

	select {
	case <-ctx.Done():
		log.Info("runner was told to end")
		stop()
		r.undo(undoTime)
	case <-conn.Lost():
		log.Error("the bus is lost: everything is undone")
		stop()
		r.undo(undoTime)
		r.undoRest()
	}
	return nil
}

// undoTime is within the ten seconds that `docker stop` grants, drain included.
const (
	undoTime    = 8 * time.Second
	handlerTime = 4 * time.Second // of those, for a handler to heed its stop signal
	restTime    = 15 * time.Second
)

// runner is the parts, and the goroutines that they spawn.
type runner struct {
	watch    *engine.Watch
	handlers *handler.Set
	daemons  *daemon.Set
	guests   guest.Maker
	beside   beside.Holder
	joiner   network.Joiner
	sweeper  *sweep.Sweeper
	plugin   *volplugin.Plugin
	log      *slog.Logger

	calm     chan struct{} // closed when the first connection does not wait for the engine any more
	calmOnce sync.Once

	life   context.Context // of spawned goroutines: ends after everything was undone
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// wire makes the parts and ties them; nothing runs yet.
func wire(eng *engine.Engine, conn *bus.Conn, cfg config, log *slog.Logger) *runner {
	r := &runner{joiner: network.Joiner{Engine: eng}, log: log, calm: make(chan struct{})}
	r.life, r.cancel = context.WithCancel(context.Background())
	state := facts.Stater{Bus: conn, Log: log}.State
	r.watch = eng.NewWatch(func() { r.sweeper.Trigger() })
	r.beside = beside.Holder{
		Ports:    ports.New(eng, r.watch, ports.Options{Network: cfg.network, State: state, Go: r.spawn, Log: log}),
		Networks: network.NewAttached(eng),
	}
	way := cfg.volumePlugin
	if way == "" {
		way = volplugin.None
	}
	r.plugin = volplugin.New(eng, volplugin.Options{Binary: cfg.telemount, Version: version, Way: way, Calm: r.calm, Go: r.spawn, Log: log})
	r.handlers = handler.New(eng, r.watch, handler.Options{
		VolumeDriver: cfg.volumeDriver, VolumePlugin: r.plugin.Ensure, Beside: r.beside, State: state, Go: r.spawn, Log: log,
		Output: func(engagement string) handler.Output { return conn.Output(engagement, subject.Runner) },
	})
	r.guests = guest.Maker{Engine: eng, Watch: r.watch, Beside: r.beside, PortsFree: r.handlers.PortsFree, Go: r.spawn, Log: log}
	r.daemons = daemon.New(eng, r.watch, daemon.Options{
		Network: cfg.network, State: state, Go: r.spawn, Log: log,
		Started: r.beCalm,
		Ended: func(ctx context.Context, connection string) {
			if err := r.guests.End(ctx, connection, handlerTime); err != nil {
				log.Warn("containers of an ended connection are left to the next sweep", "connection", connection, "err", err)
			}
		},
	})
	r.sweeper = sweep.New(sweep.Sweeper{
		Engine: eng, Handlers: r.handlers, Daemons: r.daemons, Beside: r.beside, Log: log,
		State: func(ctx context.Context) (command.State, error) {
			return bus.Call(ctx, conn, command.StateGet, "", command.None{})
		},
	})
	return r
}

// adopt takes over what an earlier runner left. The watch comes first, so that
// what ends from here on is seen.
func (r *runner) adopt(ctx context.Context) error {
	ready := make(chan struct{})
	r.spawn(func(ctx context.Context) { r.watch.Run(ctx, func() { close(ready) }) })
	select {
	case <-ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := r.daemons.Adopt(ctx); err != nil {
		return err
	}
	if err := r.beside.Adopt(ctx); err != nil {
		return err
	}
	if err := r.guests.Adopt(ctx); err != nil {
		return err
	}
	return r.handlers.Adopt(ctx)
}

// answer serves the commands and holds runner's presence, until stop.
func (r *runner) answer(conn *bus.Conn) (stop func(), err error) {
	svc, err := conn.Serve(subject.Runner, version)
	if err != nil {
		return nil, err
	}
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.NetworkJoin, "", r.joiner.Join) },
		func() error { return bus.Handle(svc, command.DaemonStart, "", r.daemons.Start) },
		func() error { return bus.Handle(svc, command.DaemonStop, "", r.daemons.Stop) },
		func() error { return bus.Handle(svc, command.HandlerCheck, "", r.handlers.Check) },
		func() error { return bus.Handle(svc, command.HandlerCreate, "", r.handlers.Create) },
		func() error { return bus.Handle(svc, command.HandlerStart, "", r.handlers.Start) },
		func() error { return bus.Handle(svc, command.HandlerHealth, "", r.handlers.Health) },
		func() error { return bus.Handle(svc, command.HandlerStop, "", r.handlers.Stop) },
		func() error { return bus.Handle(svc, command.VolumesEnsure, "", r.plugin.Ensure) },
		func() error { return bus.Handle(svc, command.ContainerCreate, "", r.guests.Create) },
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

// calmAfter is how long after its start runner is in a hurry: a workspace is
// mostly started for a connection, which comes at once.
const calmAfter = 3 * time.Second

func (r *runner) beCalm() { r.calmOnce.Do(func() { close(r.calm) }) }

func (r *runner) calmDown(ctx context.Context) {
	select {
	case <-time.After(calmAfter):
		r.beCalm()
	case <-r.calm:
	case <-ctx.Done():
	}
}

// presence is the id under which runner shows that it lives: a bus has one.
const presence = "default"

// spawn runs f in a goroutine that end waits for.
func (r *runner) spawn(f func(context.Context)) { r.wg.Go(func() { f(r.life) }) }

// undo ends every handler, daemon container and guest, and states it.
func (r *runner) undo(limit time.Duration) {
	ctx, cancel := context.WithTimeout(r.life, limit)
	defer cancel()
	r.handlers.StopAll(ctx, handlerTime)
	r.daemons.StopAll(ctx)
	r.sweeper.Containers(ctx)
}

// undoRest removes what is left when nobody else will.
func (r *runner) undoRest() {
	ctx, cancel := context.WithTimeout(r.life, restTime)
	defer cancel()
	r.sweeper.Containers(ctx)
	r.sweeper.Rest(ctx)
	if err := r.plugin.Remove(ctx); err != nil {
		r.log.Warn("the volume plugin is left to ctl quit", "err", err)
	}
}

// end ends the goroutines and waits for them.
func (r *runner) end() {
	r.cancel()
	r.wg.Wait()
}
