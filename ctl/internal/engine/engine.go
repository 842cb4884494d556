// Package engine opens the Docker Engine that the docker command itself would
// use: DOCKER_HOST, else the Docker context that was chosen, else the default
// socket, with the API version negotiated (Docker 20.10 and newer).
//
// It owns the one explanation of why there is no engine: not running, no such
// socket, or no permission, each with the command that mends it.
//
// docker/cli is used for its context store and its ssh helper, which no other
// library reads; what ctl does with an engine goes through [Engine.API].
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth.dev/bus/fault"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/docker/client"
	"github.com/spf13/pflag"
)

// ErrAbsent is an engine that is not there at all, and that nobody named: whoever
// can do without one does.
var ErrAbsent = errors.New("no Docker Engine")

type absent struct{ error }

func (absent) Is(target error) bool { return target == ErrAbsent }
func (a absent) Unwrap() error      { return a.error }

// Engine is an engine that answers.
type Engine struct {
	API  client.APIClient
	Host string // as DOCKER_HOST would have it
}

// configured is a client of the engine to use; nobody has asked it anything.
func configured() (client.APIClient, error) {
	opts := flags.NewClientOptions()
	set := pflag.NewFlagSet("docker", pflag.ContinueOnError)
	opts.InstallFlags(set) // reads DOCKER_TLS_VERIFY and DOCKER_CERT_PATH
	opts.SetDefaultOptions(set)
	return command.NewAPIClientFromFlags(opts, config.LoadDefaultConfigFile(io.Discard))
}

// Configured is the engine to use, as DOCKER_HOST would have it, whether it
// answers or not; empty if none can be chosen.
func Configured() string {
	api, err := configured()
	if err != nil {
		return ""
	}
	defer api.Close()
	return api.DaemonHost()
}

// helped is what a client says of an engine that it reaches by a helper (ssh).
const helped = "http://docker.example.com"

// hostOf is where the client's engine is, as DOCKER_HOST would have it.
func hostOf(api client.APIClient) string {
	if api.DaemonHost() != helped {
		return api.DaemonHost()
	}
	cli, err := command.NewDockerCli(command.WithCombinedStreams(io.Discard))
	if err == nil {
		err = cli.Initialize(flags.NewClientOptions())
	}
	if err != nil {
		return "ssh://" // what is known of it
	}
	return cli.DockerEndpoint().Host
}

// Open opens the engine and makes sure that it answers.
func Open(ctx context.Context) (*Engine, error) {
	api, err := configured()
	if err != nil {
		return nil, fault.At("Docker", fault.New(fault.FailedPrecondition, "docker context ls", "choose the Docker Engine: %v", err))
	}
	e := &Engine{API: remembering{api}, Host: hostOf(api)}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ping, err := api.Ping(ctx)
	if err != nil {
		return nil, errors.Join(e.explain(err), api.Close())
	}
	api.NegotiateAPIVersionPing(ping)
	return e, nil
}

// Close closes idle connections.
func (e *Engine) Close() { _ = e.API.Close() }

// Socket is the path of the engine's socket if it is reached by one, else "".
func (e *Engine) Socket() string {
	path, ok := strings.CutPrefix(e.Host, "unix://")
	if !ok {
		return ""
	}
	return path
}

// Local reports whether containers' ports on 127.0.0.1 are this machine's.
func (e *Engine) Local() bool {
	return strings.HasPrefix(e.Host, "unix://") || strings.HasPrefix(e.Host, "npipe://")
}

// Here reports whether the engine's containers are on this very machine: their
// addresses are reached from it, and it is reached from them. Neither is so with
// Docker Desktop, a rootless engine, or one on another machine.
func (e *Engine) Here(ctx context.Context) bool {
	if runtime.GOOS != "linux" || e.Socket() == "" {
		return false
	}
	info, err := e.API.Info(ctx)
	return err == nil && !strings.Contains(info.OperatingSystem, "Desktop") && !slices.ContainsFunc(info.SecurityOptions, func(o string) bool {
		return strings.Contains(o, "name=rootless")
	})
}

// explain says why the engine does not answer. The client's own message says
// "Is the docker daemon running?" to every question.
func (e *Engine) explain(err error) error {
	path := e.Socket()
	if path == "" {
		return dockerFault(fault.Unavailable, "docker -H "+e.Host+" version", "the Docker Engine at %s does not answer: %v", e.Host, err)
	}
	var d net.Dialer
	conn, derr := d.Dial("unix", path)
	if derr == nil {
		_ = conn.Close()
		return dockerFault(fault.Unavailable, "sudo systemctl restart docker", "the Docker Engine at %s does not answer: %v", path, err)
	}
	switch {
	case errors.Is(derr, fs.ErrNotExist):
		if os.Getenv("DOCKER_HOST") != "" {
			return dockerFault(fault.Unavailable, "unset DOCKER_HOST, or: sudo systemctl start docker", "there is no Docker socket at %s, which DOCKER_HOST names", path)
		}
		return absent{dockerFault(fault.Unavailable, "sudo systemctl start docker", "there is no Docker socket at %s: the Docker Engine is not running, or not installed", path)}
	case errors.Is(derr, fs.ErrPermission):
		name := "$USER"
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
		return dockerFault(fault.PermissionDenied, "sudo usermod -aG docker "+name+", then log in again", "no permission to use the Docker socket %s", path)
	case errors.Is(derr, syscall.ECONNREFUSED):
		return dockerFault(fault.Unavailable, "sudo systemctl start docker", "the Docker Engine is not running: nobody listens at %s", path)
	}
	return dockerFault(fault.Unavailable, "sudo systemctl start docker", "reach the Docker Engine at %s: %v", path, derr)
}

func dockerFault(code fault.Code, hint, format string, args ...any) error {
	return &fault.Error{Code: code, Stage: "Docker", Message: fmt.Sprintf(format, args...), Hint: hint}
}
