package hostspace

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/bus/standby"
	"berth.dev/bus/subject"

	"golang.org/x/term"
)

// StartVIF starts a vif, with the privilege that it takes, and returns when it
// stands by at runner's socket. tell is given the line that explains what is asked
// for, where something is.
func (s *Space) StartVIF(ctx context.Context, tell func(line string)) error {
	if err := s.write(vifFile, true); err != nil {
		return err
	}
	err := s.privileged(ctx, tell, "makes the network interface and the routes into the cluster",
		"-interface", Interface, "-standby", s.path(standby.SocketName))
	if err != nil {
		return fault.At("daemon", err)
	}
	return nil
}

// restore puts the resolver's configuration back, if a vif that was killed has
// left it. Whether there is anything to do can be seen, and on most machines done,
// without privilege being asked for.
func (s *Space) restore(ctx context.Context) error {
	path, err := program(subject.VIF)
	if err != nil {
		return nil // it never ran here
	}
	if err := exec.CommandContext(ctx, path, "-interface", Interface, "-restore").Run(); err == nil {
		return nil
	}
	return s.privileged(ctx, func(line string) { _, _ = io.WriteString(os.Stderr, line+"\n") },
		"puts back the resolver's configuration, which a vif that was killed has left", "-interface", Interface, "-restore")
}

// privileged runs vif as root, in the foreground; what it says is told if it fails.
func (s *Space) privileged(ctx context.Context, tell func(string), why string, args ...string) error {
	path, err := program(subject.VIF)
	if err != nil {
		return err
	}
	argv := append([]string{path}, args...)
	if os.Geteuid() != 0 {
		if argv, err = withSudo(argv); err != nil {
			return err
		}
		tell("ctl: sudo runs " + path + ", which " + why + "; nothing else has privilege")
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, io.MultiWriter(&said, writerIf(os.Geteuid() != 0))
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hint := "ctl connect --docker"
		if os.Geteuid() != 0 {
			hint = "sudo -v, then again; or ctl connect --docker, which takes no privilege"
		}
		return fault.New(fault.PermissionDenied, hint, "start vif: %s", last(said.String(), err))
	}
	return nil
}

// writerIf is standard error, on which sudo asks, or nowhere.
func writerIf(show bool) io.Writer {
	if show {
		return os.Stderr
	}
	return io.Discard
}

func last(said string, err error) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if l := strings.TrimSpace(lines[len(lines)-1]); l != "" {
		return l
	}
	return err.Error()
}

// withSudo is the command with root's rights. Without a terminal nobody could be
// asked for a password.
func withSudo(argv []string) ([]string, error) {
	if _, err := exec.LookPath("sudo"); err != nil {
		return nil, fault.New(fault.PermissionDenied, "ctl connect --docker", "the network interface on this machine takes root, and there is no sudo; with --docker it takes no privilege")
	}
	sudo := []string{"sudo"}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		sudo = append(sudo, "-n")
	}
	return append(append(sudo, "--"), argv...), nil
}
