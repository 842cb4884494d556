package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/beside"
	"berth.dev/services/agent/internal/divert"
	"berth.dev/services/agent/internal/environment"
	"berth.dev/services/agent/internal/health"
	"berth.dev/services/agent/internal/link"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/topod"
	"berth.dev/services/agent/internal/user"
	"berth.dev/services/agent/internal/volumes"
	"berth.dev/tunnel"

	"golang.org/x/sync/errgroup"
)

const (
	// margin is what is left of the grace period when flows that are still open are
	// given up, so that they are reset by us and not by SIGKILL.
	margin = 2 * time.Second
	// linger is how long an agent that the app or the handler is behind goes on after
	// SIGTERM: for the news that the pod ends to reach those who send to it.
	linger = 3 * time.Second
	// orphaned is after how long without a manager an agent beside a container ends.
	orphaned = 5 * time.Minute
)

// run is the agent in a container's place, or beside one.
func run(ctx context.Context, args []string) error {
	cfg, err := configure(args)
	if err != nil {
		return err
	}
	if cfg.user != "" {
		if err := user.Become(cfg.user); err != nil {
			return err
		}
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level})).With("service", "agent")
	id, err := tunnel.NewIdentity()
	if err != nil {
		return err
	}
	env := environment.Read(os.Environ(), cfg.mounts)
	vols := volumes.New(cfg.mounts, log)
	defer vols.Close()
	l := &link.Link{
		Managers: cfg.managers, Pin: tunnel.Pin(cfg.pin), Identity: id, Hello: cfg.hello, Files: vols.Serve, ToPod: new(topod.Ports).Take, Log: log,
		Environment: func() lease.Environment {
			e := env
			e.Volumes = vols.List()
			return e
		},
	}
	if cfg.beside.Name != "" {
		return runBeside(ctx, cfg, l, log)
	}
	return runInPlace(ctx, cfg, l, log.With("engagement", cfg.engagement))
}

// hello is what the agent says of itself. A token is read each time, since
// kubelet renews it.
func (c config) hello() (tunnel.Hello, error) {
	h := tunnel.Hello{Role: lease.RoleAgent, ID: c.engagement, Token: c.proof, Client: "agent/" + version}
	if c.beside.Name != "" {
		h.Role, h.ID = lease.RoleBeside, lease.Marshal(c.beside)
	}
	if h.Token != "" {
		return h, nil
	}
	token, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return h, fmt.Errorf("read the pod's token: %w", err)
	}
	h.Token = strings.TrimSpace(string(token))
	return h, nil
}

// runInPlace listens on the engaged container's ports until SIGTERM, then turns
// unready, after a while takes no new flows, and lets the open ones end.
func runInPlace(ctx context.Context, cfg config, l *link.Link, log *slog.Logger) error {
	var handler atomic.Bool // the manager said that it runs
	var app atomic.Bool     // connections go on to the app in other pods
	ports := port.NewSet(cfg.engagement, l, log)
	l.Serves = func(e string) bool { return e == cfg.engagement }
	l.Down = func() { handler.Store(false) }
	l.Methods = func(reg *tunnel.Registry) {
		tunnel.Handle(reg, lease.MethodAgentRun, func(ctx context.Context, q lease.AgentRun) (lease.AgentRun, error) {
			passed := ports.Pass(ctx, cfg.ports, addresses(q.App))
			app.Store(len(passed) > 0)
			handler.Store(q.Run)
			log.Info("the handler's state", "runs", q.Run, "app", passed)
			q.App = nil
			for _, a := range passed {
				q.App = append(q.App, a.String())
			}
			return q, nil
		})
	}
	if err := ports.Listen(cfg.ports); err != nil {
		return err
	}
	// The link and the health endpoint outlive SIGTERM: open flows need them.
	live, end := context.WithCancel(context.Background())
	defer end()
	g, live := errgroup.WithContext(live)
	h := health.New(func() bool { return (handler.Load() || app.Load()) && ctx.Err() == nil })
	g.Go(func() error { return h.Serve(live, cfg.listen) })
	g.Go(func() error { return l.Run(live) })
	g.Go(func() error { lease.GiveBack(live); return nil })
	g.Go(func() error {
		defer end()
		select {
		case <-ctx.Done():
		case <-live.Done():
			ports.Close()
			return nil
		}
		drain, cancel := context.WithTimeout(live, max(cfg.grace-margin, time.Second))
		defer cancel()
		// Services lead here until the end of the pod has got around. What still comes
		// is taken where there is somebody to take it to.
		if app.Load() || handler.Load() {
			select {
			case <-time.After(min(linger, max(cfg.grace-margin, 0))):
			case <-live.Done():
			}
		}
		log.Info("no new flows; open ones may end", "open", ports.Open())
		ports.Drain(drain)
		return nil
	})
	log.Info("agent runs", "version", version, "ports", fmt.Sprint(cfg.ports))
	return g.Wait()
}

// addresses are those of given that are some.
func addresses(given []string) (out []netip.Addr) {
	for _, s := range given {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// runBeside does what the manager says until SIGTERM, or until it is not needed
// any more. After SIGTERM the traffic that still comes goes on to the handler: the
// app, which is ending too, might take no more of it.
func runBeside(ctx context.Context, cfg config, l *link.Link, log *slog.Logger) error {
	b := beside.New(l, divert.New(cfg.beside.Name), log)
	for p, at := range cfg.named {
		if err := b.Named(p, at); err != nil {
			return err
		}
	}
	orphan := time.NewTimer(orphaned)
	defer orphan.Stop()
	l.Serves = b.Serves
	l.Up = func() { orphan.Stop() }
	l.Down = func() {
		b.Suspend()
		orphan.Reset(orphaned)
	}
	l.Methods = func(reg *tunnel.Registry) {
		tunnel.Handle(reg, lease.MethodAgentServe, func(_ context.Context, q lease.AgentServe) (lease.AgentServed, error) {
			return b.Apply(q), nil
		})
		tunnel.Handle(reg, lease.MethodAgentLost, func(context.Context, struct{}) (lease.AgentLost, error) {
			return lease.AgentLost{Connections: b.Lost(), NotHTTP: b.NotHTTP()}, nil
		})
	}
	live, end := context.WithCancel(context.Background())
	defer end()
	g, live := errgroup.WithContext(live)
	g.Go(func() error { return l.Run(live) })
	g.Go(func() error { lease.GiveBack(live); return nil })
	if cfg.listen != "" {
		h := health.New(b.Diverting)
		g.Go(func() error { return h.Serve(live, cfg.listen) })
	}
	g.Go(func() error {
		defer end()
		defer b.Close()
		select {
		case <-ctx.Done():
			lingering, cancel := context.WithTimeout(live, max(cfg.grace-margin, time.Second))
			defer cancel()
			b.Linger(lingering, min(linger, max(cfg.grace-margin, 0)))
		case <-b.Done():
			log.Info("not needed any more")
		case <-forEphemeral(cfg, orphan.C):
			log.Info("no manager for too long")
			b.Linger(live, 0) // what is with the app is not ours to end
		case <-live.Done():
		}
		return nil
	})
	log.Info("agent runs", "version", version, "beside", cfg.beside.Container, "divert", cfg.beside.Divert)
	return g.Wait()
}

// forEphemeral is c for an agent that nobody starts again when it ends.
func forEphemeral(cfg config, c <-chan time.Time) <-chan time.Time {
	if cfg.proof == "" {
		return nil
	}
	return c
}
