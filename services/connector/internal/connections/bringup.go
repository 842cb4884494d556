package connections

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/connection"

	"golang.org/x/sync/errgroup"
)

func (l *Live) identityName() string { return "vif-" + l.req.ID }

// startDaemon is the daemon's track: an identity for vif, and its container.
func (l *Live) startDaemon() {
	seed, id, err := bus.NewIdentity(l.identityName(), subject.VIF, l.req.ID)
	if err == nil {
		err = l.w.Admission.Add(id)
	}
	if err != nil {
		l.fail(event.StageDaemon, err)
		return
	}
	cfg, err := json.Marshal(bus.Config{URL: l.w.BusURL, Seed: seed, Identity: id.Name, Service: subject.VIF})
	if err != nil {
		l.fail(event.StageDaemon, err)
		return
	}
	_, err = runner(l.forward, l.w.Bus, command.DaemonStart, command.StartDaemon{
		Connection: l.req.ID, Name: l.req.Name, Networks: l.req.Networks,
		Hostname: l.req.Hostname, Expose: l.req.Expose, Bus: cfg,
	})
	if err != nil {
		l.fail(event.StageDaemon, err)
	}
}

// runner calls runner; one that does not run yet, since ctl starts both at once,
// is asked again until ctx ends or five seconds have passed.
func runner[Req, Rep any](ctx context.Context, c *bus.Conn, spec command.Spec[Req, Rep], req Req) (Rep, error) {
	first := time.Now()
	for {
		rep, err := bus.Call(ctx, c, spec, "", req)
		if fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil || time.Since(first) > 5*time.Second {
			return rep, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return rep, err
		}
	}
}

// JoinNetworks attaches connector's container to the Docker networks from which
// the API server is reached.
func JoinNetworks(ctx context.Context, c *bus.Conn, networks []string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range networks {
		g.Go(func() error {
			_, err := runner(ctx, c, command.NetworkJoin, command.JoinNetwork{Component: string(subject.Connector), Network: n})
			return err
		})
	}
	return g.Wait()
}

// checkCluster is the cluster's track: API server, manager, rights, token.
func (l *Live) checkCluster() {
	if err := JoinNetworks(l.forward, l.w.Bus, l.req.Networks); err != nil {
		l.fail(event.StageAPIServer, err)
		return
	}
	server, err := l.Cluster.Reach(l.forward, reachWithin)
	if err != nil {
		l.fail(event.StageAPIServer, err)
		return
	}
	l.passed(event.StageAPIServer, server)

	var info lease.Info
	var access command.Access
	ns := l.req.ManagerNamespace
	err = first(l.forward,
		func(ctx context.Context) (err error) { info, err = l.Cluster.Info(ctx, ns); return },
		func(ctx context.Context) error { return l.Cluster.NamespaceExists(ctx, l.req.Namespace) },
		func(ctx context.Context) error { return l.Cluster.Demand(ctx, cluster.LeaseRights(ns)...) },
		func(ctx context.Context) (err error) { access, err = l.Cluster.TunnelAccess(ctx, ns); return },
	)
	if err != nil {
		l.fail(event.StageManager, err)
		return
	}
	l.mu.Lock()
	l.info, l.access = info, access
	l.mu.Unlock()
	l.Link.Use(access, info.Pin)
	l.passed(event.StageManager, info.Version)
	l.put(connection.Input{On: connection.ClusterChecked, Server: server, Manager: info.Version})
}

// first runs checks at once and returns the error of the first in their order
// that failed: a missing manager explains a missing account, not the reverse.
func first(ctx context.Context, checks ...func(context.Context) error) error {
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { errs[i] = c(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Live) passed(stage event.Stage, detail string) {
	l.mu.Lock()
	since := l.state.Since
	l.mu.Unlock()
	if l.forward.Err() == nil {
		l.tell(event.StagePassed{Stage: stage, Detail: detail, Millis: time.Since(since).Milliseconds()})
	}
}

// createLease creates the connection's Lease, which names both keys.
func (l *Live) createLease() error {
	l.mu.Lock()
	spec := lease.ConnectionSpec{
		Name: l.req.Name, Namespace: l.req.Namespace, Client: l.req.Client, Version: l.w.Version,
		Pins: []string{l.state.Pin, l.Link.Pin()},
	}
	expires := l.access.Expires
	l.mu.Unlock()
	ref, err := l.Cluster.HoldConnection(l.forward, l.req.ManagerNamespace, l.req.ID, spec)
	if err != nil {
		return err
	}
	l.setLease(ref)
	l.work.Go(func() { l.renew(spec) })
	l.work.Go(func() { l.refresh(expires) })
	return nil
}

// openTunnel tells vif to join the cluster; its facts tell what comes of it.
func (l *Live) openTunnel() error {
	l.mu.Lock()
	info, access := l.info, l.access
	l.mu.Unlock()
	var namespaces []string
	if l.w.OnHost {
		namespaces = l.Cluster.Namespaces(l.forward)
	}
	_, err := bus.Call(l.forward, l.w.Bus, command.TunnelOpen, l.req.ID, command.OpenTunnel{
		Access: access, ConnectionName: l.req.Name, Namespace: l.req.Namespace, Namespaces: namespaces, ManagerNamespace: l.req.ManagerNamespace,
		Pin: info.Pin, Direct: info.Direct, AlsoProxy: l.req.AlsoProxy, NeverProxy: l.req.NeverProxy, Virtual: l.req.Virtual,
	})
	return err
}

func (l *Live) setLease(ref cluster.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = ref
}

// renew keeps the Lease. One that is gone although the connection lives (the
// manager saw no renewal while the machine slept) is created again.
func (l *Live) renew(spec lease.ConnectionSpec) {
	every(l.forward, lease.RenewEvery, func(ctx context.Context) {
		l.mu.Lock()
		ref := l.lease
		l.mu.Unlock()
		err := l.Cluster.Renew(ctx, ref)
		if fault.CodeOf(err) == fault.NotFound {
			if ref, err = l.Cluster.HoldConnection(ctx, l.req.ManagerNamespace, l.req.ID, spec); err == nil {
				l.setLease(ref)
				l.log.Warn("the connection's lease was gone and is held again")
			}
		}
		if err != nil && ctx.Err() == nil {
			l.log.Warn("the connection's lease is not renewed", "err", err)
		}
	})
}

// every calls f each period until ctx ends; f gets no longer than a period.
func every(ctx context.Context, period time.Duration, f func(context.Context)) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c, cancel := context.WithTimeout(ctx, period)
		f(c)
		cancel()
	}
}

// refresh gets new means for the tunnel before the old ones expire. vif keeps a
// tunnel that stands; it needs them when it opens one again.
func (l *Live) refresh(expires time.Time) {
	for !expires.IsZero() {
		wait := max(time.Until(expires)*2/3, 10*time.Second)
		select {
		case <-time.After(wait):
		case <-l.forward.Done():
			return
		}
		access, err := l.Cluster.TunnelAccess(l.forward, l.req.ManagerNamespace)
		if err == nil {
			l.mu.Lock()
			l.access = access
			pin := l.info.Pin
			l.mu.Unlock()
			l.Link.Use(access, pin)
			_, err = bus.Call(l.forward, l.w.Bus, command.Credentials, l.req.ID, access)
			expires = access.Expires
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			l.log.Warn("the tunnel's credentials are not renewed", "err", err, "expires", expires)
		}
	}
}
