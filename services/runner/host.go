package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/facts"
	"berth.dev/services/runner/internal/handler"
	"berth.dev/services/runner/internal/hostvif"
	"berth.dev/services/runner/internal/sweep"
	"berth.dev/services/runner/internal/volplugin"

	"golang.org/x/sys/unix"
)

// serveHost is runner's life as a process of a machine, whose daemon is a process
// too: it needs no Docker Engine but for handlers in containers. It ends as serve does.
func serveHost(ctx context.Context, cfg config, log *slog.Logger) error {
	conn, err := bus.Await(ctx, cfg.bus)
	if err != nil {
		return err
	}
	defer conn.Close()
	life, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	spawn := func(f func(context.Context)) { wg.Go(func() { f(life) }) }
	handlers := &hostHandlers{cfg: cfg, conn: conn, log: log, spawn: spawn}
	defer func() { cancel(); wg.Wait(); handlers.close() }()
	vifs := hostvif.New(hostvif.Options{
		Socket: cfg.standby, Log: log, Output: os.Stderr, State: facts.Stater{Bus: conn, Log: log}.State, Go: spawn,
	})
	if err := vifs.Listen(); err != nil {
		return err
	}
	if err := vifs.CatchUp(ctx, func(ctx context.Context) (command.State, error) {
		return bus.Call(ctx, conn, command.StateGet, "", command.None{})
	}); err != nil {
		return err
	}
	if cfg.engineUsed {
		// An earlier runner may have left handlers there.
		if _, err := handlers.open(ctx); err != nil {
			log.Warn("handlers of an earlier runner are left to ctl quit", "err", err)
		}
	}
	stop, err := answerHost(conn, vifs, handlers)
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
	handlers.stopAll(limited)
	vifs.StopAll(limited)
	handlers.removePlugin(limited)
	return nil
}

// answerHost serves the commands and holds runner's presence, until stop.
func answerHost(conn *bus.Conn, vifs *hostvif.Set, h *hostHandlers) (stop func(), err error) {
	svc, err := conn.Serve(subject.Runner, version)
	if err != nil {
		return nil, err
	}
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.DaemonStart, "", vifs.Start) },
		func() error { return bus.Handle(svc, command.DaemonStop, "", vifs.Stop) },
		func() error { return bus.Handle(svc, command.HandlerCheck, "", onSet(h, (*handler.Set).Check)) },
		func() error { return bus.Handle(svc, command.HandlerCreate, "", onSet(h, (*handler.Set).Create)) },
		func() error { return bus.Handle(svc, command.HandlerStart, "", onSet(h, (*handler.Set).Start)) },
		func() error { return bus.Handle(svc, command.HandlerHealth, "", onSet(h, (*handler.Set).Health)) },
		func() error { return bus.Handle(svc, command.HandlerStop, "", h.stop) },
		func() error { return bus.Handle(svc, command.VolumesEnsure, "", h.volumes) },
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

// hostHandlers are the handlers in containers of a machine's connection. The
// engine is opened when the first of them is asked for: without one the machine
// is connected all the same, and its programs can be handlers.
type hostHandlers struct {
	cfg   config
	conn  *bus.Conn
	log   *slog.Logger
	spawn func(func(context.Context))

	mu     sync.Mutex
	eng    *engine.Engine
	set    *handler.Set // nil before
	plugin *volplugin.Plugin
	apart  string // why volumes of this engine cannot reach vif; empty: they can
}

// open opens the engine and takes over what an earlier runner left there.
func (h *hostHandlers) open(ctx context.Context) (*handler.Set, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.set != nil {
		return h.set, nil
	}
	eng, err := engine.Open(ctx, engine.Options{Workspace: h.cfg.workspace, Version: version, Image: "berth:" + version, Log: h.log})
	if err != nil {
		return nil, err
	}
	apart, err := apartFrom(ctx, eng)
	if err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	// Managed: what the engine would need of the other way, an image and a container
	// that stays, is not on a machine that does without them.
	h.plugin = volplugin.New(eng, volplugin.Options{Binary: h.cfg.telemount, Version: version, Way: volplugin.Managed, OnMachine: true, Go: h.spawn, Log: h.log})
	h.apart = apart
	var sweeper *sweep.Sweeper
	watch := eng.NewWatch(func() { sweeper.Trigger() })
	set := handler.New(eng, watch, handler.Options{
		OnMachine: true, Beside: handler.NothingBeside{}, VolumeDriver: volplugin.Driver, VolumePlugin: h.ensure,
		State: facts.Stater{Bus: h.conn, Log: h.log}.State, Go: h.spawn, Log: h.log,
		Output: func(engagement string) handler.Output { return h.conn.Output(engagement, subject.Runner) },
	})
	sweeper = sweep.New(sweep.Sweeper{
		Engine: eng, Handlers: set, Daemons: noDaemons{}, Beside: noDaemons{}, Log: h.log,
		State: func(ctx context.Context) (command.State, error) {
			return bus.Call(ctx, h.conn, command.StateGet, "", command.None{})
		},
	})
	ready := make(chan struct{})
	h.spawn(func(ctx context.Context) { watch.Run(ctx, func() { close(ready) }) })
	select {
	case <-ready:
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), eng.Close())
	}
	if err := set.Adopt(ctx); err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	h.spawn(sweeper.Run)
	h.eng, h.set = eng, set
	return set, nil
}

// onSet serves a command by the handlers.
func onSet[Req, Rep any](h *hostHandlers, serve func(*handler.Set, context.Context, Req) (Rep, error)) func(context.Context, Req) (Rep, error) {
	return func(ctx context.Context, req Req) (Rep, error) {
		set, err := h.open(ctx)
		if err != nil {
			var none Rep
			return none, err
		}
		return serve(set, ctx, req)
	}
}

// stop serves HandlerStop: without an engine nothing is left of a handler.
func (h *hostHandlers) stop(ctx context.Context, req command.EngagementRef) (command.Accepted, error) {
	h.mu.Lock()
	set := h.set
	h.mu.Unlock()
	if set == nil {
		return command.Accepted{ID: req.Engagement, Already: true}, nil
	}
	return set.Stop(ctx, req)
}

// stopAll ends every handler and states it.
func (h *hostHandlers) stopAll(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.set != nil {
		h.set.StopAll(ctx, handlerTime)
	}
}

// close closes the engine, when nothing runs any more.
func (h *hostHandlers) close() {
	if h.eng != nil {
		_ = h.eng.Close()
	}
}

// noDaemons is what a machine does not have for a sweep to look at: daemon
// containers, and what handlers have beside a shared network.
type noDaemons struct{}

// Stop implements sweep.Daemons.
func (noDaemons) Stop(_ context.Context, req command.StopDaemon) (command.Accepted, error) {
	return command.Accepted{ID: req.Connection, Already: true}, nil
}

// Holds implements sweep.Beside.
func (noDaemons) Holds(map[string]string, func(string) bool) bool { return false }

// Reconcile implements sweep.Beside.
func (noDaemons) Reconcile(context.Context, func(string) bool) error { return nil }

// volumes serves VolumesEnsure. Nothing is installed for who only asks.
func (h *hostHandlers) volumes(ctx context.Context, none command.None) (command.VolumePlugin, error) {
	h.mu.Lock()
	set := h.set
	h.mu.Unlock()
	if set == nil {
		return command.VolumePlugin{Reason: "the volume plugin comes with the first handler in a container"}, nil
	}
	return h.ensure(ctx, none)
}

// ensure makes sure of the volume plugin, for an engine that is open.
func (h *hostHandlers) ensure(ctx context.Context, none command.None) (command.VolumePlugin, error) {
	if h.apart != "" {
		return command.VolumePlugin{Reason: h.apart}, nil
	}
	return h.plugin.Ensure(ctx, none)
}

// removePlugin takes out what was installed for the handlers that have ended.
func (h *hostHandlers) removePlugin(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.set == nil {
		return
	}
	if err := h.plugin.Remove(ctx); err != nil {
		h.log.Warn("the volume plugin is left to ctl quit", "err", err)
	}
}

// apartFrom says why the engine's plugins do not share this machine's network, in
// which vif lets them in at a loopback address; empty: they do. An engine in a
// virtual machine (Docker Desktop) has a local socket all the same.
func apartFrom(ctx context.Context, eng *engine.Engine) (string, error) {
	info, err := eng.API.Info(ctx)
	if err != nil {
		return "", engine.Fault(err, "ask the engine where it runs")
	}
	const instead = "; with ctl connect --docker its containers have remote volumes, and commands of this machine have them here (-- COMMAND)"
	for _, o := range info.SecurityOptions {
		if strings.Contains(o, "name=rootless") {
			return "the engine is rootless, its plugins are in a network of their own" + instead, nil
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("ask the kernel its name: %w", err)
	}
	if here := unix.ByteSliceToString(u.Release[:]); info.KernelVersion != here {
		return fmt.Sprintf("the engine runs on another kernel (%s) than this machine (%s)", info.KernelVersion, here) + instead, nil
	}
	return "", nil
}
