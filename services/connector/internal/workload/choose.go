package workload

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
)

// Container chooses the container to engage: the one named, or the only one.
func (w Workload) Container(name string) (corev1.Container, error) {
	names := strings.Join(w.ContainerNames(), ", ")
	if name == "" {
		if len(w.Containers) == 1 {
			return w.Containers[0], nil
		}
		return corev1.Container{}, fault.New(fault.InvalidArgument, "--container "+w.Containers[0].Name, "%s has %d containers, name the one to engage: %s", w.Title(), len(w.Containers), names)
	}
	for _, c := range w.Containers {
		if c.Name == name {
			return c, nil
		}
	}
	return corev1.Container{}, fault.New(fault.NotFound, "--container "+w.Containers[0].Name, "%s has no container %s; it has: %s", w.Title(), name, names)
}

// EngagementName is how people name the engagement: the workload, and the
// container where there are several.
func (w Workload) EngagementName(container string) string {
	if len(w.Containers) == 1 {
		return w.Name
	}
	return w.Name + "/" + container
}

// Ports are the ports to engage: those that the user names (--port), or all
// that the container declares. A form that the user may give is
//
//	P            the handler listens on P, the container's port is P
//	P:ID         the handler listens on P, ID is the container's port or its name
//	…/UDP        either, by UDP; without it a named port has its own protocol, others TCP
//
// None at all is fine for a replace (a worker without ports).
func Ports(c corev1.Container, given []string) ([]lease.Port, error) {
	var ports []lease.Port
	if len(given) == 0 {
		for _, p := range c.Ports {
			if p.Protocol == corev1.ProtocolSCTP {
				continue // Docker containers' networks have none
			}
			ports = append(ports, declared(p, uint16(p.ContainerPort)))
		}
		return ports, nil
	}
	for _, g := range given {
		p, err := parse(c, g)
		if err != nil {
			return nil, err
		}
		for _, q := range ports {
			if q.Container == p.Container && q.Protocol == p.Protocol {
				return nil, fault.New(fault.InvalidArgument, "", "--port %s: the container's port %d/%s is engaged twice", g, p.Container, p.Protocol)
			}
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func declared(p corev1.ContainerPort, handler uint16) lease.Port {
	return lease.Port{Container: uint16(p.ContainerPort), Handler: handler, Protocol: protocolOf(p), Name: p.Name}
}

func protocolOf(p corev1.ContainerPort) string {
	if p.Protocol == "" {
		return "TCP"
	}
	return string(p.Protocol)
}

func parse(c corev1.Container, given string) (lease.Port, error) {
	bad := func(format string, args ...any) (lease.Port, error) {
		return lease.Port{}, fault.New(fault.InvalidArgument, "--port 8080:http", "--port %s: %s; %s", given, fmt.Sprintf(format, args...), describe(c))
	}
	rest, protocol, explicit := strings.Cut(given, "/")
	protocol = strings.ToUpper(protocol)
	if explicit && protocol != "TCP" && protocol != "UDP" {
		return bad("%q is neither TCP nor UDP", protocol)
	}
	local, id, two := strings.Cut(rest, ":")
	handler, err := portNumber(local)
	if err != nil {
		return bad("the handler's port %q is not a number from 1 to 65535", local)
	}
	if !two {
		id = local
	}
	number, err := portNumber(id)
	isNumber := err == nil
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool {
		if explicit && protocolOf(p) != protocol {
			return false
		}
		if isNumber {
			return uint16(p.ContainerPort) == number && (explicit || protocolOf(p) == "TCP")
		}
		return p.Name == id
	})
	switch {
	case i >= 0:
		return declared(c.Ports[i], handler), nil
	case isNumber: // containers may listen on ports that they do not declare
		if protocol == "" {
			protocol = "TCP"
		}
		return lease.Port{Container: number, Handler: handler, Protocol: protocol}, nil
	}
	return bad("the container %s has no port named %q", c.Name, id)
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return uint16(n), nil
}

func describe(c corev1.Container) string {
	if len(c.Ports) == 0 {
		return "the container " + c.Name + " declares no ports"
	}
	var l []string
	for _, p := range c.Ports {
		s := fmt.Sprintf("%d/%s", p.ContainerPort, protocolOf(p))
		if p.Name != "" {
			s += " (" + p.Name + ")"
		}
		l = append(l, s)
	}
	return "the container " + c.Name + " declares " + strings.Join(l, ", ")
}

// ToPod reads ports of the pod that the handler is to reach (--to-pod): 6379,
// 53/UDP. They are at the handler's own loopback address, where ports that it
// listens on cannot be.
func ToPod(given []string, ports []lease.Port) ([]lease.Port, error) {
	var out []lease.Port
	for _, g := range given {
		number, protocol, explicit := strings.Cut(g, "/")
		protocol = strings.ToUpper(protocol)
		if !explicit {
			protocol = "TCP"
		}
		n, err := portNumber(number)
		if err != nil || protocol != "TCP" && protocol != "UDP" {
			return nil, fault.New(fault.InvalidArgument, "--to-pod 6379", "--to-pod %s: not a port like 6379 or 53/UDP", g)
		}
		for _, p := range out {
			if p.Container == n && p.Protocol == protocol {
				return nil, fault.New(fault.InvalidArgument, "", "--to-pod %s is given twice", g)
			}
		}
		for _, p := range ports {
			if p.Handler == n && p.Protocol == protocol {
				return nil, fault.New(fault.InvalidArgument, fmt.Sprintf("--port 1%d:%d", n%10000, p.Container), "--to-pod %s: the handler listens on that port itself; let it listen on another", g)
			}
		}
		out = append(out, lease.Port{Container: n, Protocol: protocol})
	}
	return out, nil
}

// HandlerName is the automatic name of the handler's container.
func HandlerName(engagement string, ports []lease.Port) string {
	n := "intercept-" + strings.ReplaceAll(engagement, "/", "-")
	if len(ports) > 0 {
		n += "-" + strconv.Itoa(int(ports[0].Handler))
	}
	return n
}

// IngestName is the same of an ingest, which has no port and is not alone.
func IngestName(engagement, id string) string {
	return "ingest-" + strings.ReplaceAll(engagement, "/", "-") + "-" + id
}
