package connections

import (
	"context"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/subject"
	"berth.dev/services/connector/internal/connection"
)

// undo takes everything back, in reverse: engagements, then daemon container,
// Lease and identity at once. It runs when what goes forward has been told to
// stop, and waits for that first, so that nothing is created behind its back.
func (l *Live) undo() {
	l.work.Wait()
	l.mu.Lock()
	cause, why, ref := l.state.Cause, l.state.Error, l.lease
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(l.undoing, endWithin)
	l.w.EndEngagements(ctx, l.req.ID, cause, why)
	cancel()

	// Bounded by themselves and not by undoing: when time is up, these are what
	// the last second is for.
	ctx, cancel = context.WithTimeout(context.Background(), undoWithin)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.stopDaemon(ctx); err != nil {
			l.log.Warn("the daemon container is left to runner's sweep", "err", err)
		}
	})
	if ref.Name != "" {
		wg.Go(func() {
			if err := l.Cluster.Drop(ctx, ref); err != nil {
				l.log.Warn("the connection's lease is left to the manager", "err", err)
			}
		})
	}
	wg.Wait()
	l.Link.Close()
	l.w.Admission.Remove(l.identityName())
	l.put(connection.Input{On: connection.Undone})
}

// stopDaemon returns when runner has said that the daemon container is gone, so
// that "disconnected" means that its name can be used again.
func (l *Live) stopDaemon(ctx context.Context) error {
	exited := subject.Fact(subject.Connection, l.req.ID, subject.Runner, "daemon-exited")
	tail, err := l.w.Bus.TailFacts(ctx, time.Time{}, exited)
	if err != nil {
		return err
	}
	defer tail.Stop()
	rep, err := bus.Call(ctx, l.w.Bus, command.DaemonStop, "", command.StopDaemon{Connection: l.req.ID})
	if err != nil || rep.Already {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exitWithin)
	defer cancel()
	_, err = tail.Next(ctx)
	return err
}
