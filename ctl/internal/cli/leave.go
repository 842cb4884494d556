package cli

import (
	"context"
	"fmt"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

// restoreWithin bounds the wait for an engagement's end; connector gives up
// earlier, and says what is left.
const restoreWithin = 75 * time.Second

func (a *App) leaveCommand() *usage.Command {
	c := &usage.Command{
		Name: "leave", Synopsis: "leave NAME",
		Short: "End an engagement, from any terminal.",
		Long: `NAME is that of the workload, also with its kind before it as for kubectl,
WORKLOAD/CONTAINER, or an engagement's id. The handler is stopped and the workload
restored when the command returns.`,
		Examples: []string{"ctl leave frontend", "ctl leave deploy/frontend", "ctl leave frontend/app", "ctl leave --use shop frontend"},
		Flags:    a.flags("leave"),
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if len(l.Words) != 1 || l.Dashes {
			return fault.New(fault.InvalidArgument, "ctl leave --help", "`ctl leave` takes the name of one engagement")
		}
		return a.leave(ctx, l.Words[0])
	})
	return c
}

func (a *App) leave(ctx context.Context, name string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	of, err := onlyOf(s.state.Engagements, s.state.Connections, a.use)
	if err != nil {
		return err
	}
	eng, err := chooseEngagement(of, name)
	if err != nil {
		return err
	}
	tail, err := s.conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Engagement, eng.ID))
	if err != nil {
		return err
	}
	defer tail.Stop()
	asked := time.Now()
	if _, err := bus.Call(ctx, s.conn, command.EngagementClose, "", command.CloseEngagement{ID: eng.ID, Cause: "leave"}); err != nil {
		return err
	}
	// The first Ctrl-C changes nothing any more: it is being undone already.
	wait, cancel := context.WithTimeoutCause(a.sig.Second, restoreWithin, fmt.Errorf("not restored within %v", restoreWithin))
	defer cancel()
	last, err := busclient.Terminal(wait, s.conn, tail, func(e event.Envelope) {
		if e.Time.After(asked) || event.Terminal(e) {
			a.print.Fact(e)
		}
	})
	if interrupt.Is(wait) {
		a.print.Notice("ctl: no longer waiting: the workload %s is restored by its lease within 20 s at the latest", eng.Workload)
		return exit(interrupt.ExitCode)
	}
	if err != nil {
		return err
	}
	if f, ok := event.Decode[event.EngagementFailed](last); ok {
		return &f.Error
	}
	switch lease.Kind(eng.Kind) {
	case lease.Replace:
		a.print.Result("left %s: %s runs its own container again", eng.Name, eng.Workload)
	case lease.Intercept:
		a.print.Result("left %s: its traffic goes to %s again", eng.Name, eng.Workload)
	default:
		a.print.Result("left %s", eng.Name)
	}
	return nil
}
