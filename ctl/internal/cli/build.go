package cli

import (
	"context"
	"errors"
	"flag"
	"slices"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/build"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/usage"
)

// buildFlags are those of commands whose handler may be built first.
type buildFlags struct {
	context string
	debug   string
	options each
	watch   bool
	publish []string // of docker run, which stand before what is given
}

// each is a repeatable flag whose values may have commas in them.
type each []string

// String implements flag.Value.
func (e *each) String() string { return strings.Join(*e, " ") }

// Set implements flag.Value.
func (e *each) Set(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	*e = append(*e, s)
	return nil
}

func (b *buildFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&b.context, "docker-build", "", "build the handler's image from `CONTEXT` (directory, Dockerfile, URL, or - for a tar on stdin) and run it; IMAGE behind -- stands for it")
	fs.StringVar(&b.debug, "docker-debug", "", "the same with `CONTEXT`, for a debugger: ptrace is allowed")
	fs.BoolVar(&b.watch, "watch", false, "with --docker-build or --docker-debug: when CONTEXT changes, build again and switch to the new handler without a refused connection")
	b.optionsTo(fs)
}

func (b *buildFlags) optionsTo(fs *flag.FlagSet) {
	fs.Var(&b.options, "docker-build-opt", "`KEY=VALUE`, any flag of docker build; repeatable")
}

func (b *buildFlags) given() bool { return b.context != "" || b.debug != "" }

// debugArgs let a debugger in.
func debugArgs() []string {
	return []string{"--security-opt", "apparmor=unconfined", "--cap-add", "SYS_PTRACE"}
}

// watchArgs: what was under way is over when the old handler is told to end, and
// connections wait for the next one. The user's own --stop-timeout comes later, and counts.
func watchArgs() []string { return []string{"--stop-timeout", "2"} }

// check looks at the arguments before anything is built.
func (b *buildFlags) check(args []string) error {
	args, err := handlerrun.WithImage(args, handlerrun.Placeholder)
	if err != nil || !b.watch {
		return err
	}
	if tty, err := handlerrun.Interactive(args); tty || err != nil {
		return fault.New(fault.InvalidArgument, "-- [docker run flags] IMAGE [args]", "a handler that is watched has no terminal and no standard input (-i, -t): it is another one after each change")
	}
	return nil
}

// from is the context.
func (b *buildFlags) from() string {
	if b.debug != "" {
		return b.debug
	}
	return b.context
}

// built builds, and returns the arguments of docker run with the image's ID in
// the place of IMAGE, and that ID.
func (a *App) built(ctx context.Context, s *session, b *buildFlags, engagement string, args []string) (run []string, id string, err error) {
	id, err = build.Build(ctx, build.Options{
		Builder: s.at.Builder, Conn: s.conn, Context: b.from(), Options: b.options, Engagement: engagement,
		Stdin: a.Stdin, Stderr: a.Stderr, See: a.print.Fact, Quiet: a.print.JSON,
	})
	if err != nil {
		return nil, "", err
	}
	run, err = handlerrun.WithImage(args, id)
	if err == nil {
		run = slices.Concat(b.publish, run)
	}
	if err == nil && b.debug != "" {
		run = append(debugArgs(), run...)
	}
	if b.watch {
		run = append(watchArgs(), run...)
	}
	return run, id, err
}

func (a *App) buildCommand() *usage.Command {
	b := &buildFlags{}
	c := &usage.Command{
		Name: "build", Synopsis: "build CONTEXT [--docker-build-opt KEY=VALUE]…",
		Short: "Build an image on the Docker Engine and print its ID.",
		Long: `CONTEXT is a directory, a Dockerfile, a Git or HTTP URL, or - for a tar on standard
input. The engine's BuildKit builds where there is one, its classic builder elsewhere
(DOCKER_BUILDKIT=0 or 1 chooses). The ID goes to stdout, the progress to stderr.`,
		Examples: []string{"ctl build .", "ctl build images/frontend --docker-build-opt tag=frontend:dev --docker-build-opt target=dev"},
		Flags:    a.flags("build"),
	}
	b.optionsTo(c.Flags)
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if len(l.Words) != 1 || l.Dashes {
			return fault.New(fault.InvalidArgument, "ctl build .", "one build context, and nothing behind --")
		}
		s, err := a.join(ctx)
		if err != nil {
			return err
		}
		defer s.close()
		id, err := build.Build(ctx, build.Options{
			Builder: s.at.Builder, Conn: s.conn, Context: l.Words[0], Options: b.options,
			Stdin: a.Stdin, Stderr: a.Stderr, See: a.print.Fact, Quiet: a.print.JSON,
		})
		if err != nil {
			return err
		}
		a.print.Result("%s", id)
		return nil
	})
	return c
}
