package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/docker/docker/api/types/container"
)

// runnerConfigFile is where the connector's container keeps the runner's
// Config, so that a runner that died can be replaced without new keys.
const runnerConfigFile = "/etc/berth/runner.json"

// builderConfigFile is the same for builder, which is started when it is needed.
const builderConfigFile = "/etc/berth/builder.json"

// files are the contents of files by their absolute paths.
type files map[string][]byte

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

// archive is a tar of the files, mode 0600, owned by uid, with their folders.
func (f files) archive(uid int) (io.Reader, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	made := map[string]bool{"/": true}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		var dirs []string
		for d := path.Dir(name); !made[d]; d = path.Dir(d) {
			made[d] = true
			dirs = append(dirs, d)
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			h := &tar.Header{Name: strings.TrimPrefix(d, "/") + "/", Typeflag: tar.TypeDir, Mode: 0o755}
			if d == path.Dir(bus.ConfigFile) {
				h.Uid, h.Mode = uid, 0o700
			}
			if err := tw.WriteHeader(h); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Typeflag: tar.TypeReg, Mode: 0o600, Uid: uid, Size: int64(len(f[name]))}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f[name]); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return &b, nil
}

// put copies the files into a container that has not been started yet.
func (w *Workspace) put(ctx context.Context, id string, f files, uid int) error {
	r, err := f.archive(uid)
	if err != nil {
		return fmt.Errorf("pack the configuration: %w", err)
	}
	if err := w.Engine.API.CopyToContainer(ctx, id, "/", r, container.CopyToContainerOptions{CopyUIDGID: true}); err != nil {
		return fmt.Errorf("copy the configuration into the container: %w", err)
	}
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

// uidOf is the user that an image runs as, where it says so by number.
func uidOf(user string) int {
	u, _, _ := strings.Cut(user, ":")
	n, err := strconv.Atoi(u)
	if err != nil {
		return 0
	}
	return n
}
