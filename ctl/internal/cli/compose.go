package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/compose"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/render"
	"berth.dev/ctl/internal/usage"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/network"
)

func (a *App) composeCommand() *usage.Command {
	var files, profiles usage.List
	var project string
	c := &usage.Command{
		Name: "compose", Synopsis: "compose up|config [flags] [SERVICE...]",
		Short: "Engage workloads with services of a compose file.",
		Long: `A service with the extension x-berth is a handler:

  services:
    web:
      build: .
      ports: ["8080:80"]
      x-berth:
        replace: frontend     # or intercept, ingest or wiretap: the workload
        port: ["80:http"]     # and any other flag of that command

up engages with all of them, or with the services given, in the foreground; Ctrl-C
ends them, and each engagement ends with its handler. The other services are docker
compose's: bring them up first, and the handlers join their networks. config prints
the commands of ctl that up would run. What a service asks for and a handler cannot
be given is an error that names it.`,
		Examples: []string{"ctl compose up", "docker compose up -d db && ctl compose up web", "ctl compose config --file shop.yaml"},
		Flags:    a.flags("compose"),
	}
	c.Flags.Var(&files, "file", "compose `FILE`; repeatable (default: the one that docker compose would take)")
	c.Flags.Var(&files, "f", "the same as --file")
	c.Flags.Var(&profiles, "profile", "`PROFILE` to enable; repeatable")
	c.Flags.StringVar(&project, "project-name", "", "`NAME` of the project (default: as docker compose would name it)")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if len(l.Words) == 0 || l.Words[0] != "up" && l.Words[0] != "config" {
			return fault.New(fault.InvalidArgument, "ctl compose up", "say whether to bring it up or to print it: up or config")
		}
		o := compose.Options{Files: files, Name: project, Profiles: profiles, Services: l.Words[1:]}
		if l.Words[0] == "config" {
			return a.composeConfig(ctx, o)
		}
		return a.composeUp(ctx, o)
	})
	return c
}

// composeConfig prints what up would run; it asks no engine.
func (a *App) composeConfig(ctx context.Context, o compose.Options) error {
	all, err := compose.Load(ctx, o, anyNetwork)
	if err != nil {
		return err
	}
	for _, h := range all {
		a.notes(h)
		a.print.Result("ctl %s", quoted(h.Args))
		_ = a.print.Value(h)
	}
	return nil
}

func anyNetwork(context.Context, string) (bool, error) { return true, nil }

func (a *App) notes(h compose.Handler) {
	for _, n := range h.Notes {
		a.print.Notice("ctl: service %s: %s", h.Service, n)
	}
}

// quoted is a command line for a shell.
func quoted(args []string) string {
	var s []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		s = append(s, a)
	}
	return strings.Join(s, " ")
}

// composeUp runs the handlers' commands side by side, up to the last one's end.
// One that does not come about ends the others.
func (a *App) composeUp(ctx context.Context, o compose.Options) error {
	if _, err := compose.Load(ctx, o, anyNetwork); err != nil {
		return err // wrong whatever the engine has
	}
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if _, err := choose(s.state.Connections, a.use); err != nil {
		return err // once, and not for each
	}
	docker, err := s.docker(ctx)
	if err != nil {
		return err
	}
	all, err := compose.Load(ctx, o, func(ctx context.Context, name string) (bool, error) {
		_, err := docker.NetworkInspect(ctx, name, network.InspectOptions{})
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var group sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, h := range all {
		a.notes(h)
		group.Go(func() {
			sub, done := a.child(h.Service, len(all) > 1)
			defer done()
			err := sub.tool().Run(ctx, a.childArgs(h, len(all) > 1))
			var code exit
			if err == nil || errors.As(err, &code) && code == 0 {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.As(err, &code):
			case interrupt.Is(ctx) && cancelled(err): // by the user, or by a failure that was told
				code = interrupt.ExitCode
			default:
				render.Error(a.Stderr, "ctl: "+h.Service, err)
				code = 1
				if fault.CodeOf(err) == fault.InvalidArgument {
					code = 2
				}
				end(interrupt.ErrInterrupted)
			}
			if first == nil {
				first = code
			}
		})
	}
	group.Wait()
	return first
}

// child is this ctl for one of several commands: with its own output, each line
// of which says whose it is, and without the terminal.
func (a *App) child(name string, several bool) (sub *App, done func()) {
	sub = &App{Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr, Version: a.Version, image: a.image, sig: a.sig}
	if !several {
		return sub, func() {}
	}
	out, errs := &prefixed{w: a.Stdout, prefix: name + " | "}, &prefixed{w: a.Stderr, prefix: name + " | "}
	sub.Stdin, sub.Stderr = io.NopCloser(strings.NewReader("")), errs
	if !a.print.JSON { // a fact is a line, and says whose it is
		sub.Stdout = out
	}
	return sub, func() { out.flush(); errs.flush() }
}

// childArgs is a handler's command line with what was said to this command.
func (a *App) childArgs(h compose.Handler, several bool) []string {
	args := []string{h.Args[0], "--output=" + a.output}
	for flag, v := range map[string]string{"use": a.use, "workspace": a.workspace} {
		if v != "" {
			args = append(args, "--"+flag+"="+v)
		}
	}
	args = append(args, h.Args[1:]...)
	if i := slices.Index(args, "--") + 1; several && args[i] == "--interactive" { // nobody can type to several at once
		args = slices.Delete(args, i, i+1)
	}
	return args
}

// prefixed writes whole lines, each behind a prefix.
type prefixed struct {
	w      io.Writer
	prefix string

	mu   sync.Mutex
	part []byte
}

// Write implements io.Writer.
func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = append(p.part, b...)
	for {
		i := bytes.IndexByte(p.part, '\n')
		if i < 0 {
			return len(b), nil
		}
		if _, err := io.WriteString(p.w, p.prefix+string(p.part[:i+1])); err != nil {
			return 0, err
		}
		p.part = p.part[i+1:]
	}
}

func (p *prefixed) flush() {
	if len(p.part) > 0 {
		_, _ = p.Write([]byte("\n"))
	}
}
