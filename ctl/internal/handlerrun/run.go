// Package handlerrun is Docker's own `run` command with another engine behind
// it: it parses the user's `docker run` arguments, pulls a missing image, drives
// the terminal and takes the exit code exactly as Docker does, while the
// container itself is created and started by whoever the caller says.
//
// docker/cli offers no parser for these flags, only the command. So the command
// runs over a client that passes everything to the engine but two calls:
// creating the container, which becomes [Hooks.Create], and starting it, which
// becomes [Hooks.Start]. docker/cli has deprecated that command; it is used here
// and nowhere else, so that it can be replaced.
//
// The image is there before Create is called. Whatever fails earlier has touched
// nothing but the engine's images.
package handlerrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"berth.dev/bus/fault"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/container"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

// Options is one run.
type Options struct {
	API            client.APIClient
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
	// Args are those of `docker run`: [flags] IMAGE [args].
	Args []string
	// Handler: the rules for handlers hold. No --detach, and signals are not passed
	// on: the engagement's end ends the handler. --rm is implied for everybody.
	Handler bool
}

// Hooks stand in for the engine.
type Hooks struct {
	// Create creates the container that the arguments describe.
	Create func(context.Context, Spec) (id string, warnings []string, err error)
	// Start starts it; nil leaves it to the engine.
	Start func(ctx context.Context, id string) error
}

// Run runs to the container's end and returns its exit code. An error says that
// the container did not run, and the code is then Docker's for that, or 0 where
// Docker did not come as far: InvalidArgument for arguments that Docker refuses,
// of the stage "image" where there is no image, else what a hook or the engine
// said. ctx ends what comes before the container's start; afterwards only the
// container's end ends Run.
func Run(ctx context.Context, o Options, h Hooks) (int, error) {
	w := &wrapper{APIClient: o.API, hooks: h, where: "the arguments"}
	if o.Handler {
		w.where = behindDashes
	}
	dc, err := command.NewDockerCli(command.WithAPIClient(w), command.WithBaseContext(ctx),
		command.WithInputStream(o.Stdin), command.WithOutputStream(o.Stdout), command.WithErrorStream(o.Stderr))
	if err != nil {
		return 0, fmt.Errorf("prepare docker run: %w", err)
	}
	if err := dc.Initialize(flags.NewClientOptions()); err != nil {
		return 0, fmt.Errorf("prepare docker run: %w", err)
	}
	cmd := runCommand(dc)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(o.Stdout)
	cmd.SetErr(o.Stderr)
	cmd.SetArgs(o.Args)
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := rules(cmd, o.Handler); err != nil {
			return err
		}
		return inner(cmd, args)
	}
	return w.outcome(cmd.ExecuteContext(ctx))
}

// behindDashes is where a handler's arguments stand.
const behindDashes = "the arguments behind --"

// runCommand is Docker's own `run`, with Docker's own flags.
func runCommand(dc command.Cli) *cobra.Command {
	//lint:ignore SA1019 the only way to Docker's own flags; see the package comment
	return container.NewRunCommand(dc)
}

// rules looks at the flags as Docker parsed them, so that -itd is found and a -d
// behind the image is not.
func rules(cmd *cobra.Command, handler bool) error {
	if f := cmd.Flags().Lookup("rm"); f != nil && f.Changed && f.Value.String() == "false" {
		return errors.New("--rm=false is not possible: the container is removed when it ends, with what it has of the connection")
	}
	// Docker's own words would be about a --rm that nobody gave.
	if f := cmd.Flags().Lookup("restart"); f != nil && f.Changed && f.Value.String() != "no" {
		return errors.New("--restart cannot be used here: the container is removed when it ends (--rm), with what it has of the connection")
	}
	implied := map[string]string{"rm": "true"}
	if handler {
		if d, err := cmd.Flags().GetBool("detach"); err == nil && d {
			return errors.New("--detach is not possible: a handler runs as long as its engagement, in the foreground")
		}
		implied["sig-proxy"] = "false"
	}
	for flag, value := range implied {
		if err := cmd.Flags().Set(flag, value); err != nil {
			return fmt.Errorf("set --%s: %w", flag, err)
		}
	}
	return nil
}

// outcome says what the end of Docker's command means, by how far it came.
func (w *wrapper) outcome(err error) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var status cli.StatusError
	isStatus := errors.As(err, &status)
	switch {
	case w.failed != nil: // by a hook, whose words are better than what Docker made of them
		return status.StatusCode, w.failed
	case w.started && isStatus:
		return status.StatusCode, nil
	case err == nil:
		return 0, nil
	case w.pulling || w.missing != "":
		return 0, &fault.Error{Code: fault.NotFound, Stage: "image", Hint: "docker pull " + w.missing,
			Message: fmt.Sprintf("there is no image %s on the Docker Engine, and it could not be pulled: %s", w.missing, plain(err))}
	case w.started || w.created:
		return 0, fault.New(fault.Unavailable, "", "run the container: %s", plain(err))
	}
	msg := plain(err)
	if strings.Contains(msg, "requires at least 1 argument") {
		msg = "no image given"
	}
	return 0, fault.New(fault.InvalidArgument, "docker run --help", "%s: %s", w.where, msg)
}

// plain is Docker's message without the frame for its own command line.
func plain(err error) string {
	msg, _, _ := strings.Cut(err.Error(), "\n\nRun 'docker")
	msg, _, _ = strings.Cut(msg, "\nSee 'docker")
	return strings.TrimPrefix(strings.TrimSpace(msg), "docker: ")
}
