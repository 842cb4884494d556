// Package engine speaks to the container engine through its own command line,
// so it works wherever `docker` does: other sockets, contexts and versions
// included. A failed command keeps its argv and its output for the user.
package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// Error is a docker command that failed.
type Error struct {
	Args   []string
	Output string // standard error, trimmed
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("docker %s: %v\n%s", strings.Join(e.Args, " "), e.Err, e.Output)
}

func (e *Error) Unwrap() error { return e.Err }

// Run runs `docker args...` and returns its standard output, trimmed.
func Run(ctx context.Context, args ...string) (string, error) {
	return Pipe(ctx, nil, nil, args...)
}

// Pipe runs `docker args...` with the given standard input and a copy of its
// standard error in progress; both may be nil.
func Pipe(ctx context.Context, stdin io.Reader, progress io.Writer, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdin = stdin
	cmd.Stdout = &stdout
	cmd.Stderr = &stderr
	if progress != nil {
		cmd.Stderr = io.MultiWriter(&stderr, progress)
	}
	if err := cmd.Run(); err != nil {
		return "", &Error{Args: args, Output: strings.TrimSpace(stderr.String()), Err: err}
	}
	return strings.TrimSpace(stdout.String()), nil
}

// ImageID returns the ID of a local image, or "" if there is none.
func ImageID(ctx context.Context, image string) (string, error) {
	id, err := Run(ctx, "image", "inspect", "--format", "{{.Id}}", image)
	if err == nil {
		return id, nil
	}
	if NotFound(err) {
		return "", nil
	}
	return "", err
}

// NotFound tells an object that is absent from an engine that is.
func NotFound(err error) bool {
	var out string
	if e, ok := err.(*Error); ok {
		out = strings.ToLower(e.Output)
	}
	return strings.Contains(out, "no such") || strings.Contains(out, "not found")
}

// Merged is Run with standard error mixed into the output, for `docker logs`.
func Merged(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		return "", &Error{Args: args, Output: strings.TrimSpace(string(out)), Err: err}
	}
	return strings.TrimSpace(string(out)), nil
}
