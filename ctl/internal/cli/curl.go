package cli

import (
	"context"
	"os"
	"slices"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/localrun"
	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"
)

func (a *App) curlCommand() *usage.Command {
	c := &usage.Command{
		Name: "curl", Synopsis: "curl [--use NAME] CURL-ARGS...",
		Short: "Run curl in the cluster's network.",
		Long: `The arguments go to curl untouched, as do stdin, the output and the exit code; the
names of services resolve. ctl's own flags stand before "curl", or first behind it.
Only a lone --help is ctl's.`,
		Examples: []string{"ctl curl http://frontend", "ctl curl -sS -d @- http://frontend/api <body.json", "ctl curl --use shop -v http://frontend.shop"},
		Flags:    a.flags("curl"),
		Raw:      true, Own: []string{"use", "workspace"},
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		args := slices.Concat(l.Words, l.After)
		if len(args) == 0 {
			return fault.New(fault.InvalidArgument, "ctl curl http://SERVICE", "no arguments for curl")
		}
		return a.curl(ctx, args)
	})
	return c
}

// ownCurl runs this machine's own curl: where the machine is connected, it reaches
// the cluster as any program does.
func (a *App) ownCurl(ctx context.Context, args []string) error {
	argv := append([]string{"curl"}, args...)
	if err := localrun.Check(argv); err != nil {
		return err
	}
	cmd := &localrun.Command{Argv: argv, Env: os.Environ(), Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr}
	defer context.AfterFunc(ctx, func() { cmd.Signal(os.Interrupt) })()
	code, err := cmd.Run()
	if err == nil && code != 0 {
		return exit(code)
	}
	return err
}

// curl runs the image's curl through Docker's own run command, which takes care
// of stdin, signals and the exit code; runner creates the container.
func (a *App) curl(ctx context.Context, args []string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := choose(s.state.Connections, a.use)
	if err != nil {
		return err
	}
	ws, ok := s.at.(*workspace.Workspace)
	if !ok {
		return a.ownCurl(ctx, args)
	}
	parts, err := ws.Find(ctx)
	if err != nil {
		return err
	}
	if parts.Connector == nil {
		return workspace.ErrDown()
	}
	code, err := handlerrun.Run(context.WithoutCancel(ctx), handlerrun.Options{
		API: ws.Engine.API, Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr,
		Args: append([]string{"--rm", "--interactive", "--log-driver", "none", "--pull", "never", parts.Connector.Image, "curl"}, args...),
	}, handlerrun.Hooks{
		Create: func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
			r, err := bus.Call(ctx, s.conn, command.ContainerCreate, "", command.CreateContainer{Connection: rec.ID, Component: "curl", Handler: spec.Handler})
			return r.ContainerID, r.Warnings, err
		},
	})
	if err == nil && code != 0 {
		return exit(code)
	}
	return err
}
