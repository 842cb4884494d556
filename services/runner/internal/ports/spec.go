package ports

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/go-connections/nat"
)

// Want are the ports to publish, as the Docker Engine's own API has them.
type Want = nat.PortMap

// check refuses what a forwarder cannot carry.
func check(want Want) error {
	for p := range want {
		switch p.Proto() {
		case "tcp", "udp":
		default:
			return fault.New(fault.InvalidArgument, "", "--publish %s cannot be used here: the port is forwarded into the connection's network, which can be done with TCP and UDP", p)
		}
		if n := p.Int(); n < 1 || n > 65535 {
			return fault.New(fault.InvalidArgument, "", "%q is no port to publish", p)
		}
	}
	return nil
}

// containerPorts are want's ports in order, as forwarder's flag has them.
func containerPorts(want Want) []nat.Port {
	var l []nat.Port
	for p := range want {
		l = append(l, p)
	}
	slices.SortFunc(l, func(a, b nat.Port) int {
		return cmp.Or(cmp.Compare(a.Int(), b.Int()), cmp.Compare(a.Proto(), b.Proto()))
	})
	return l
}

func flagValue(want Want) string {
	var s []string
	for _, p := range containerPorts(want) {
		s = append(s, p.Port()+"/"+p.Proto())
	}
	return strings.Join(s, ",")
}

// published is what the engine made of it, in order.
func published(m nat.PortMap) []event.Published {
	var all []event.Published
	for _, p := range containerPorts(m) {
		for _, b := range m[p] {
			host, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				continue
			}
			all = append(all, event.Published{HostIP: b.HostIP, HostPort: uint16(host), Container: uint16(p.Int()), Protocol: p.Proto()})
		}
	}
	six := func(p event.Published) int { return strings.Count(p.HostIP, ":") }
	slices.SortStableFunc(all, func(a, b event.Published) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(six(a), six(b)), cmp.Compare(a.HostPort, b.HostPort))
	})
	return slices.Compact(all)
}

// wanted is what publishes the same again: with the ports that the engine chose.
// The wildcards of both families are one wish.
func wanted(all []event.Published) Want {
	want := Want{}
	for _, p := range all {
		other := p
		switch p.HostIP {
		case "0.0.0.0":
			other.HostIP = "::"
		case "::":
			other.HostIP = "0.0.0.0"
		}
		ip := p.HostIP
		if other != p && slices.Contains(all, other) {
			ip = ""
		}
		port := nat.Port(fmt.Sprintf("%d/%s", p.Container, p.Protocol))
		b := nat.PortBinding{HostIP: ip, HostPort: strconv.Itoa(int(p.HostPort))}
		if !slices.Contains(want[port], b) {
			want[port] = append(want[port], b)
		}
	}
	return want
}

// Label is all as a label's value, and Read reads it.
func Label(all []event.Published) string {
	var s []string
	for _, p := range all {
		s = append(s, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort))), p.Container, p.Protocol))
	}
	return strings.Join(s, ",")
}

// Read reads what Label wrote; what is not of that form is left out.
func Read(label string) []event.Published {
	var all []event.Published
	for s := range strings.SplitSeq(label, ",") {
		from, to, _ := strings.Cut(s, "->")
		host, err := netip.ParseAddrPort(from)
		port := nat.Port(to)
		if err != nil || port.Int() == 0 {
			continue
		}
		all = append(all, event.Published{HostIP: host.Addr().String(), HostPort: host.Port(), Container: uint16(port.Int()), Protocol: port.Proto()})
	}
	return all
}
