// Package volplugin makes sure that the engine has Berth's volume plugin,
// telemount: the Docker volume driver of remote volumes.
//
// The first choice is a managed plugin, made of the binary that runner's own
// image holds: the engine starts it again whatever happens. Where the engine
// takes none (rootless engines, Podman), telemount runs in a container of the
// workspace and the engine finds it by its socket. Which of the two it is, or
// why there is none, is what [Plugin.Ensure] says.
//
// The plugin's key is made here and goes where telemount reads it: into the
// managed plugin's file system, or by the engine's copy into the container. Its
// pin is public, and with it vif knows whom to let in.
//
// The plugin belongs to the engine, not to the workspace. A managed one is
// installed when a runner starts or a handler needs it, and removed when the last
// workspace ends; it can carry no labels, and is known by its name and its
// environment. A socket plugin stays: an engine remembers every socket that it
// once spoke to until it is restarted, and without one that answers each `docker
// volume ls` takes 15 s (measured, Engine 20.10). So it is no workspace's.
//
// Only one installation runs at a time, and whoever asks meanwhile waits for it; it
// goes on when they no longer do.
package volplugin

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/command"
	"berth.dev/deploy/plugin"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/tunnel"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
)

// Driver is the name of the volume driver: of the managed plugin with its tag,
// since an engine that has once known a socket of the bare name keeps to that.
const (
	Driver       = plugin.Name
	socketDriver = "telemount"
)

// Ways for telemount to run.
const (
	Auto    = "auto" // managed, else socket
	Managed = "managed"
	Socket  = "socket"
	None    = "none"
)

const (
	name     = "berth-telemount" // of the socket plugin, and the volume with its mount points
	keyFile  = "/etc/berth/telemount.pem"
	labelPin = "berth.dev/pin"
)

// Options say what to install.
type Options struct {
	Binary  string // path of telemount, static
	Version string
	Way     string // Auto, Managed, Socket or None
	// OnMachine: runner is a process of a machine for good, not by hand or in a test,
	// and takes out what it installed.
	OnMachine bool
	// Calm is closed when an installation, which keeps engine and machine busy, is
	// in nobody's way any more; nil is at once.
	Calm <-chan struct{}
	// Go runs f in a goroutine that runner waits for; its context ends with runner.
	Go  func(f func(context.Context))
	Log *slog.Logger
}

// Plugin is the engine's volume plugin.
type Plugin struct {
	eng *engine.Engine
	opt Options

	mu      sync.Mutex
	running *look          // nil while nobody looks
	engine  *plugin.Engine // nil until it has answered
}

// look is one look at the engine, with what has to be installed.
type look struct {
	done  chan struct{}
	found command.VolumePlugin // once done is closed
}

// New installs nothing yet.
func New(e *engine.Engine, o Options) *Plugin {
	return &Plugin{eng: e, opt: o}
}

// ValidWay reports whether w is one of the ways.
func ValidWay(w string) bool { return w == Auto || w == Managed || w == Socket || w == None }

func (p *Plugin) managed() plugin.Engine {
	p.mu.Lock()
	known := p.engine
	p.mu.Unlock()
	if known != nil {
		return *known
	}
	e, sure := plugin.Of(p.eng.API.HTTPClient(), p.eng.API.DaemonHost())
	if sure {
		p.mu.Lock()
		p.engine = &e
		p.mu.Unlock()
	}
	return e
}

// Ensure makes sure of the plugin. That there is none is no error: Reason says why.
func (p *Plugin) Ensure(ctx context.Context, _ command.None) (command.VolumePlugin, error) {
	p.mu.Lock()
	l := p.running
	if l == nil {
		l = &look{done: make(chan struct{})}
		p.running = l
		p.opt.Go(func(life context.Context) {
			// Not cut short by runner's end: the engine would finish a plugin
			// that nobody waits for, when who ends the workspace has looked.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(life), within)
			defer cancel()
			l.found = p.look(ctx, life)
			p.mu.Lock()
			p.running = nil
			p.mu.Unlock()
			close(l.done)
		})
	}
	p.mu.Unlock()
	select {
	case <-l.done:
		return l.found, nil
	case <-ctx.Done():
		return command.VolumePlugin{Reason: "the volume plugin is still being installed", Pending: true}, nil
	}
}

// within bounds an installation: the engine waits 12 s for a plugin that does
// not start.
const within = 45 * time.Second

func (p *Plugin) look(ctx, life context.Context) command.VolumePlugin {
	began := time.Now()
	v, fresh := p.ensure(ctx, life)
	switch {
	case v.Kind == "" && p.opt.Way != None:
		p.opt.Log.Warn("there is no volume plugin", "reason", v.Reason)
	case fresh:
		p.opt.Log.Info("the volume plugin is installed", "kind", v.Kind, "version", v.Version, "pin", v.Pin, "millis", time.Since(began).Milliseconds(), "reason", v.Reason)
		// The program and its archive are by far the most that runner ever holds, and
		// by itself the runtime would keep their memory for minutes.
		debug.FreeOSMemory()
	}
	return v
}

// ensure looks and installs, not for a runner whose life ends before it is calm.
func (p *Plugin) ensure(ctx, life context.Context) (v command.VolumePlugin, fresh bool) {
	if p.opt.Way == None {
		return command.VolumePlugin{Reason: "remote volumes are switched off"}, false
	}
	var why []string
	if p.opt.Way != Socket {
		s, err := p.managed().State(ctx)
		if err == nil && s.Enabled && s.Version == p.opt.Version && s.Pin != "" {
			return command.VolumePlugin{Kind: Managed, Driver: Driver, Version: s.Version, Pin: s.Pin}, false
		}
		// A socket plugin that is there answers to the same name.
		if c, cerr := p.socketContainer(ctx); cerr == nil && c != nil {
			why = append(why, "telemount runs in the container "+name)
		} else if err := p.calm(life); err != nil {
			return command.VolumePlugin{Reason: err.Error()}, false
		} else if v, err := p.installManaged(ctx); err == nil {
			return v, true
		} else {
			why = append(why, err.Error())
		}
	}
	if p.opt.Way != Managed {
		v, fresh, err := p.socket(ctx)
		if err == nil {
			v.Reason = strings.Join(why, "; ")
			return v, fresh
		}
		why = append(why, "socket plugin: "+err.Error())
	}
	return command.VolumePlugin{Reason: strings.Join(why, "; ")}, false
}

// calm waits for Calm.
func (p *Plugin) calm(life context.Context) error {
	if p.opt.Calm == nil {
		return nil
	}
	select {
	case <-p.opt.Calm:
		return nil
	case <-life.Done():
		return errors.New("runner ends")
	}
}

func (p *Plugin) installManaged(ctx context.Context) (command.VolumePlugin, error) {
	binary, err := os.ReadFile(p.opt.Binary)
	if err != nil {
		return command.VolumePlugin{}, fmt.Errorf("read the volume plugin's program: %w", err)
	}
	id, err := tunnel.NewIdentity()
	if err != nil {
		return command.VolumePlugin{}, err
	}
	key, err := id.MarshalPEM()
	if err != nil {
		return command.VolumePlugin{}, err
	}
	s, err := p.managed().Install(ctx, plugin.Contents{Binary: binary, Key: key, Pin: string(id.Pin()), Version: p.opt.Version})
	v := command.VolumePlugin{Kind: Managed, Driver: Driver, Version: s.Version, Pin: s.Pin}
	if errors.Is(err, plugin.ErrInUse) && s.Enabled && s.Pin != "" {
		v.Reason = err.Error() // it serves new volumes as well: both ends check their protocol's version
		return v, nil
	}
	return v, err
}

// socketContainer is telemount's container, whichever workspace made it; nil if
// there is none.
func (p *Plugin) socketContainer(ctx context.Context) (*container.Summary, error) {
	list, err := p.eng.API.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(
		filters.Arg("label", engine.LabelComponent+"="+engine.Telemount))})
	if err != nil || len(list) == 0 {
		return nil, engine.Fault(err, "list containers")
	}
	return &list[0], nil
}

// socket makes sure of telemount in a container.
func (p *Plugin) socket(ctx context.Context) (v command.VolumePlugin, fresh bool, err error) {
	c, err := p.socketContainer(ctx)
	if err != nil {
		return v, false, err
	}
	if c != nil && c.State == container.StateRunning && c.Labels[engine.LabelVersion] == p.opt.Version {
		return command.VolumePlugin{Kind: Socket, Driver: socketDriver, Version: p.opt.Version, Pin: c.Labels[labelPin]}, false, nil
	}
	if c != nil {
		used, err := p.used(ctx)
		if err != nil {
			return v, false, err
		}
		if used && c.State == container.StateRunning {
			return command.VolumePlugin{Kind: Socket, Driver: socketDriver, Version: c.Labels[engine.LabelVersion], Pin: c.Labels[labelPin]}, false, nil
		}
		if err := p.removeContainer(ctx, c.ID); err != nil {
			return v, false, err
		}
	}
	v, err = p.start(ctx)
	return v, true, err
}

// used reports whether the engine has volumes of the driver.
func (p *Plugin) used(ctx context.Context) (bool, error) {
	l, err := p.eng.API.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("driver", socketDriver))})
	return len(l.Volumes) > 0, engine.Fault(err, "list volumes")
}

// start runs telemount in a container. Its mount points lie in a volume of the
// engine's own, which is on a file system that the engine shares with it, so
// that what is mounted there is seen by the engine.
func (p *Plugin) start(ctx context.Context) (v command.VolumePlugin, err error) {
	id, err := tunnel.NewIdentity()
	if err != nil {
		return v, err
	}
	key, err := id.MarshalPEM()
	if err != nil {
		return v, err
	}
	labels := map[string]string{engine.LabelComponent: engine.Telemount, engine.LabelVersion: p.opt.Version, labelPin: string(id.Pin())}
	vol, err := p.eng.API.VolumeCreate(ctx, volume.CreateOptions{Name: name, Driver: "local", Labels: labels})
	if err != nil {
		return v, engine.Fault(err, "create volume %s", name)
	}
	root := vol.Mountpoint
	host := &container.HostConfig{
		Binds:         []string{"/run/docker/plugins:/run/docker/plugins", root + ":" + root + ":rshared"},
		NetworkMode:   "host", // where every daemon container's address is reached
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways},
		// mount(2) and FUSE; no profile of AppArmor's allows mounting.
		CapDrop:     []string{"ALL"},
		CapAdd:      []string{"SYS_ADMIN"},
		SecurityOpt: []string{"apparmor=unconfined", "no-new-privileges:true"},
		Resources: container.Resources{Devices: []container.DeviceMapping{
			{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"},
		}},
	}
	cfg := &container.Config{
		Image: p.eng.Image, Entrypoint: []string{"telemount"}, Labels: labels,
		Cmd: []string{"--root", root, "--state", root + "/state.json", "--identity", keyFile},
	}
	c, err := p.eng.API.ContainerCreate(ctx, cfg, host, nil, nil, name)
	if err != nil {
		return v, engine.Fault(err, "create container %s", name)
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, p.removeContainer(undo, c.ID), p.removeVolume(undo))
		}
	}()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/berth/", Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Name: keyFile[1:], Mode: 0o600, Size: int64(len(key))})
	_, _ = w.Write(key)
	if err := w.Close(); err != nil { // tells of what failed before, too
		return v, fmt.Errorf("pack the plugin's key: %w", err)
	}
	if err := p.eng.API.CopyToContainer(ctx, c.ID, "/", &b, container.CopyToContainerOptions{}); err != nil {
		return v, engine.Fault(err, "copy the plugin's key into container %s", name)
	}
	if err := p.eng.API.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		return v, engine.Fault(err, "start container %s", name)
	}
	// The engine asks the socket when it is first named: there is no other probe.
	for deadline := time.Now().Add(10 * time.Second); ; {
		in, err := p.eng.API.ContainerInspect(ctx, c.ID)
		switch {
		case err != nil:
			return v, engine.Fault(err, "inspect container %s", name)
		case !in.State.Running || in.RestartCount > 0:
			return v, fmt.Errorf("the container %s ends at once: docker logs %s", name, name)
		}
		if p.answers(ctx) {
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return v, fmt.Errorf("the container %s runs, but the engine does not find its socket in /run/docker/plugins", name)
		}
		time.Sleep(100 * time.Millisecond) // between two probes
	}
	return command.VolumePlugin{Kind: Socket, Driver: socketDriver, Version: p.opt.Version, Pin: string(id.Pin())}, nil
}

// answers creates a volume that nobody mounts and removes it again.
func (p *Plugin) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	v, err := p.eng.API.VolumeCreate(ctx, volume.CreateOptions{Name: name + "-probe", Driver: socketDriver,
		DriverOpts: map[string]string{"path": "/", "server": "127.0.0.1:1", "token-file": "/dev/null"}})
	if err != nil {
		return false
	}
	return p.eng.API.VolumeRemove(ctx, v.Name, true) == nil
}

// removeContainer lets telemount end by itself, so that it unmounts and takes its
// socket away: the engine would ask a dead one again and again, for half a minute.
func (p *Plugin) removeContainer(ctx context.Context, id string) error {
	return errors.Join(p.eng.Stop(ctx, id, 5*time.Second), p.eng.Remove(ctx, id))
}

func (p *Plugin) removeVolume(ctx context.Context) error {
	err := p.eng.API.VolumeRemove(ctx, name, true)
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return engine.Fault(err, "remove volume %s", name)
}

// Remove takes the managed plugin out when connector is dead for good and nobody
// else will: unless volumes of it exist, or another workspace has a runner.
func (p *Plugin) Remove(ctx context.Context) error {
	others, err := p.eng.API.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", engine.LabelComponent+"="+engine.Runner))})
	if err != nil {
		return engine.Fault(err, "list containers")
	}
	for _, c := range others {
		if c.ID != p.eng.Self {
			return nil
		}
	}
	if p.opt.Way == None || p.eng.Self == "" && !p.opt.OnMachine {
		return nil // a host process, in a test or by hand, has not installed it for good
	}
	if err := p.managed().RemoveUnused(ctx); err != nil && !errors.Is(err, plugin.ErrInUse) {
		return err
	}
	return nil
}
