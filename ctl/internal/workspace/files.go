package workspace

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// runnerConfigFile is where the connector's container keeps the runner's
// Config, so that a runner that died can be replaced without new keys.
const runnerConfigFile = "/etc/berth/runner.json"

// builderConfigFile is the same for builder, which is started when it is needed.
const builderConfigFile = "/etc/berth/builder.json"

// files are what a container is given when it starts.
type files bus.Files

// keys makes the identities of a new workspace: the files of the connector's
// container, and of the runner's.
func (w *Workspace) keys() (connector, runner files, ctl bus.Config, err error) {
	ids, cfg, err := Identities(func(s subject.Service) string {
		host := w.container(subject.Connector)
		if s == subject.Connector {
			host = "127.0.0.1"
		}
		return "nats://" + host + ":" + BusPort
	})
	if err != nil {
		return nil, nil, ctl, err
	}
	connector, runner = files{}, files{}
	err = errors.Join(
		connector.add(bus.IdentitiesFile, ids),
		connector.add(bus.ConfigFile, cfg[subject.Connector]),
		connector.add(bus.CtlConfigFile, cfg[subject.Ctl]),
		connector.add(runnerConfigFile, cfg[subject.Runner]),
		connector.add(builderConfigFile, cfg[subject.Builder]),
		runner.add(bus.ConfigFile, cfg[subject.Runner]),
	)
	return connector, runner, cfg[subject.Ctl], err
}

// Identities makes those of a new workspace, with what each of its services is to
// know: url is where one reaches the bus.
func Identities(url func(subject.Service) string) ([]bus.Identity, map[subject.Service]bus.Config, error) {
	var ids []bus.Identity
	cfg := map[subject.Service]bus.Config{}
	for _, s := range []subject.Service{subject.Connector, subject.Runner, subject.Builder, subject.Ctl} {
		seed, id, err := bus.NewIdentity(string(s), s, "")
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, id)
		cfg[s] = bus.Config{URL: url(s), Seed: seed, Identity: id.Name, Service: s}
	}
	return ids, cfg, nil
}

func (f files) add(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("marshal %s: %w", name, err)
	}
	f[name] = b
	return nil
}

// fetch reads a file out of a container, running or not.
func (w *Workspace) fetch(ctx context.Context, id, name string) ([]byte, error) {
	r, _, err := w.Engine.API.CopyFromContainer(ctx, id, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tr := tar.NewReader(r)
	if _, err := tr.Next(); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(tr, 128<<20)) // programs, too
}

// Telemount is telemount's program, as the daemon container has it: for mounts on
// this machine, from which that container has to be reached.
func (w *Workspace) Telemount(ctx context.Context, daemon string) ([]byte, error) {
	if !w.Engine.Here(ctx) {
		return nil, fault.New(fault.FailedPrecondition, "--docker-run -- IMAGE", "nothing can be mounted on this machine: the Docker Engine runs elsewhere (Docker Desktop, a remote or a rootless engine), so that the daemon container is not reached from here; a handler in a container has the volumes")
	}
	b, err := w.fetch(ctx, daemon, "/usr/local/bin/telemount")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ctl status", "read telemount's program from the daemon container: %v", err)
	}
	return b, nil
}

// identity is ctl's own, from the connector's container.
func (w *Workspace) identity(ctx context.Context, connector string) (bus.Config, error) {
	var cfg bus.Config
	b, err := w.fetch(ctx, connector, bus.CtlConfigFile)
	if err != nil {
		return cfg, fault.New(fault.Unavailable, "ctl quit --all", "read ctl's key from the connector's container: %v", err)
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return cfg, fault.New(fault.Internal, "ctl quit --all", "read ctl's key from the connector's container: %v", err)
	}
	return cfg, nil
}
