package connections

import (
	"context"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/connector/internal/connection"
)

// Health is probed through the live path: whether vif has its tunnel, and
// whether the manager answers a call through the API server.
const (
	probeEvery  = 5 * time.Second
	probeWithin = 2 * time.Second // of which two fit into a period
)

// watchHealth probes and reports changes. A probe that fails is repeated at
// once before it counts, so that one lost answer is no change.
func (l *Live) watchHealth() {
	healthy := true
	every(l.forward, probeEvery, func(ctx context.Context) {
		err := l.probeOnce(ctx)
		if err != nil && healthy {
			err = l.probeOnce(ctx)
		}
		if l.forward.Err() != nil || (err == nil) == healthy {
			return
		}
		healthy = err == nil
		l.put(connection.Input{On: connection.HealthChanged, Healthy: healthy, Error: fault.From(err)})
	})
}

func (l *Live) probeOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	return l.probe(ctx)
}

// probe asks vif and the manager at once; vif's failure explains more.
func (l *Live) probe(ctx context.Context) error {
	var vifErr, pingErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		st, err := bus.Call(ctx, l.w.Bus, command.VIFState, l.req.ID, command.None{})
		switch {
		case err != nil:
			vifErr = err
		case !st.TunnelUp:
			vifErr = fault.New(fault.Unavailable, "ctl doctor", "vif's tunnel to the manager is cut; it is being opened again")
		}
	})
	wg.Go(func() { pingErr = l.Link.Ping(ctx) })
	wg.Wait()
	if vifErr != nil {
		return vifErr
	}
	return pingErr
}
