// Package cli is the commands of ctl. Each is one file that reads from top to
// bottom as what the command does; what it needs of Docker, the bus, the
// kubeconfig and the terminal is in packages of their own.
//
// A command prints results to stdout and progress to stderr, and returns an
// error that [Main] prints and turns into the exit code: 0 done, 1 failed, 2
// wrong usage, or a handler's own.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/render"
	"berth.dev/ctl/internal/usage"
)

// App is one run of ctl.
type App struct {
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
	Version        string

	output    string
	use       string
	workspace string
	image     string
	sig       interrupt.Signals
	print     *render.Printer
}

// exit is an error that is an exit code and nothing to say.
type exit int

func (e exit) Error() string { return "exit" }

// Main runs the command line and returns the exit code.
func (a *App) Main(ctx context.Context, args []string) int {
	sig, stop := interrupt.Watch(ctx)
	defer stop()
	a.sig = sig
	if os.Getenv("BERTH_ENGAGEMENT_ID") != "" {
		// Within a handler this says what it stands in for; it is no --container.
		_ = os.Unsetenv("BERTH_CONTAINER")
	}
	err := a.tool().Run(sig.First, args)
	var code exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case interrupt.Is(sig.First) && cancelled(err):
		a.note("ctl: interrupted; what was begun has been undone")
		return interrupt.ExitCode
	}
	render.Error(a.Stderr, "ctl", err)
	if fault.CodeOf(err) == fault.InvalidArgument {
		return 2
	}
	return 1
}

// cancelled reports whether err only says that the command was interrupted. By
// the message too, since what went through a fault or an engine's answer has
// lost its type.
func cancelled(err error) bool {
	if errors.Is(err, interrupt.ErrInterrupted) || errors.Is(err, context.Canceled) {
		return true
	}
	msg := err.Error()
	return strings.Contains(msg, interrupt.ErrInterrupted.Error()) || strings.Contains(msg, context.Canceled.Error())
}

func (a *App) note(line string) { fmt.Fprintln(a.Stderr, line) }

// tool is ctl with its commands, in the order of its help.
func (a *App) tool() *usage.Tool {
	return &usage.Tool{
		Name: "ctl", Short: "ctl docks local containers into a Kubernetes cluster.",
		Stdout: a.Stdout, Stderr: a.Stderr,
		Commands: []*usage.Command{
			a.connectCommand(), a.quitCommand(), a.statusCommand(), a.listCommand(),
			a.replaceCommand(), a.interceptCommand(), a.ingestCommand(), a.wiretapCommand(), a.leaveCommand(), a.buildCommand(),
			a.dockerRunCommand(), a.composeCommand(), a.curlCommand(), a.eventsCommand(),
			a.installCommand(), a.uninstallCommand(),
			a.doctorCommand(), a.gcCommand(), a.versionCommand(),
		},
	}
}

// flags is a command's flag set with the flags that every command has.
func (a *App) flags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&a.output, "output", "text", "`FORMAT` of what is printed: text or json")
	fs.StringVar(&a.use, "use", "", "`NAME` of the connection to use, where several exist")
	fs.StringVar(&a.workspace, "workspace", "", "`NAME` of the workspace on the Docker Engine, to have several side by side")
	return fs
}

// run makes a command's Run: it looks at the common flags first.
func (a *App) run(f func(context.Context, usage.Line) error) func(context.Context, usage.Line) error {
	return func(ctx context.Context, l usage.Line) error {
		if a.output != "text" && a.output != "json" {
			return fault.New(fault.InvalidArgument, "--output json", "--output is text or json, not %q", a.output)
		}
		if a.workspace != "" && !subject.Valid(a.workspace) {
			return fault.New(fault.InvalidArgument, "--workspace dev", "%q is no name for a workspace: use a-z, 0-9 and -", a.workspace)
		}
		a.print = &render.Printer{Stdout: a.Stdout, Stderr: a.Stderr, JSON: a.output == "json"}
		return f(ctx, l)
	}
}

// noWords refuses positional words and what stands behind "--".
func noWords(name string, l usage.Line) error {
	if len(l.Words) > 0 {
		return fault.New(fault.InvalidArgument, "ctl "+name+" --help", "`ctl %s` takes no %q", name, l.Words[0])
	}
	if l.Dashes {
		return fault.New(fault.InvalidArgument, "ctl "+name+" --help", "`ctl %s` takes nothing behind --", name)
	}
	return nil
}

// whoami is who we are, for people: user@host.
func whoami() string {
	name := "somebody"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return name + "@" + host
}
