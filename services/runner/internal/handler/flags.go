package handler

import (
	"strings"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// args is a container as Docker's own command line parsed it.
type args struct {
	cfg  *container.Config
	host *container.HostConfig
	net  *network.NetworkingConfig
}

// refusal is a flag of `docker run` that a container in the daemon container's
// network cannot have.
type refusal struct {
	flag string
	set  func(args) bool
	why  string
}

// refusals is the one place that says what is refused and why. Docker itself
// refuses most of these beside `--network container:…`, but only when the
// container is created, in its own words, when the workload has already been
// taken out of its pods. A few it would drop silently.
//
// Docker's command line fills what was not given with empty slices and maps,
// and with one endpoint named "default"; neither counts as given. Ports that
// an image declares with EXPOSE are not in here at all: the engine adds them later.
func refusals() []refusal {
	const ownNetwork = "the container lives in the network of the connection's daemon container"
	return []refusal{
		{"--network host", mode(container.NetworkMode.IsHost), ownNetwork + ", which is how it reaches the cluster and not this machine: its ports can be published (-p)"},
		{"--network none", mode(container.NetworkMode.IsNone), ownNetwork + ", which is how it reaches the cluster"},
		{"--network container:", mode(container.NetworkMode.IsContainer), ownNetwork + " and cannot share another one's too: join a network that the other is on (--network NAME)"},
		{"--network-alias", defaultEndpoint(func(e *network.EndpointSettings) bool { return len(e.Aliases) > 0 }), "a name is one in a network: say in which (--network NAME)"},
		{"--ip", defaultEndpoint(func(e *network.EndpointSettings) bool { return e.IPAMConfig != nil && e.IPAMConfig.IPv4Address != "" }), "an address is one in a network: say in which (--network NAME)"},
		{"--ip6", defaultEndpoint(func(e *network.EndpointSettings) bool { return e.IPAMConfig != nil && e.IPAMConfig.IPv6Address != "" }), "an address is one in a network: say in which (--network NAME)"},
		{"--link-local-ip", defaultEndpoint(func(e *network.EndpointSettings) bool {
			return e.IPAMConfig != nil && len(e.IPAMConfig.LinkLocalIPs) > 0
		}), "an address is one in a network: say in which (--network NAME)"},
		{"--mac-address", func(a args) bool {
			return mac(a) && len(a.named()) == 0 || defaultEndpoint(func(e *network.EndpointSettings) bool { return e.MacAddress != "" })(a)
		}, "it is the address of an interface, which the container shares: say in which network (--network NAME)"},
		{"--network gw-priority=", namedEndpoint(func(e *network.EndpointSettings) bool { return e.GwPriority != 0 }), "the default route is the connection's, which reaches the cluster by it"},
		{"--link", func(a args) bool { return len(a.host.Links) > 0 && len(a.named()) == 0 }, "a link is one in a network: say in which (--network NAME), where names work without one"},
		{"--hostname", func(a args) bool { return a.cfg.Hostname != "" }, "the host name is the daemon container's: give it to ctl connect --hostname"},
		{"--domainname", func(a args) bool { return a.cfg.Domainname != "" }, "the host name is the daemon container's: give it to ctl connect --hostname"},
		{"--dns", func(a args) bool { return len(a.host.DNS) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--dns-search", func(a args) bool { return len(a.host.DNSSearch) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--dns-option", func(a args) bool { return len(a.host.DNSOptions) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--add-host", func(a args) bool { return len(a.host.ExtraHosts) > 0 }, "the hosts file is the daemon container's: mount one of your own (-v FILE:/etc/hosts)"},
		{"--restart", func(a args) bool { return !a.host.RestartPolicy.IsNone() && a.host.RestartPolicy.Name != "" }, "the container is removed when it ends (--rm), with what it has of the connection"},
	}
}

// checkFlags refuses what cannot be honoured, all of it in one message.
func checkFlags(a args, refused []refusal) error {
	var bad []string
	for _, r := range refused {
		if r.set(a) {
			bad = append(bad, r.flag+" cannot be used here: "+r.why)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fault.New(fault.InvalidArgument, "", "%s", strings.Join(bad, "; "))
}

// mode: the container's network mode is such a one.
func mode(is func(container.NetworkMode) bool) func(args) bool {
	return func(a args) bool {
		if is(a.host.NetworkMode) {
			return true
		}
		for name := range a.net.EndpointsConfig {
			if is(container.NetworkMode(name)) {
				return true
			}
		}
		return false
	}
}

// named are the networks that were asked for by name, with what was asked for
// there. "default" is what the command line writes for none.
func (a args) named() map[string]*network.EndpointSettings {
	all := map[string]*network.EndpointSettings{}
	if m := a.host.NetworkMode; m != "" && !m.IsDefault() && !m.IsHost() && !m.IsNone() && !m.IsContainer() {
		all[m.NetworkName()] = nil
	}
	for name, e := range a.net.EndpointsConfig {
		if name != network.NetworkDefault {
			all[name] = e
		}
	}
	return all
}

func defaultEndpoint(is func(*network.EndpointSettings) bool) func(args) bool {
	return func(a args) bool {
		e := a.net.EndpointsConfig[network.NetworkDefault]
		return e != nil && is(e)
	}
}

func namedEndpoint(is func(*network.EndpointSettings) bool) func(args) bool {
	return func(a args) bool {
		for _, e := range a.named() {
			if e != nil && is(e) {
				return true
			}
		}
		return false
	}
}

func mac(a args) bool {
	//lint:ignore SA1019 deprecated, but what Docker's command line sets for engines before API 1.44
	return a.cfg.MacAddress != ""
}
