package cli

import (
	"context"
	"errors"

	"berth.dev/ctl/internal/usage"
)

func (a *App) gcCommand() *usage.Command {
	c := &usage.Command{
		Name: "gc", Synopsis: "gc",
		Short: "Remove what a crash left on this machine, in its mount table, and on its Docker Engine.",
		Long: `A workspace that answers is left alone: its runner removes what belongs to nobody.
One that does not is removed by its labels or its locks, and the machine's resolver
is put back. The cluster removes its own leftovers
when leases expire.`,
		Examples: []string{"ctl gc"},
		Flags:    a.flags("gc"),
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("gc", l); err != nil {
			return err
		}
		return a.gc(ctx)
	})
	return c
}

func (a *App) gc(ctx context.Context) error {
	places, err := a.places(ctx)
	if err != nil {
		return errors.Join(err, a.restoreHost())
	}
	if len(places) == 0 {
		a.print.Progress("nothing was left over")
	}
	var errs []error
	for _, at := range places {
		defer at.Close()
		errs = append(errs, a.gcAt(ctx, at))
	}
	return errors.Join(append(errs, a.restoreHost())...)
}

func (a *App) gcAt(ctx context.Context, at place) error {
	conn, state, err := a.ask(ctx, at)
	if err != nil {
		found, err := a.quitByLabel(ctx, at, err)
		if !found && err == nil {
			a.print.Progress("nothing was left over")
		}
		return err
	}
	defer conn.Close()
	known := map[string]bool{"": true}
	for _, c := range state.Connections {
		known[c.ID] = true
	}
	gone, err := at.Orphans(ctx, known)
	for _, n := range gone {
		a.print.Result("removed %s", n)
	}
	if err == nil && len(gone) == 0 {
		a.print.Progress("nothing was left over")
	}
	if len(state.Connections) == 0 {
		a.tidy(at, conn)
	}
	return err
}
