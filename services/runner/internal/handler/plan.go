package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"unicode/utf8"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/go-connections/nat"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Plan is a container to create in the daemon container's network: the user's
// own arguments, checked, with Berth's laid over them.
type Plan struct {
	Name     string
	Config   *container.Config
	Host     *container.HostConfig
	Platform *ocispec.Platform
	// Publish, PublishAll and Expose are what the user asked for with these flags.
	// The engine refuses them beside a shared network: package ports does it.
	Publish    nat.PortMap
	PublishAll bool
	Expose     nat.PortSet
	// Networks are those that the user named, with what was asked for there. The
	// engine refuses these too: package network does it.
	Networks map[string]*network.EndpointSettings
	// Networking is what the engine is told of networks; nil where one is shared.
	Networking *network.NetworkingConfig
}

// NewPlan reads and checks a container as Docker's command line parsed it.
// auto is its name if the user gave none. The plan has no network yet, see Join.
func NewPlan(h command.Handler, auto string) (*Plan, error) {
	a, err := readArgs(h)
	if err != nil {
		return nil, err
	}
	if err := checkFlags(a, refusals()); err != nil {
		return nil, err
	}
	return planOf(a, h, auto)
}

// readArgs reads a container as Docker's command line parsed it.
func readArgs(h command.Handler) (args, error) {
	a := args{&container.Config{}, &container.HostConfig{}, &network.NetworkingConfig{}}
	for _, part := range []struct {
		name string
		raw  json.RawMessage
		into any
	}{{"config", h.Config, a.cfg}, {"hostConfig", h.HostConfig, a.host}, {"networking", h.Networking, a.net}} {
		if len(part.raw) == 0 {
			continue
		}
		if err := json.Unmarshal(part.raw, part.into); err != nil {
			return a, fault.New(fault.InvalidArgument, "", "the container's %s is not Docker's JSON: %v", part.name, err)
		}
	}
	return a, nil
}

func planOf(a args, h command.Handler, auto string) (*Plan, error) {
	p := &Plan{Name: h.Name, Config: a.cfg, Host: a.host, Publish: a.host.PortBindings, PublishAll: a.host.PublishAllPorts, Expose: a.cfg.ExposedPorts, Networks: a.named()}
	if p.Name == "" && auto != "" {
		p.Name = engine.Name(auto)
	}
	if p.Name != "" && !engine.ValidName(p.Name) {
		return nil, fault.New(fault.InvalidArgument, "", "%q cannot be the name of a container: two or more of a-z, A-Z, 0-9, '_', '.' and '-', the first a letter or digit", p.Name)
	}
	if h.Platform != "" {
		os, rest, _ := strings.Cut(h.Platform, "/")
		arch, variant, _ := strings.Cut(rest, "/")
		p.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
	}
	return p, nil
}

// Join puts the plan's container into the network of a daemon container, by
// that one's ID.
func (p *Plan) Join(daemon string) {
	p.Host.AutoRemove = true // whatever dies, a dead container does not stay
	p.Host.NetworkMode = container.NetworkMode("container:" + daemon)
	p.Host.RestartPolicy = container.RestartPolicy{}
	// What the command line has filled in for "none"; the engine would take an
	// exposed port of an empty map for one that was given.
	p.Config.ExposedPorts, p.Host.PortBindings, p.Host.PublishAllPorts, p.Host.Links = nil, nil, false, nil
	//lint:ignore SA1019 deprecated, but what Docker's command line sets for engines before API 1.44
	p.Config.MacAddress = "" // of a network that is joined
}

// Beside is what the container is to have beside the shared network: the ports
// to publish, with those that the image exposes where all are to be, and the
// networks to join.
func (p *Plan) Beside(ctx context.Context, e *engine.Engine) (beside.Want, error) {
	w := beside.Want{Ports: maps.Clone(p.Publish), Networks: p.Networks}
	for name, ep := range p.Networks {
		if ep != nil && ep.MacAddress != "" && versions.LessThan(e.API.ClientVersion(), "1.44") {
			return w, fault.New(fault.FailedPrecondition, "docker version", "--mac-address in the network %s takes Docker Engine 25 or newer", name)
		}
	}
	if !p.PublishAll {
		return w, nil
	}
	if w.Ports == nil {
		w.Ports = nat.PortMap{}
	}
	exposed, err := e.Exposed(ctx, p.Config.Image)
	if err != nil {
		return w, err
	}
	for _, set := range []nat.PortSet{exposed, p.Expose} {
		for port := range set {
			if len(w.Ports[port]) == 0 {
				w.Ports[port] = []nat.PortBinding{{}} // any port of the host
			}
		}
	}
	return w, nil
}

// mergeEnv is the environment of a handler: the remote container's, then the
// user's own, which wins. An entry of the user's without "=" is a variable that
// `docker run -e KEY` did not find set: it unsets, in Docker as here.
//
// A value that is not UTF-8 cannot pass the engine's JSON, which would replace
// bytes silently: that is refused, naming the variable, never its value.
func mergeEnv(remote [][]byte, own []string) ([]string, error) {
	mine := map[string]bool{}
	for _, e := range own {
		k, _, _ := strings.Cut(e, "=")
		mine[k] = true
	}
	env := make([]string, 0, len(remote)+len(own))
	for _, e := range remote {
		k, _, ok := bytes.Cut(e, []byte("="))
		switch {
		case !ok || len(k) == 0:
			return nil, fault.New(fault.InvalidArgument, "", "an entry of the remote environment is not of the form KEY=value")
		case mine[string(k)]:
			continue
		case !utf8.Valid(e):
			return nil, fault.New(fault.FailedPrecondition, "", "the remote variable %s holds bytes that are not UTF-8, which the Docker Engine's API cannot carry: give it a value of your own with -e %s=…", string(k), string(k))
		}
		env = append(env, string(e))
	}
	return append(env, own...), nil
}

// portLabel is ports as a label's value, and readPorts reads it.
func portLabel(ports []event.Port) string {
	var s []string
	for _, p := range ports {
		s = append(s, strconv.Itoa(int(listens(p)))+"/"+p.Protocol)
	}
	return strings.Join(s, ",")
}

func readPorts(label string) []event.Port {
	var ports []event.Port
	for s := range strings.SplitSeq(label, ",") {
		num, proto, _ := strings.Cut(s, "/")
		if n, err := strconv.ParseUint(num, 10, 16); err == nil {
			ports = append(ports, event.Port{Container: uint16(n), Handler: uint16(n), Protocol: proto})
		}
	}
	return ports
}

// listens is the port on which a handler listens for p.
func listens(p event.Port) uint16 {
	if p.Handler != 0 {
		return p.Handler
	}
	return p.Container
}

func samePort(a, b []event.Port) (event.Port, bool) {
	for _, x := range a {
		for _, y := range b {
			if listens(x) == listens(y) && x.Protocol == y.Protocol {
				return x, true
			}
		}
	}
	return event.Port{}, false
}

// natPorts and EventPorts are ports in the engine's and in the bus's words.
func natPorts(ports []event.Port) nat.PortMap {
	m := nat.PortMap{}
	for _, p := range ports {
		m[nat.Port(strconv.Itoa(int(listens(p)))+"/"+strings.ToLower(p.Protocol))] = nil
	}
	return m
}

func EventPorts(m nat.PortMap) []event.Port {
	var ports []event.Port
	for p := range m {
		ports = append(ports, event.Port{Container: uint16(p.Int()), Protocol: strings.ToUpper(p.Proto())})
	}
	return ports
}
