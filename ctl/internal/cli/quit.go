package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/usage"

	"golang.org/x/sync/errgroup"
)

// endWithin bounds the wait for a connection's end; connector's own limit for
// its engagements, of which the cluster's pods are the slowest part, is less.
const endWithin = 80 * time.Second

func (a *App) quitCommand() *usage.Command {
	var all bool
	c := &usage.Command{
		Name: "quit", Synopsis: "quit [--all | --use NAME]",
		Short: "End a connection, and with the last one everything of Berth on this engine.",
		Long: `Engagements are left, handlers stopped, containers, networks and volumes removed.
It works whatever has died: what does not answer is removed by its label or its
lock, this machine's routes and resolver are put back, and the cluster restores
itself when the leases expire.`,
		Examples: []string{"ctl quit", "ctl quit --use shop", "ctl quit --all"},
		Flags:    a.flags("quit"),
	}
	c.Flags.BoolVar(&all, "all", false, "end all connections")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("quit", l); err != nil {
			return err
		}
		if all && l.Given("use") {
			return fault.New(fault.InvalidArgument, "ctl quit --help", "--all and --use exclude each other")
		}
		return a.quit(ctx, all)
	})
	return c
}

func (a *App) quit(ctx context.Context, all bool) error {
	places, err := a.places(ctx)
	if err != nil {
		return errors.Join(err, a.restoreHost())
	}
	var up []*session
	var errs []error
	found := false
	for _, at := range places {
		defer at.Close()
		conn, state, err := a.ask(ctx, at)
		if err == nil {
			defer conn.Close()
			up = append(up, &session{at, conn, state})
			continue
		}
		broken, err := a.quitByLabel(ctx, at, err)
		found, errs = found || broken, append(errs, err)
	}
	if len(up) == 0 {
		if !found && errors.Join(errs...) == nil {
			a.print.Progress("nothing is connected")
		}
		return errors.Join(append(errs, a.restoreHost())...)
	}
	if !all {
		mine, err := a.pick(up)
		if err != nil {
			return err
		}
		up = []*session{mine}
	}
	for _, s := range up {
		errs = append(errs, a.quitSession(s, all))
	}
	return errors.Join(append(errs, a.sweepMounts())...)
}

// restoreHost puts back what a connection of this machine has left that did not
// live to see its end, the machine's own included, and the mounts of commands.
func (a *App) restoreHost() error {
	mounts := a.sweepMounts()
	host, err := a.onHost()
	if err != nil || host.Exists() {
		return errors.Join(mounts, err)
	}
	return errors.Join(mounts, host.Teardown(a.sig.Second))
}

// quitSession ends the connection to use, or all of them, and with the last one
// what it ran on.
func (a *App) quitSession(s *session, all bool) error {
	closing := s.state.Connections
	if !all && len(closing) > 0 {
		one, err := choose(closing, a.use)
		if err != nil {
			return err
		}
		closing = []command.Connection{one}
	}
	group := new(errgroup.Group)
	for _, rec := range closing {
		group.Go(func() error {
			if err := a.disconnect(s.at, s.conn, rec, "quit"); err != nil {
				return err
			}
			a.print.Result("disconnected %s", rec.Name)
			return nil
		})
	}
	err := group.Wait()
	if a.sig.Second.Err() != nil {
		return err
	}
	if all {
		err = errors.Join(err, s.at.Teardown(a.sig.Second))
		a.tellPlugin(s.at)
		return err
	}
	a.tidy(s.at, s.conn)
	if len(closing) == 0 {
		a.print.Progress("nothing was connected")
	}
	return err
}

// ask connects to the workspace and asks what it knows, within a bounded time.
func (a *App) ask(ctx context.Context, at place) (*bus.Conn, command.State, error) {
	conn, err := at.Connect(ctx, answerWithin)
	if err != nil {
		return nil, command.State{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	state, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
	if err != nil {
		conn.Close()
		return nil, state, err
	}
	return conn, state, nil
}

// quitByLabel removes what there is in a place with which there is no talking, and
// reports whether there was anything; why says so.
func (a *App) quitByLabel(ctx context.Context, at place, why error) (found bool, err error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	left, err := at.Names(ctx)
	if err != nil {
		return false, err
	}
	if len(left) == 0 {
		return false, at.Teardown(a.sig.Second) // a volume plugin has no label to be found by
	}
	a.print.Notice("ctl: %s; removing what is left: workloads that were engaged are restored when their leases expire", fault.From(why).Message)
	if err := at.Teardown(a.sig.Second); err != nil {
		return true, err
	}
	for _, n := range left {
		a.print.Result("removed %s", n)
	}
	return true, nil
}

// disconnect ends one connection and waits for its terminal fact. It goes on
// after the first Ctrl-C, which is what may have called for it, and gives up at
// the second. If the connection does not end, what is left of it on the engine
// is removed by label.
func (a *App) disconnect(at place, conn *bus.Conn, rec command.Connection, cause string) error {
	ctx, cancel := context.WithTimeoutCause(a.sig.Second, endWithin, fmt.Errorf("not ended within %v", endWithin))
	defer cancel()
	guests := a.dockerRuns(ctx, at, rec.ID)
	err := a.closeConnection(ctx, conn, rec, cause)
	if len(guests) > 0 && !interrupt.Is(a.sig.Second) {
		a.print.Notice("ctl: the network of %s is gone, and with it what ran in it by ctl docker-run; to be run again after ctl connect: %s", rec.Name, strings.Join(guests, ", "))
	}
	if err == nil {
		return nil
	}
	if interrupt.Is(a.sig.Second) {
		return fault.New(fault.Unavailable, "ctl quit --all", "no longer waiting for the end of %s: workloads that it engaged are restored when their leases expire, within 20 s", rec.Name)
	}
	if terr := at.TeardownConnection(a.sig.Second, rec.ID); terr != nil {
		return errors.Join(err, terr)
	}
	a.print.Notice("ctl: the connection %s did not end by itself (%v); it was removed by its labels", rec.Name, err)
	return nil
}

func (a *App) closeConnection(ctx context.Context, conn *bus.Conn, rec command.Connection, cause string) error {
	tail, err := conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Connection, rec.ID))
	if err != nil {
		return err
	}
	defer tail.Stop()
	asked := time.Now()
	if _, err := bus.Call(ctx, conn, command.ConnectionClose, "", command.CloseConnection{ID: rec.ID, Cause: cause}); err != nil {
		return err
	}
	_, err = busclient.Terminal(ctx, conn, tail, func(e event.Envelope) {
		if e.Time.After(asked) || event.Terminal(e) {
			a.print.Fact(e)
		}
	})
	return err
}

// tidy takes the workspace down if nobody uses it.
func (a *App) tidy(at place, conn *bus.Conn) {
	ctx, cancel := context.WithTimeout(a.sig.Second, answerWithin)
	defer cancel()
	state, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
	if err == nil && len(state.Connections)+len(state.Engagements) > 0 {
		return
	}
	if err := at.Teardown(a.sig.Second); err != nil {
		a.print.Notice("ctl: %v", err)
	}
}
