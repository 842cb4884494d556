package daemon

import (
	"bytes"
	"context"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"golang.org/x/sync/errgroup"
)

// ContainerName is the name of a connection's daemon container.
func ContainerName(connection string) string { return "berth-" + engine.Name(connection) }

// spec is a daemon container to create.
type spec struct {
	req      command.StartDaemon
	name     string
	networks []string // the first is the workspace's
	exposed  nat.PortSet
	bindings nat.PortMap
}

// newSpec checks what can be checked without creating anything.
func (s *Set) newSpec(ctx context.Context, req command.StartDaemon) (*spec, error) {
	if err := validID(req.Connection); err != nil {
		return nil, err
	}
	if req.Name == "" {
		return nil, fault.New(fault.InvalidArgument, "", "the connection has no name")
	}
	if !bytes.HasPrefix(bytes.TrimSpace(req.Bus), []byte("{")) {
		return nil, fault.New(fault.InvalidArgument, "", "the daemon container has no identity for the bus")
	}
	sp := &spec{req: req, name: ContainerName(req.Name)}
	var err error
	if sp.exposed, sp.bindings, err = nat.ParsePortSpecs(req.Expose); err != nil {
		return nil, fault.New(fault.InvalidArgument, "", "--expose: %v", err)
	}
	if sp.networks, err = s.networks(ctx, append([]string{s.opt.Network}, req.Networks...)); err != nil {
		return nil, err
	}
	return sp, nil
}

// networks are the names of the networks, each once, in their order.
func (s *Set) networks(ctx context.Context, named []string) ([]string, error) {
	found := make([]network.Inspect, len(named))
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range named {
		g.Go(func() (err error) {
			found[i], err = s.eng.API.NetworkInspect(ctx, n, network.InspectOptions{})
			if cerrdefs.IsNotFound(err) {
				return fault.New(fault.NotFound, "docker network ls", "the Docker network %s does not exist", n)
			}
			return engine.Fault(err, "inspect network %s", n)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var names []string
	seen := map[string]bool{}
	for _, in := range found {
		if !seen[in.ID] {
			seen[in.ID] = true
			names = append(names, in.Name)
		}
	}
	return names, nil
}

// create makes the container, on the workspace's network, but does not start it. It
// wants its identity for the bus on its standard input. ipv6 asks the engine to switch IPv6 on in its
// network namespace; a kernel without it makes the start fail.
func (s *Set) create(ctx context.Context, sp *spec, ipv6 bool) (string, error) {
	cfg := &container.Config{
		Image:        s.eng.Image,
		Entrypoint:   []string{"vif"},
		Cmd:          []string{"--connection", sp.req.Connection, bus.FilesArg},
		OpenStdin:    true,
		StdinOnce:    true,
		Hostname:     sp.req.Hostname,
		ExposedPorts: sp.exposed,
		Labels:       s.eng.Labels(engine.Daemon, sp.req.Connection, "", nil),
	}
	host := &container.HostConfig{
		AutoRemove:   true,
		NetworkMode:  container.NetworkMode(sp.networks[0]),
		PortBindings: sp.bindings,
		// NET_ADMIN in its own network namespace and the TUN device: all that a
		// VIF takes, and nothing more.
		CapDrop:     []string{"ALL"},
		CapAdd:      []string{"NET_ADMIN"},
		SecurityOpt: []string{"no-new-privileges:true"},
		Resources: container.Resources{Devices: []container.DeviceMapping{
			{PathOnHost: "/dev/net/tun", PathInContainer: "/dev/net/tun", CgroupPermissions: "rwm"},
		}},
	}
	if ipv6 {
		host.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "0"}
	}
	// The workspace's network holds the default route: on an engine that knows
	// priorities because it is said so, on an older one because of its name, as
	// those take the first in the alphabet. Either way every other network is
	// on-link, which is all that the API server's takes.
	nets := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
		sp.networks[0]: {GwPriority: 1},
	}}
	c, err := s.eng.API.ContainerCreate(ctx, cfg, host, nets, nil, sp.name)
	if err != nil {
		return "", engine.Fault(err, "create container %s", sp.name)
	}
	return c.ID, nil
}
