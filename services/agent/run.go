package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/environment"
	"berth.dev/services/agent/internal/health"
	"berth.dev/services/agent/internal/link"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/volumes"
	"berth.dev/tunnel"

	"golang.org/x/sync/errgroup"
)

// margin is what is left of the grace period when flows that are still open are
// given up, so that they are reset by us and not by SIGKILL.
const margin = 2 * time.Second

// run listens on the engaged container's ports until SIGTERM, then turns
// unready, takes no new flows and lets the open ones end.
func run(ctx context.Context, args []string) error {
	cfg, err := configure(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level})).With("service", "agent", "engagement", cfg.engagement)
	id, err := tunnel.NewIdentity()
	if err != nil {
		return err
	}
	env := environment.Read(os.Environ(), cfg.mounts)
	vols := volumes.New(cfg.mounts, log)
	defer vols.Close()
	l := &link.Link{
		Managers: cfg.managers, Pin: tunnel.Pin(cfg.pin), Identity: id, TokenFile: cfg.tokenFile, Engagement: cfg.engagement,
		Client: "agent/" + version, Files: vols.Serve, Log: log,
		Environment: func() lease.Environment {
			e := env
			e.Volumes = vols.List()
			return e
		},
	}
	ports := port.NewSet(cfg.engagement, l, log)
	if err := ports.Listen(cfg.ports); err != nil {
		return err
	}
	// The link and the health endpoint outlive SIGTERM: open flows need them.
	live, end := context.WithCancel(context.Background())
	defer end()
	g, live := errgroup.WithContext(live)
	h := health.New(func() bool { return l.Ready() && ctx.Err() == nil })
	g.Go(func() error { return h.Serve(live, cfg.listen) })
	g.Go(func() error { return l.Run(live) })
	g.Go(func() error {
		defer end()
		select {
		case <-ctx.Done():
		case <-live.Done():
			ports.Close()
			return nil
		}
		log.Info("no new flows; open ones may end", "open", ports.Open())
		drain, cancel := context.WithTimeout(live, max(cfg.grace-margin, time.Second))
		defer cancel()
		ports.Drain(drain)
		return nil
	})
	log.Info("agent runs", "version", version, "ports", fmt.Sprint(cfg.ports))
	return g.Wait()
}
