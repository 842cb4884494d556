package cli

import (
	"context"

	"berth.dev/ctl/internal/usage"
)

func (a *App) gcCommand() *usage.Command {
	c := &usage.Command{
		Name: "gc", Synopsis: "gc",
		Short: "Remove what a crash left on the Docker Engine.",
		Long: `A workspace that answers is left alone: its runner removes what belongs to nobody.
One that does not is removed by its labels. The cluster removes its own leftovers
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
	at, err := a.containers(ctx)
	if err != nil {
		return err
	}
	defer at.Close()
	conn, state, err := a.ask(ctx, at)
	if err != nil {
		return a.quitByLabel(ctx, at, err)
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
