package cli

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"syscall"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/localrun"
	"berth.dev/ctl/internal/workspace"
	"berth.dev/lease"
)

// local runs a command of this machine as the handler: with the container's
// environment, its exit code ours, and the engagement ends with it.
//
// Its volumes are mounted on this machine, where that can be done (--mount).
//
// The daemon container's network is not the command's: it does not reach the
// cluster by name, and what is engaged comes to it at this machine's address as
// the daemon container sees it.
func (h *handling) local(ctx context.Context, req command.OpenEngagement, f *engageFlags, argv []string) error {
	if f.kind != lease.Ingest {
		if req.Address == "" {
			address, err := h.hostAddress(ctx)
			if err != nil {
				return err
			}
			req.Address = address
		}
		if req.Wait == "" {
			req.Wait = command.WaitListening
		}
		h.until = req.Wait
	}
	mount, err := h.mountHere(ctx, &req, f)
	if err != nil {
		return err
	}
	cmd := &localrun.Command{Argv: argv, Stdin: h.app.Stdin, Stdout: h.app.Stdout, Stderr: h.app.Stderr}
	if h.app.print.JSON {
		cmd.Stdout = h.app.Stderr // stdout is for the facts
	}
	h.ask = func() {
		if interrupt.Is(ctx) {
			cmd.Signal(os.Interrupt)
		} else {
			cmd.Signal(syscall.SIGTERM)
		}
	}
	h.kill = func() { cmd.Signal(os.Kill) }
	h.endCause = "command ended"
	go func() {
		defer close(h.ran)
		defer mount.close()
		if h.err = h.open(ctx, req); h.err != nil {
			return
		}
		prepared, err := h.eng.Prepared(ctx)
		if h.err = err; err != nil {
			return
		}
		env, err := h.environment(ctx, &f.env)
		if err == nil {
			err = mount.mount(ctx, env.Volumes)
		}
		if h.err = err; err != nil {
			return
		}
		for _, p := range prepared.Ports {
			h.app.print.Progress("  %d/%s comes to the command at %s (it has to listen there, or everywhere)", p.Container, p.Protocol, handlerAddress(req.Address, p))
		}
		h.tellWaiting(prepared.Ports)
		cmd.Env = localEnv(env.Env, mount.mounted())
		go mount.tell(h.ran)
		h.code, h.err = cmd.Run()
	}()
	return nil
}

// localEnv is our own environment with the container's laid over it. Where its
// volumes are is left out if they are not on this machine.
func localEnv(remote [][]byte, mounted bool) []string {
	env := os.Environ()
	for _, e := range remote {
		if mounted || !bytes.HasPrefix(e, []byte("BERTH_ROOT=")) && !bytes.HasPrefix(e, []byte("BERTH_MOUNTS=")) {
			env = append(env, string(e)) // the last of a name counts
		}
	}
	return env
}

// hostAddress is this machine's as the daemon container sees it: the gateway of
// its network, where the Docker Engine runs on this machine itself.
func (h *handling) hostAddress(ctx context.Context) (string, error) {
	ws, ok := h.s.at.(*workspace.Workspace)
	if !ok {
		return "127.0.0.1", nil
	}
	ask := fault.New(fault.InvalidArgument, "--address IP", "the Docker Engine does not run on this machine itself: the command's address, as a container sees it, has to be given")
	if !ws.Engine.Here(ctx) {
		return "", ask
	}
	in, err := ws.Engine.API.ContainerInspect(ctx, h.daemon)
	if err != nil {
		return "", fault.New(fault.Unavailable, "ctl status", "look at the daemon container %s: %v", h.daemon, err)
	}
	for name, n := range in.NetworkSettings.Networks {
		if _, err := netip.ParseAddr(n.Gateway); err == nil && name == ws.Network() {
			return n.Gateway, nil
		}
	}
	return "", ask
}
