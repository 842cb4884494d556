package handler

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/beside"
	"berth.dev/services/runner/internal/owner"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-connections/nat"
)

// This file is the handler of a connection of the machine itself: an ordinary
// container, whose network is the user's business. What is added: the machine's
// ports at which the traffic arrives are published to the container's, and its
// names are resolved by the connection.

// machineRefusals is what such a handler cannot have.
func machineRefusals() []refusal {
	return []refusal{
		{"--network none", mode(container.NetworkMode.IsNone), "the traffic could not come to it"},
		{"--network container:", mode(container.NetworkMode.IsContainer), "the traffic comes to ports of this machine, and only the other container could publish its own"},
		{"--restart", func(a args) bool { return !a.host.RestartPolicy.IsNone() && a.host.RestartPolicy.Name != "" }, "the container is removed when it ends (--rm), with its engagement"},
	}
}

func newMachinePlan(h command.Handler, auto string) (*Plan, error) {
	a, err := readArgs(h)
	if err != nil {
		return nil, err
	}
	if err := checkFlags(a, machineRefusals()); err != nil {
		return nil, err
	}
	p, err := planOf(a, h, auto)
	if err == nil {
		p.Networking = a.net
	}
	return p, err
}

// onMachine completes the plan; what the user gave wins. Each port comes to the
// container's port of the same number, unless he has published it to another.
func (p *Plan) onMachine(resolver string, ports []event.Port) {
	p.Host.AutoRemove = true
	p.Host.RestartPolicy = container.RestartPolicy{}
	if p.Host.NetworkMode.IsHost() {
		return // its ports are the machine's, and so is its resolver
	}
	if resolver != "" && len(p.Host.DNS) == 0 {
		p.Host.DNS = []string{resolver}
	}
	if len(p.Host.DNSSearch) == 0 {
		p.Host.DNSSearch = []string{command.ShortNames}
	}
	for _, e := range p.unpublished(ports) {
		port := nat.Port(number(e) + "/" + strings.ToLower(e.Protocol))
		if p.Host.PortBindings == nil {
			p.Host.PortBindings = nat.PortMap{}
		}
		if p.Config.ExposedPorts == nil {
			p.Config.ExposedPorts = nat.PortSet{}
		}
		p.Host.PortBindings[port] = append(p.Host.PortBindings[port], nat.PortBinding{HostIP: "127.0.0.1", HostPort: number(e)})
		p.Config.ExposedPorts[port] = struct{}{}
	}
}

// number is the port of this machine at which the traffic of e arrives.
func number(e event.Port) string { return strconv.Itoa(int(listens(e))) }

// unpublished are those of ports that the user has not published himself.
func (p *Plan) unpublished(ports []event.Port) (rest []event.Port) {
	for _, e := range ports {
		published := false
		for port, bindings := range p.Publish {
			for _, b := range bindings {
				published = published || strings.EqualFold(port.Proto(), e.Protocol) && b.HostPort == number(e)
			}
		}
		if !published {
			rest = append(rest, e)
		}
	}
	return rest
}

// portsOfMachineFree refuses what would fail only when the container is started,
// after the cluster has been touched. Runner is a process of the engine's machine.
func (p *Plan) portsOfMachineFree(ctx context.Context, ports []event.Port) error {
	if p.Host.NetworkMode.IsHost() {
		return nil
	}
	want := nat.PortMap{}
	for port, b := range p.Publish {
		want[port] = b
	}
	for _, e := range p.unpublished(ports) {
		port := nat.Port(number(e) + "/" + strings.ToLower(e.Protocol))
		want[port] = append(want[port], nat.PortBinding{HostIP: "127.0.0.1", HostPort: number(e)})
	}
	for port, bindings := range want {
		for _, b := range bindings {
			if b.HostPort == "" || strings.Contains(b.HostPort, "-") { // the engine chooses
				continue
			}
			if err := tryListen(ctx, port.Proto(), net.JoinHostPort(b.HostIP, b.HostPort)); errors.Is(err, syscall.EADDRINUSE) {
				return fault.New(fault.AlreadyExists, "ss -tulpn 'sport = :"+b.HostPort+"'", "the port %s of this machine is taken", b.HostPort)
			}
		}
	}
	return nil
}

// tryListen listens for a moment. What else may go wrong is for the engine to say.
func tryListen(ctx context.Context, proto, address string) error {
	var lc net.ListenConfig
	if proto == "udp" {
		c, err := lc.ListenPacket(ctx, "udp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	l, err := lc.Listen(ctx, "tcp", address)
	if err == nil {
		err = l.Close()
	}
	return err
}

// NothingBeside is Options.Beside of handlers with networks of their own.
type NothingBeside struct{}

// Open implements Beside.
func (NothingBeside) Open(context.Context, owner.Owner, beside.Want) (beside.Has, error) {
	return beside.Has{}, nil
}

// Close implements Beside.
func (NothingBeside) Close(context.Context, owner.Owner) {}

// Clash implements Beside.
func (NothingBeside) Clash(owner.Owner, nat.PortMap) error { return nil }
