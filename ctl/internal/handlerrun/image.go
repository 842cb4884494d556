package handlerrun

import (
	"errors"
	"io"

	"berth.dev/bus/fault"

	"github.com/docker/cli/cli/command"
)

// Placeholder is the word that stands for the image that is being built.
const Placeholder = "IMAGE"

// ImageAt is the place of the image among the arguments of `docker run`, as
// Docker itself finds it; len(args) if there is none.
func ImageAt(args []string) (int, error) {
	dc, err := command.NewDockerCli(command.WithOutputStream(io.Discard), command.WithErrorStream(io.Discard))
	if err != nil {
		return 0, fault.New(fault.Internal, "", "prepare docker run: %v", err)
	}
	cmd := runCommand(dc)
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	if err := cmd.ParseFlags(args); err != nil {
		return 0, fault.New(fault.InvalidArgument, "docker run --help", "%s: %s", behindDashes, plain(err))
	}
	return len(args) - cmd.Flags().NArg(), nil
}

// Interactive reports whether the arguments of `docker run` ask for a terminal or
// for standard input.
func Interactive(args []string) (bool, error) {
	dc, err := command.NewDockerCli(command.WithOutputStream(io.Discard), command.WithErrorStream(io.Discard))
	if err != nil {
		return false, fault.New(fault.Internal, "", "prepare docker run: %v", err)
	}
	cmd := runCommand(dc)
	if err := cmd.ParseFlags(args); err != nil {
		return false, fault.New(fault.InvalidArgument, "docker run --help", "the arguments behind --: %s", plain(err))
	}
	i, ierr := cmd.Flags().GetBool("interactive")
	t, terr := cmd.Flags().GetBool("tty")
	return i || t, errors.Join(ierr, terr)
}

// WithImage is the arguments with the image in the placeholder's place. None at
// all means the image alone. The same word behind the image is the container's.
func WithImage(args []string, image string) ([]string, error) {
	if len(args) == 0 {
		return []string{image}, nil
	}
	at, err := ImageAt(args)
	switch {
	case err != nil:
		return nil, err
	case at == len(args):
		return nil, fault.New(fault.InvalidArgument, "-- [docker run flags] IMAGE [args]", "no image among the arguments behind --: the word %s stands for the one that is built", Placeholder)
	case args[at] != Placeholder:
		return nil, fault.New(fault.InvalidArgument, "-- [docker run flags] IMAGE [args]", "the image among the arguments behind -- is %s; the word %s stands for the one that is built", args[at], Placeholder)
	}
	out := append([]string(nil), args...)
	out[at] = image
	return out, nil
}
