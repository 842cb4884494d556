package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
	"berth.dev/services/builder/internal/build"
	"berth.dev/services/builder/internal/door"

	"github.com/docker/docker/client"
)

func run(ctx context.Context, args []string) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	if len(cfg.words) > 0 {
		return door.Pipe(ctx, cfg.door, os.Stdin, os.Stdout)
	}
	if cfg.lock != "" {
		lock, err := proclock.Take(cfg.lock)
		if err != nil {
			return err
		}
		defer lock.Release()
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel})).With("service", "builder")
	return serve(ctx, cfg, log)
}

// undoTime is for the builds that are cancelled, their facts included.
const undoTime = 4 * time.Second

// serve is builder's life. It ends when ctx does or when the bus is lost; every
// build is cancelled then. Every goroutine has ended when it returns.
func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return fmt.Errorf("make the docker client: %w", err)
	}
	defer api.Close()
	conn, err := bus.Await(ctx, cfg.bus)
	if err != nil {
		return err
	}
	defer conn.Close()
	set := build.New(build.Options{
		API: api, Log: log,
		State: func(ctx context.Context, id string, d event.Data) {
			if err := conn.State(ctx, id, d); err != nil {
				log.Error("a fact is lost", "build", id, "type", event.TypeOf(d), "err", err)
			}
		},
		Output: func(id string) build.Output { return output{conn.BuildOutput(id)} },
	})
	d, err := door.Open(cfg.door, set.Admit, log)
	if err != nil {
		return err
	}
	defer d.Close()
	stop, err := answer(conn, set)
	if err != nil {
		return err
	}
	log.Info("builder is ready", "version", version, "workspace", cfg.workspace)
	select {
	case <-ctx.Done():
		log.Info("builder was told to end")
	case <-conn.Lost():
		log.Error("the bus is lost: every build is cancelled")
	}
	stop()
	limited, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	set.Stop(limited)
	return nil
}

// answer serves the commands and holds builder's presence, until stop.
func answer(conn *bus.Conn, set *build.Set) (stop func(), err error) {
	svc, err := conn.Serve(subject.Builder, version)
	if err != nil {
		return nil, err
	}
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.BuildStart, "", set.Start) },
		func() error { return bus.Handle(svc, command.BuildCancel, "", set.Cancel) },
	} {
		if err := add(); err != nil {
			svc.Stop()
			return nil, err
		}
	}
	release, err := conn.Hold(subject.Builder, presence)
	if err != nil {
		svc.Stop()
		return nil, err
	}
	return func() { release(); svc.Stop() }, nil
}

// presence is the id under which builder shows that it lives: a bus has one.
const presence = "default"

// output writes both streams of a build as one, as engines do.
type output struct{ *bus.Output }

func (o output) Write(b []byte) (int, error) { return io.Writer(o.Stdout()).Write(b) }
