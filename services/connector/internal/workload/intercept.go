package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Services are those that select the workload's pods.
func Services(ctx context.Context, c *cluster.Cluster, w Workload) ([]corev1.Service, error) {
	// As the API server's cache has them: the newest would be waited for.
	list, err := c.Kube.CoreV1().Services(w.Namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, cluster.Explain(err, c.Server, "", cluster.Right{Verb: "list", Resource: "services", Namespace: w.Namespace})
	}
	return slices.DeleteFunc(list.Items, func(s corev1.Service) bool {
		return len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.Labels))
	}), nil
}

// target is where a Service's port leads in the pod.
type target struct {
	service   string
	name      string // of the Service's port
	port      uint16 // likewise
	protocol  string
	container uint16 // the pod's port; 0: the target is a name that no container declares
	symbol    string // that name, which may be another number in another pod
	in        string // container that declares the pod's port; "" where none does
}

// same reports whether two ports lead to the same one of the pod.
func (t target) same(o target) bool { return t.container == o.container && t.protocol == o.protocol }

// Intercept chooses the ports of an intercept, which are those of the Services
// that select the workload, and with them the container, unless it is named. A
// form that the user may give (--port) is
//
//	P:ID         the handler listens on P; ID is a Service's port, its name or number
//	P            the same with the only port there is, or else with the Service's port P
//	…/UDP        either, by UDP; without it a name has its own protocol, a number TCP
//
// What no Service has is looked for among the container's ports, and without
// any Service the number is the container's.
func (w Workload) Intercept(container string, given []string, services []corev1.Service, service string) (corev1.Container, []lease.Port, error) {
	none := corev1.Container{}
	if container != "" {
		if _, err := w.Container(container); err != nil {
			return none, nil, err
		}
	}
	if service != "" {
		i := slices.IndexFunc(services, func(s corev1.Service) bool { return s.Name == service })
		if i < 0 {
			return none, nil, fault.New(fault.NotFound, "ctl intercept "+w.Name+" --help", "no service %s selects the pods of %s; %s", service, w.Title(), named(services))
		}
		services = services[i : i+1]
	}
	if len(given) == 0 {
		return none, nil, fault.New(fault.InvalidArgument, "ctl intercept "+w.Name+" --port 8080:"+w.example(services), "no port is given; %s", w.describe(services))
	}
	var ports []lease.Port
	in := container
	for _, g := range given {
		handler, t, err := w.resolve(g, services)
		if err != nil {
			return none, nil, err
		}
		for _, p := range ports {
			if p.Container == t.container && p.Protocol == t.protocol {
				return none, nil, fault.New(fault.InvalidArgument, "", "--port %s: the pod's port %d/%s is intercepted twice", g, t.container, t.protocol)
			}
		}
		ports = append(ports, lease.Port{Container: t.container, Handler: handler, Protocol: t.protocol, Name: t.symbol})
		if in == "" {
			in = t.in
		}
	}
	c, err := w.Container(in)
	return c, ports, err
}

// resolve finds the pod's port that one --port means.
func (w Workload) resolve(given string, services []corev1.Service) (handler uint16, t target, err error) {
	bad := func(format string, args ...any) (uint16, target, error) {
		return 0, target{}, fault.New(fault.InvalidArgument, "--port 8080:"+w.example(services), "--port %s: %s; %s", given, fmt.Sprintf(format, args...), w.describe(services))
	}
	rest, protocol, explicit := strings.Cut(given, "/")
	protocol = strings.ToUpper(protocol)
	if explicit && protocol != "TCP" && protocol != "UDP" {
		return bad("%q is neither TCP nor UDP", protocol)
	}
	local, id, two := strings.Cut(rest, ":")
	if handler, err = portNumber(local); err != nil {
		return bad("the handler's port %q is not a number from 1 to 65535", local)
	}
	all := slices.DeleteFunc(w.targets(services), func(t target) bool { return explicit && t.protocol != protocol })
	if !two {
		if one := distinct(all); len(one) == 1 && one[0].container != 0 {
			return handler, one[0], nil
		}
		id = local
	}
	number, err := portNumber(id)
	isNumber := err == nil
	found := slices.DeleteFunc(slices.Clone(all), func(t target) bool {
		return isNumber && t.port != number || !isNumber && t.name != id
	})
	if len(found) == 0 { // no Service's: the container's own, then
		found = w.declared(id, number, protocol)
	}
	if isNumber && !explicit && slices.ContainsFunc(found, func(t target) bool { return t.protocol == "TCP" }) {
		found = slices.DeleteFunc(found, func(t target) bool { return t.protocol != "TCP" })
	}
	found = distinct(found)
	switch {
	case len(found) > 1:
		var s []string
		for _, t := range found {
			s = append(s, fmt.Sprintf("port %s of service %s leads to %d/%s", id, t.service, t.container, t.protocol))
		}
		return 0, target{}, fault.New(fault.InvalidArgument, "--service "+found[0].service, "--port %s is ambiguous: %s", given, strings.Join(s, ", "))
	case len(found) == 1 && found[0].container == 0:
		return bad("port %s of service %s leads to the port named %q, which no container of %s declares", id, found[0].service, found[0].symbol, w.Title())
	case len(found) == 1:
		return handler, found[0], nil
	case isNumber && len(services) == 0: // containers may listen on ports that they do not declare
		if protocol == "" {
			protocol = "TCP"
		}
		return handler, target{protocol: protocol, container: number}, nil
	case isNumber:
		return bad("no service and no container has the port %d", number)
	}
	return bad("no service and no container has a port named %q", id)
}

// targets are the ports of Services as they are in the workload's pods.
func (w Workload) targets(services []corev1.Service) []target {
	var all []target
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			t := target{service: s.Name, name: p.Name, port: uint16(p.Port), protocol: "TCP"}
			if p.Protocol != "" {
				t.protocol = string(p.Protocol)
			}
			if t.protocol == "SCTP" {
				continue
			}
			at := p.TargetPort
			if at.Type == intstr.Int && at.IntVal == 0 || at.Type == intstr.String && at.StrVal == "" {
				at = intstr.FromInt32(p.Port)
			}
			if at.Type == intstr.String {
				t.symbol = at.StrVal
			} else {
				t.container = uint16(at.IntVal)
			}
			all = append(all, w.locate(t))
		}
	}
	return all
}

// locate finds who declares a target's port. Of several containers that have a port
// of that name Kubernetes takes the first (endpoints, FindPort); of those that
// declare a number, one that does by the protocol goes before one that means it for both.
func (w Workload) locate(t target) target {
	other := ""
	for _, c := range w.Containers {
		for _, p := range c.Ports {
			same := uint16(p.ContainerPort) == t.container
			switch {
			case t.symbol != "" && p.Name == t.symbol && protocolOf(p) == t.protocol, t.symbol == "" && same && protocolOf(p) == t.protocol:
				t.container, t.in = uint16(p.ContainerPort), c.Name
				return t
			case t.symbol == "" && same && other == "":
				other = c.Name
			}
		}
	}
	t.in = other
	for _, c := range w.Sidecars { // no app container declares it
		for _, p := range c.Ports {
			if t.symbol != "" && p.Name == t.symbol && protocolOf(p) == t.protocol {
				t.container = uint16(p.ContainerPort)
				return t
			}
		}
	}
	return t
}

// declared are the containers' own ports of that name or number.
func (w Workload) declared(name string, number uint16, protocol string) []target {
	var all []target
	for _, c := range w.Containers {
		for _, p := range c.Ports {
			if protocol != "" && protocolOf(p) != protocol || protocolOf(p) == "SCTP" {
				continue
			}
			if number != 0 && uint16(p.ContainerPort) == number || number == 0 && name != "" && p.Name == name {
				t := target{service: c.Name, name: p.Name, protocol: protocolOf(p), container: uint16(p.ContainerPort), in: c.Name}
				if number == 0 {
					t.symbol = p.Name
				}
				all = append(all, t)
			}
		}
	}
	return all
}

// distinct leaves one of those that lead to the same port of the pod.
func distinct(all []target) []target {
	var out []target
	for _, t := range all {
		if !slices.ContainsFunc(out, t.same) {
			out = append(out, t)
		}
	}
	return out
}

func named(services []corev1.Service) string {
	if len(services) == 0 {
		return "none does"
	}
	var names []string
	for _, s := range services {
		names = append(names, s.Name)
	}
	return "these do: " + strings.Join(names, ", ")
}

// example is an ID that would do.
func (w Workload) example(services []corev1.Service) string {
	if all := w.targets(services); len(all) > 0 {
		if all[0].name != "" {
			return all[0].name
		}
		return fmt.Sprint(all[0].port)
	}
	for _, c := range w.Containers {
		if len(c.Ports) > 0 {
			return fmt.Sprint(c.Ports[0].ContainerPort)
		}
	}
	return "80"
}

// describe lists what could have been meant.
func (w Workload) describe(services []corev1.Service) string {
	var l []string
	for _, t := range w.targets(services) {
		s := fmt.Sprintf("%d/%s", t.port, t.protocol)
		if t.name != "" {
			s = t.name + " (" + s + ")"
		}
		l = append(l, s+" of service "+t.service)
	}
	if len(l) > 0 {
		return "there are " + strings.Join(l, ", ")
	}
	var c []string
	for _, k := range w.Containers {
		c = append(c, describe(k))
	}
	return "no service selects its pods; " + strings.Join(c, ", ")
}
