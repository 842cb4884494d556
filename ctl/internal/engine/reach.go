package engine

import (
	"context"
	"fmt"
	"strings"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
)

// Reach is how far Berth goes with an engine.
type Reach struct {
	Kind   string   // Docker Engine, Docker Desktop, Docker Engine (rootless), Podman
	Limits []string // what does not work, or not as elsewhere
}

// String is it in a line.
func (r Reach) String() string {
	if len(r.Limits) == 0 {
		return r.Kind + ": everything"
	}
	return r.Kind + ": " + strings.Join(r.Limits, "; ")
}

// Reach asks the engine what it is. What Berth cannot do without is a fault.
func (e *Engine) Reach(ctx context.Context) (Reach, error) {
	v, err := e.API.ServerVersion(ctx)
	if err != nil {
		return Reach{}, e.explain(err)
	}
	info, err := e.API.Info(ctx)
	if err != nil {
		return Reach{}, e.explain(err)
	}
	return reach(v, info, e.Host)
}

// minAPI is that of Docker Engine 20.10.
const minAPI = "1.41"

// reach is the table. Each limit names what a user would otherwise run into.
func reach(v types.Version, info system.Info, host string) (Reach, error) {
	r := Reach{Kind: "Docker Engine"}
	rootless := false
	for _, o := range info.SecurityOptions {
		rootless = rootless || strings.HasPrefix(o, "name=rootless")
	}
	podman := false
	for _, c := range v.Components {
		podman = podman || strings.HasPrefix(c.Name, "Podman")
	}
	limit := func(is bool, format string, args ...any) {
		if is {
			r.Limits = append(r.Limits, fmt.Sprintf(format, args...))
		}
	}
	switch {
	case podman:
		r.Kind = "Podman"
	case strings.Contains(info.OperatingSystem, "Docker Desktop"):
		r.Kind = "Docker Desktop"
	case rootless:
		r.Kind = "Docker Engine (rootless)"
	}
	switch {
	case info.OSType != "" && info.OSType != "linux":
		return r, fault.At("Docker", fault.New(fault.FailedPrecondition, "docker context use NAME", "the engine runs %s containers, and Berth's are Linux containers", info.OSType))
	case versions.LessThan(v.APIVersion, minAPI):
		return r, fault.At("Docker", fault.New(fault.FailedPrecondition, "docker version", "the engine speaks API %s, and Berth needs %s: Docker Engine 20.10 or newer", v.APIVersion, minAPI))
	case !podman && !rootless && !info.IPv4Forwarding && info.OSType != "":
		return r, fault.At("Docker", fault.New(fault.FailedPrecondition, "sudo sysctl -w net.ipv4.ip_forward=1", "the engine's machine does not forward IPv4: containers reach nothing outside of it"))
	}
	limit(podman, "not far enough: Podman 4.3 was tried, whose API does not attach to a container before it is started, so that ctl connect fails at the workspace")
	limit(rootless && !podman, "Berth is not tested with rootless engines; ports below 1024 are published only if net.ipv4.ip_unprivileged_port_start of the machine allows it")
	limit(strings.HasPrefix(host, "tcp://") || strings.HasPrefix(host, "ssh://"), "it is another machine (%s): published ports are there, and so are the directories of -v", host)
	limit(!podman && versions.LessThan(v.APIVersion, "1.44"), "no --mac-address in a joined network (Docker Engine 25)")
	limit(!podman && versions.LessThan(v.APIVersion, "1.48"), "a network that is joined for a container may take over the default route for as long (Docker Engine 28)")
	return r, nil
}
