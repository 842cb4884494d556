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
	const ownNetwork = "the handler lives in the network of the connection's daemon container"
	return []refusal{
		{"--publish", func(a args) bool { return len(a.host.PortBindings) > 0 }, "ports cannot be published yet: " + ownNetwork},
		{"--publish-all", func(a args) bool { return a.host.PublishAllPorts }, "ports cannot be published yet: " + ownNetwork},
		{"--expose", func(a args) bool { return len(a.cfg.ExposedPorts) > 0 && len(a.host.PortBindings) == 0 }, "ports cannot be exposed yet: " + ownNetwork},
		{"--network", otherNetwork, ownNetwork + ", which cannot join other networks yet"},
		{"--network-alias", endpoint(func(e *network.EndpointSettings) bool { return len(e.Aliases) > 0 }), ownNetwork + " and has no name of its own there"},
		{"--ip", endpoint(func(e *network.EndpointSettings) bool { return e.IPAMConfig != nil && e.IPAMConfig.IPv4Address != "" }), ownNetwork + " and shares its address"},
		{"--ip6", endpoint(func(e *network.EndpointSettings) bool { return e.IPAMConfig != nil && e.IPAMConfig.IPv6Address != "" }), ownNetwork + " and shares its address"},
		{"--link-local-ip", endpoint(func(e *network.EndpointSettings) bool {
			return e.IPAMConfig != nil && len(e.IPAMConfig.LinkLocalIPs) > 0
		}), ownNetwork + " and shares its address"},
		{"--mac-address", func(a args) bool {
			return mac(a) || endpoint(func(e *network.EndpointSettings) bool { return e.MacAddress != "" })(a)
		}, ownNetwork + " and shares its interface"},
		{"--link", func(a args) bool {
			return len(a.host.Links) > 0 || endpoint(func(e *network.EndpointSettings) bool { return len(e.Links) > 0 })(a)
		}, ownNetwork + ": reach other containers through a network given to ctl connect"},
		{"--hostname", func(a args) bool { return a.cfg.Hostname != "" }, "the host name is the daemon container's: give it to ctl connect --hostname"},
		{"--domainname", func(a args) bool { return a.cfg.Domainname != "" }, "the host name is the daemon container's: give it to ctl connect --hostname"},
		{"--dns", func(a args) bool { return len(a.host.DNS) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--dns-search", func(a args) bool { return len(a.host.DNSSearch) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--dns-option", func(a args) bool { return len(a.host.DNSOptions) > 0 }, "names are resolved by the connection, which is how cluster names work"},
		{"--add-host", func(a args) bool { return len(a.host.ExtraHosts) > 0 }, "the hosts file is the daemon container's"},
		{"--restart", func(a args) bool { return !a.host.RestartPolicy.IsNone() && a.host.RestartPolicy.Name != "" }, "the container is removed when it ends (--rm), which is what ends its engagement"},
	}
}

// checkFlags refuses what cannot be honoured, all of it in one message.
func checkFlags(a args) error {
	var bad []string
	for _, r := range refusals() {
		if r.set(a) {
			bad = append(bad, r.flag+" cannot be used here: "+r.why)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fault.New(fault.InvalidArgument, "", "%s", strings.Join(bad, "; "))
}

// otherNetwork: a network was asked for by name. "default" is what the command
// line writes for none.
func otherNetwork(a args) bool {
	if m := a.host.NetworkMode; m != "" && !m.IsDefault() {
		return true
	}
	for name := range a.net.EndpointsConfig {
		if name != network.NetworkDefault {
			return true
		}
	}
	return false
}

func endpoint(is func(*network.EndpointSettings) bool) func(args) bool {
	return func(a args) bool {
		for _, e := range a.net.EndpointsConfig {
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
