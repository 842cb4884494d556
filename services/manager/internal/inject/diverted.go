package inject

import (
	"net/url"
	"slices"
	"strings"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Diverted are an engagement's ports as they are in a pod, with what of them is its
// own, and kubelet's probes of them. A port with a name is where the pod has that name: pods of an older
// template may have it elsewhere.
func Diverted(pod *corev1.Pod, ports []lease.Port, of lease.EngagementSpec) []lease.Diverted {
	var out []lease.Diverted
	for _, p := range ports {
		d := lease.Diverted{Port: p.Container, Protocol: p.Protocol, As: p.Container, Filter: of.Filter, Copy: of.Kind == lease.Wiretap}
		if p.Name != "" {
			d.Port = named(pod, p)
		}
		if d.Protocol == string(corev1.ProtocolTCP) {
			d.Probes = probes(pod, d.Port)
		}
		out = append(out, d)
	}
	return out
}

// named is where a pod has an engagement's port: where it was found if that is there
// still, else the first of that name, which Kubernetes takes too.
func named(pod *corev1.Pod, p lease.Port) uint16 {
	first := uint16(0)
	for _, c := range slices.Concat(pod.Spec.Containers, Restarting(pod)) {
		for _, cp := range c.Ports {
			if cp.Name != p.Name || protocol(cp) != p.Protocol {
				continue
			}
			if uint16(cp.ContainerPort) == p.Container {
				return p.Container
			}
			if first == 0 {
				first = uint16(cp.ContainerPort)
			}
		}
	}
	if first == 0 {
		return p.Container
	}
	return first
}

// Restarting are the pod's init containers that stay: sidecars, to which a Service
// may lead too.
func Restarting(pod *corev1.Pod) (out []corev1.Container) {
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}

func protocol(p corev1.ContainerPort) string {
	if p.Protocol == "" {
		return string(corev1.ProtocolTCP)
	}
	return string(p.Protocol)
}

// probes are those of a port, each kind once.
func probes(pod *corev1.Pod, port uint16) []lease.Probe {
	var out []lease.Probe
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p == nil {
				continue
			}
			probe, at := probeOf(p)
			if probe.Kind != "" && number(&c, at) == port && !slices.Contains(out, probe) {
				out = append(out, probe)
			}
		}
	}
	return out
}

func probeOf(p *corev1.Probe) (lease.Probe, intstr.IntOrString) {
	switch {
	case p.HTTPGet != nil && p.HTTPGet.Host == "":
		if p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			return lease.Probe{Kind: lease.ProbeOpaque}, p.HTTPGet.Port
		}
		probe := lease.Probe{Kind: lease.ProbeHTTP, Path: requested(p.HTTPGet.Path)}
		for _, h := range p.HTTPGet.HTTPHeaders {
			if strings.EqualFold(h.Name, "User-Agent") {
				probe.UserAgent = h.Value
			}
		}
		return probe, p.HTTPGet.Port
	case p.TCPSocket != nil && p.TCPSocket.Host == "":
		return lease.Probe{Kind: lease.ProbeTCP}, p.TCPSocket.Port
	case p.GRPC != nil:
		return lease.Probe{Kind: lease.ProbeOpaque}, intstr.FromInt32(p.GRPC.Port)
	}
	return lease.Probe{}, intstr.IntOrString{}
}

// requested is a probe's path as kubelet asks for it: parsed as a URL, and
// never without a leading slash.
func requested(path string) string {
	u, err := url.Parse(path)
	if err != nil {
		return path
	}
	u.Scheme, u.Host = "http", "x"
	if u, err = url.Parse(u.String()); err != nil { // as a client is given it
		return path
	}
	return u.RequestURI()
}

// number is where a probe of a container goes.
func number(c *corev1.Container, at intstr.IntOrString) uint16 {
	if at.Type == intstr.Int {
		return uint16(at.IntVal)
	}
	for _, p := range c.Ports {
		if p.Name == at.StrVal {
			return uint16(p.ContainerPort)
		}
	}
	return 0
}
