package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"berth.dev/bus/event"
)

// beside measures intercepts, which restart nothing, against a rollout restart of
// the same workload: of a pod without an agent, of one that has it, and their end.
// Times are those of the facts.
func (b *bench) beside(ctx context.Context) error {
	const n = 3
	var restarts, fresh, again, leaves []time.Duration
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil {
		return err
	}
	for range n {
		restart, err := b.restart(ctx)
		if err != nil {
			return err
		}
		restarts = append(restarts, restart)
		// Kubelet has an update of a pod wait that has just started.
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		for round := range 1 + n {
			active, leave, err := b.intercept(ctx)
			if err != nil {
				return err
			}
			if round == 0 {
				fresh = append(fresh, active)
				continue
			}
			again, leaves = append(again, active), append(leaves, leave)
		}
	}
	for _, s := range [][]time.Duration{restarts, fresh, again, leaves} {
		slices.Sort(s)
	}
	instead := restarts[n/2]
	b.add("intercept of a pod without an agent", ms(fresh[n/2]), ms(instead), "-", ratio(float64(fresh[n/2]), float64(instead)), "<= 1.1 x, goal <= 1 s")
	b.add("intercept of a pod with an agent", ms(again[len(again)/2]), ms(instead), "-", "-", "<= 50 ms")
	b.add("leave", ms(leaves[len(leaves)/2]), ms(instead), "-", "-", "<= 40 ms")
	return nil
}

// intercept makes an intercept without a handler and ends it.
func (b *bench) intercept(ctx context.Context) (active, leave time.Duration, err error) {
	cmd := exec.CommandContext(ctx, b.ctl, "intercept", "frontend-v1", "--port", "8080:http", "--output", "json")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	var restoring time.Time
	for in := bufio.NewScanner(stdout); in.Scan(); {
		var e event.Envelope
		if json.Unmarshal(in.Bytes(), &e) != nil {
			continue
		}
		if f, ok := event.Decode[event.EngagementActive](e); ok {
			active = time.Duration(f.Millis) * time.Millisecond
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				return 0, 0, err
			}
		}
		if e.Type == event.TypeOf(event.Restoring{}) {
			restoring = e.Time
		}
		if f, ok := event.Decode[event.EngagementFailed](e); ok {
			err = &f.Error
		}
		if e.Type == event.TypeOf(event.EngagementEnded{}) {
			leave = e.Time.Sub(restoring)
		}
	}
	_ = cmd.Wait() // interrupted
	if err == nil && (active == 0 || leave == 0) {
		err = fmt.Errorf("the intercept was not active, or did not end")
	}
	return active, leave, err
}
