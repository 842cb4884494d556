package cli

import (
	"context"
	"errors"

	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"
)

func (a *App) gcCommand() *usage.Command {
	var plugin bool
	c := &usage.Command{
		Name: "gc", Synopsis: "gc",
		Short: "Remove what a crash left on this machine, in its mount table, and on its Docker Engine.",
		Long: `A workspace that answers is left alone: its runner removes what belongs to nobody.
One that does not is removed by its labels or its locks, and the machine's resolver
is put back. The cluster removes its own leftovers
when leases expire. An engine that takes no managed plugins keeps the container
berth-telemount after ctl quit; --plugin removes it when no connection is up, and then
the engine has to be restarted.`,
		Examples: []string{"ctl gc", "ctl gc --plugin"},
		Flags:    a.flags("gc"),
	}
	c.Flags.BoolVar(&plugin, "plugin", false, "remove the volume plugin of the Docker Engine, too")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("gc", l); err != nil {
			return err
		}
		if err := a.gc(ctx); err != nil {
			return err
		}
		return a.gcPlugin(ctx, plugin)
	})
	return c
}

// gcPlugin takes the volume plugin from the engine, or says that it is there.
func (a *App) gcPlugin(ctx context.Context, remove bool) error {
	ws, err := a.containers(ctx)
	if err != nil {
		if remove {
			return err
		}
		return nil // what runs on this machine itself needs no engine
	}
	defer ws.Close()
	if !remove {
		a.tellPlugin(ws)
		return nil
	}
	restart, err := ws.RemovePlugin(ctx)
	if err != nil {
		return err
	}
	if restart {
		a.print.Result("removed the volume plugin")
		a.print.Notice("ctl: restart the Docker Engine when it suits you (sudo systemctl restart docker): until then each `docker volume ls` takes 15 s")
	}
	return nil
}

// tellPlugin says so if the volume plugin stays on the engine.
func (a *App) tellPlugin(at place) {
	ctx, cancel := context.WithTimeout(a.sig.Second, answerWithin)
	defer cancel()
	if ws, ok := at.(*workspace.Workspace); ok {
		if why := ws.PluginStays(ctx); why != "" {
			a.print.Notice("ctl: %s", why)
		}
	}
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
