package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/holder"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/render"
	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

func (a *App) dockerRunCommand() *usage.Command {
	c := &usage.Command{
		Name: "docker-run", Synopsis: "docker-run [--use NAME] [docker run flags] IMAGE [args]",
		Short: "Run a container in the cluster's network.",
		Long: `The arguments are those of docker run, as are terminal, signals, output and exit code
(125 where there is no running it, 126 and 127 where its command cannot be run). The
container finds the cluster's services by name; --rm is implied. --publish, --expose
and --network work; docs/docker-run.md has what does not, and why. It lives as long as
the connection: ctl quit stops it and says so. ctl's own flags stand before
"docker-run", or first behind it. Only a lone --help is ctl's.`,
		Examples: []string{"ctl docker-run -it alpine sh", "ctl docker-run -p 8080:80 --network shop_default --network-alias web web:dev", "ctl docker-run -e PGHOST=db -v $PWD:/src tools:dev migrate", "ctl docker-run --use shop -d worker:dev"},
		Flags:    a.flags("docker-run"),
		Raw:      true, Own: []string{"use", "workspace"},
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		args := l.Words
		if l.Dashes {
			args = slices.Concat(l.Words, []string{"--"}, l.After)
		}
		if len(args) == 0 {
			return fault.New(fault.InvalidArgument, "ctl docker-run IMAGE", "no image given")
		}
		return a.dockerRun(ctx, args)
	})
	return c
}

// createWithin is how long runner may take to create a container: it answers when
// its ports and networks are there, for each of which the engine takes its time.
const createWithin = time.Minute

// dockerRun is Docker's own run command, whose container runner creates in the
// connection's network.
func (a *App) dockerRun(ctx context.Context, args []string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := choose(s.state.Connections, a.use)
	if err != nil {
		return err
	}
	if _, ok := s.at.(*workspace.Workspace); !ok {
		return fault.New(fault.FailedPrecondition, "docker run --dns "+cmp.Or(rec.Resolver, "198.18.0.2")+" --dns-search "+command.ShortNames+" "+strings.Join(args, " "),
			"this machine itself is connected, so that any container on it reaches the cluster: ctl docker-run is for connections with --docker")
	}
	docker, err := s.docker(ctx)
	if err != nil {
		return err
	}
	restore := saveTerminal(a.Stdin)
	defer restore()
	type outcome struct {
		code int
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		code, err := handlerrun.Run(ctx, handlerrun.Options{
			API: docker, Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr, Args: args,
		}, handlerrun.Hooks{
			Create: func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
				ctx, cancel := context.WithTimeout(ctx, createWithin)
				defer cancel()
				r, err := bus.Call(ctx, s.conn, command.ContainerCreate, "", command.CreateContainer{Connection: rec.ID, Component: "docker-run", Handler: spec.Handler})
				if err == nil {
					for _, p := range r.Published { // with --output json too: there is no fact to tell it
						a.print.Notice("published %s", publishedText(p))
					}
				}
				return r.ContainerID, r.Warnings, a.withHolder(docker, err)
			},
		})
		ended <- outcome{code, err}
	}()
	select {
	case o := <-ended:
		if o.err == nil && o.code != 0 && !interrupt.Is(ctx) {
			a.connectionGone(s, rec)
		}
		return a.dockerRunEnd(ctx, o.code, o.err)
	case <-a.sig.Second.Done():
		// The container has had both signals, as docker run would have passed them on.
		a.print.Notice("ctl: no longer waiting for the container, which runs on: docker ps shows it, and ctl quit ends it")
		return exit(interrupt.ExitCode)
	}
}

// dockerRunEnd is the exit code of `docker run`: the container's own, or
// Docker's for one that did not run.
func (a *App) dockerRunEnd(ctx context.Context, code int, err error) error {
	switch {
	case err == nil && code == 0:
		return nil
	case err == nil:
		return exit(code)
	case interrupt.Is(ctx) && cancelled(err):
		return err
	}
	render.Error(a.Stderr, "ctl", err)
	return exit(cmp.Or(code, handlerrun.ExitNotRun))
}

// published tells which of the host's ports lead to a container: docker ps shows
// them at the forwarder that has them, not there.
func (a *App) published(all []event.Published) {
	for _, p := range all {
		a.print.Progress("published %s", publishedText(p))
	}
}

func publishedText(p event.Published) string {
	return fmt.Sprintf("%s -> %d/%s", net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort))), p.Container, p.Protocol)
}

// connectionGone tells of a container's end that was the end of its connection.
func (a *App) connectionGone(s *session, rec command.Connection) {
	ctx, cancel := context.WithTimeout(a.sig.Second, 2*time.Second)
	defer cancel()
	state, err := bus.Call(ctx, s.conn, command.StateGet, "", command.None{})
	alive := func(c command.Connection) bool { return c.ID == rec.ID && c.Phase != "disconnecting" }
	if err != nil || !slices.ContainsFunc(state.Connections, alive) {
		a.print.Notice("ctl: the connection %s has ended, and with it the container's network: run it again after ctl connect", rec.Name)
	}
}

// dockerRuns names the containers of ctl docker-run in a connection's network.
// An engine that does not answer is told of by what follows.
func (a *App) dockerRuns(ctx context.Context, at place, connection string) []string {
	ws, ok := at.(*workspace.Workspace)
	if !ok {
		return nil
	}
	l, err := ws.Leftovers(ctx, workspace.LabelComponent+"=docker-run", workspace.LabelConnection+"="+connection)
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range l.Containers {
		if c.State == container.StateRunning || c.State == container.StatePaused {
			names = append(names, strings.TrimPrefix(append(c.Names, c.ID)[0], "/")+" ("+c.Image+")")
		}
	}
	return names
}

// busyPort is the hint of a port that a process has; see package ports of runner.
var busyPort = regexp.MustCompile(`^ss -tulpn 'sport = :(\d+)'$`)

// withHolder adds to such a fault who the process is, where the engine's machine
// is this one and the process one's own: the engine does not know.
func (a *App) withHolder(docker client.APIClient, err error) error {
	f := new(fault.Error)
	if !errors.As(err, &f) || docker == nil || !strings.HasPrefix(docker.DaemonHost(), "unix://") {
		return err
	}
	m := busyPort.FindStringSubmatch(f.Hint)
	if m == nil {
		return err
	}
	port, perr := strconv.ParseUint(m[1], 10, 16)
	if p, ok := holder.Of(uint16(port)); ok && perr == nil {
		return &fault.Error{Code: f.Code, Stage: f.Stage, Hint: f.Hint, Message: "the port " + m[1] + " of this machine is taken: " + p.String() + " listens on it"}
	}
	return err
}
