// Package hostspace owns the processes that Berth runs on this machine itself,
// connector and runner, and with a connection vif: it finds them, starts what is
// missing, repairs what is half dead, and takes all of it down. It is to processes
// what package workspace is to containers.
//
// All that it keeps lies in one directory, which only the user may enter:
// $XDG_RUNTIME_DIR/berth/<workspace>, with the keys of the bus, the logs, the
// streams, and a lock of each process by which it is found (bus/proclock). Who is
// dead is not found, whatever a file says.
//
// Two ctl may call [Space.Ensure] at once: the directory's own lock has one of
// them work and the other wait.
//
// vif alone has privilege: [Space.StartVIF] asks for it, and neither ctl nor
// another process has any.
package hostspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/workspace"
)

// Names of files in the directory.
const (
	identitiesFile = "identities.json"
	storeDir       = "store"
	ctlLock        = "ctl.lock"
)

// Space is the workspace of that name on this machine, whether it is up or not.
type Space struct {
	Name    string
	Version string // of this ctl
	dir     string
	docker  *engine.Engine
}

// New is the workspace of that name; empty is the default one.
func New(name, version string) (*Space, error) {
	if name == "" {
		name = workspace.DefaultName
	}
	if !subject.Valid(name) {
		return nil, fault.New(fault.InvalidArgument, "", "%q is no name for a workspace: use a-z, 0-9 and -", name)
	}
	return &Space{Name: name, Version: version, dir: filepath.Join(base(), name)}, nil
}

// base is the directory of this user's workspaces.
func base() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "berth")
	}
	if os.Geteuid() == 0 {
		return "/run/berth"
	}
	return filepath.Join(os.TempDir(), "berth-"+strconv.Itoa(os.Geteuid()))
}

// Dir is where its files are.
func (s *Space) Dir() string { return s.dir }

func (s *Space) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Space) lockOf(c subject.Service) string { return s.path(string(c) + ".lock") }
func (s *Space) configOf(c subject.Service) string {
	return s.path(string(c) + ".json")
}

// Exists reports whether there is anything of it, be it what a crash left.
func (s *Space) Exists() bool {
	_, err := os.Lstat(s.dir)
	return err == nil
}

// makeDir makes the directory, or refuses one that is not this user's alone: in a
// directory that others may write to, they could have made it first.
func (s *Space) makeDir() error {
	for _, d := range []string{base(), s.dir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fault.New(fault.FailedPrecondition, "export XDG_RUNTIME_DIR=DIR", "make the directory for what runs on this machine: %v", err)
		}
		if err := private(d); err != nil {
			return fault.New(fault.PermissionDenied, "ls -ld "+d, "%v", err)
		}
	}
	return nil
}

// write writes a file that only the user may read, whole or not at all.
func (s *Space) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("marshal %s: %w", name, err)
	}
	tmp := s.path(name + ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.path(name))
}

// config is what ctl or a service is told of the bus.
func (s *Space) config(c subject.Service) (bus.Config, error) {
	var cfg bus.Config
	b, err := os.ReadFile(s.configOf(c))
	if err == nil && json.Unmarshal(b, &cfg) != nil {
		err = errors.New("not the JSON that it should be") // which may hold the key
	}
	if err != nil {
		return cfg, fault.New(fault.Unavailable, "ctl quit --all", "read the key of %s in %s: %v", c, s.dir, err)
	}
	return cfg, nil
}

// exclusive waits until no other ctl changes the workspace.
func (s *Space) exclusive(ctx context.Context) (*proclock.Lock, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, otherWithin, errors.New("another ctl is at work and does not get on"))
	defer cancel()
	for {
		if err := s.makeDir(); err != nil {
			return nil, err
		}
		l, err := proclock.Take(s.path(ctlLock))
		switch {
		case err == nil && s.same(l):
			return l, nil
		case err == nil:
			l.Release() // of a directory that was removed meanwhile
		case !errors.Is(err, proclock.ErrHeld) && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		if err := pause(ctx); err != nil {
			return nil, fault.New(fault.Unavailable, "ctl quit --all", "%v", err)
		}
	}
}

// same reports whether the lock is of the file that has the name now.
func (s *Space) same(l *proclock.Lock) bool {
	now, err := os.Stat(s.path(ctlLock))
	return err == nil && l.Is(now)
}

const (
	otherWithin = 30 * time.Second
	probeEvery  = 15 * time.Millisecond
)

// pause waits for the next probe, or returns ctx's error.
func pause(ctx context.Context) error {
	t := time.NewTimer(probeEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Connect connects to the bus of a workspace that is up; of one that is not, it is
// a FailedPrecondition fault. A connector that does not answer within limit is an
// Unavailable one.
func (s *Space) Connect(ctx context.Context, limit time.Duration) (*bus.Conn, error) {
	p, up, err := proclock.Holder(s.lockOf(subject.Connector))
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ctl quit --all", "look for the connector: %v", err)
	}
	if !up {
		return nil, fault.New(fault.FailedPrecondition, "ctl connect", "not connected: Berth's connector does not run on this machine")
	}
	cfg, err := s.config(subject.Ctl)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := dial(ctx, cfg)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ctl quit --all", "the connector (process %d) does not answer: %v", p.PID, err)
	}
	return conn, nil
}

// dial connects to the bus, and tries again until ctx ends: its process is there
// before its server is.
func dial(ctx context.Context, cfg bus.Config) (*bus.Conn, error) {
	for {
		conn, err := bus.Connect(ctx, cfg)
		if err == nil || fault.CodeOf(err) == fault.PermissionDenied {
			return conn, err
		}
		if perr := pause(ctx); perr != nil {
			return nil, errors.Join(perr, err)
		}
	}
}

// Locate leaves the API server where the user's kubeconfig has it.
func (s *Space) Locate(ctx context.Context, t *kubeconfig.Target) (kubeconfig.Reach, error) {
	return t.Here(ctx)
}

// Docker is the engine for handlers in containers, opened when it is first asked
// for: nothing else here needs one. It has to be this machine's, where the traffic
// comes to.
func (s *Space) Docker(ctx context.Context) (*engine.Engine, error) {
	if s.docker != nil {
		return s.docker, nil
	}
	e, err := engine.Open(ctx)
	if err != nil {
		return nil, err
	}
	if e.Socket() == "" {
		e.Close()
		return nil, fault.New(fault.FailedPrecondition, "ctl connect --docker", "the Docker Engine at %s is another machine's, and what is engaged comes to ports of this one", e.Host)
	}
	if err := s.write(engineFile, e.Host); err != nil { // before there is anything on it
		e.Close()
		return nil, err
	}
	s.docker = e
	return e, nil
}

// engineFile says that there may be containers of this workspace on an engine.
const engineFile = "engine.json"

func (s *Space) usedEngine() bool {
	_, err := os.Stat(s.path(engineFile))
	return err == nil
}

// label is the value of the workspace's label on containers. No workspace of
// containers can have it, since their names have no dot.
func (s *Space) label() string { return "machine." + s.Name }

// containers is what there is of this workspace on the engine, nil without any.
func (s *Space) containers(ctx context.Context) (*workspace.Workspace, error) {
	if !s.usedEngine() {
		return nil, nil
	}
	e, err := s.Docker(ctx)
	if err != nil {
		return nil, err
	}
	return &workspace.Workspace{Engine: e, Name: s.label(), Version: s.Version}, nil
}

// Close closes what was opened.
func (s *Space) Close() {
	if s.docker != nil {
		s.docker.Close()
	}
}

// freePort is a port of the loopback address that nobody has at the moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port for the bus: %w", err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
