package service

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// closeOrphans states the terminal fact of every connection, engagement and
// installation that an earlier connector on the same store left without one: it
// was killed, its containers are gone with it, and the manager restores the
// workloads. Without this, whoever replays the facts would wait for ever.
func closeOrphans(ctx context.Context, conn *bus.Conn, before time.Time, log *slog.Logger) error {
	tail, err := conn.TailFacts(ctx, time.Time{})
	if err != nil {
		return fmt.Errorf("look for what an earlier connector left: %w", err)
	}
	defer tail.Stop()
	open := map[string]event.Data{}
	var order []string
	for tail.Pending > 0 {
		env, err := tail.Next(ctx)
		if err != nil {
			return fmt.Errorf("look for what an earlier connector left: %w", err)
		}
		if env.Time.After(before) {
			break
		}
		switch last := lastOf(env); {
		case event.Terminal(env):
			delete(open, env.Subject)
		case last != nil && open[env.Subject] == nil:
			open[env.Subject] = last
			order = append(order, env.Subject)
		}
	}
	for _, id := range order {
		if d := open[id]; d != nil {
			delete(open, id)
			log.Warn("an earlier connector left this open", "id", id, "fact", event.TypeOf(d))
			if err := conn.State(ctx, id, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// lastOf is the terminal fact for what env begins, nil for other facts.
func lastOf(env event.Envelope) event.Data {
	why := *fault.New(fault.Unavailable, "ctl gc", "connector was killed")
	switch env.Type {
	case event.TypeOf(event.ConnectionRequested{}):
		return event.ConnectionFailed{Error: why}
	case event.TypeOf(event.EngagementRequested{}):
		why.Message += "; the manager restores the workload when the lease ends"
		return event.EngagementFailed{Error: why}
	case event.TypeOf(event.InstallationStep{}):
		why.Hint = "ctl install"
		return event.InstallationFailed{Error: why}
	}
	return nil
}
