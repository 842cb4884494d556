package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Sidecar is an agent beside a container that comes with a new pod, where none
// can be added to a running one.
type Sidecar struct {
	Container string
	// Divert: with NET_ADMIN, as an ephemeral container would have it.
	Divert bool
	// Named are ports of the container whose names are given to the agent, which
	// passes their traffic on: so it needs no right.
	Named []lease.Port
}

// firstNamed is the first choice for the agent's own port in the place of a named one.
const firstNamed = 15001

// Mark names a set of sidecars: pods that carry it have them.
func Mark(sidecars []Sidecar) string {
	if len(sidecars) == 0 {
		return ""
	}
	h := sha256.Sum256([]byte(lease.Marshal(sidecars)))
	return "beside-" + hex.EncodeToString(h[:5])
}

// IsMark reports whether a pod's mark is one of sidecars, and not an engagement's id.
func IsMark(s string) bool { return strings.HasPrefix(s, "beside-") }

// SidecarName is the name of the agent's container beside another in a new pod.
func SidecarName(container string) string { return agentName(&corev1.Pod{}, container) }

// sidecars is the patch that puts agents beside containers of a new pod.
func sidecars(pod *corev1.Pod, e Engagement, o Options) ([]byte, error) {
	p := pod.DeepCopy()
	for _, s := range e.Sidecars {
		if err := addSidecar(p, s, o); err != nil {
			return nil, err
		}
	}
	p.Spec.Volumes = append(p.Spec.Volumes, tokenVolume())
	set := func(m map[string]string, key, value string) map[string]string {
		out := map[string]string{key: value}
		for k, v := range m {
			if k != key {
				out[k] = v
			}
		}
		return out
	}
	ops := []op{
		{"add", "/metadata/labels", set(p.Labels, lease.LabelEngagement, Mark(e.Sidecars))},
		{"add", "/metadata/annotations", set(p.Annotations, lease.AnnotationWorkload, e.Workload)},
		{"add", "/spec/volumes", p.Spec.Volumes},
		{"add", "/spec/containers", p.Spec.Containers},
	}
	if e.Kind.Diverts() {
		ops = append(ops, op{"add", "/spec/readinessGates", append(slices.Clone(p.Spec.ReadinessGates), corev1.PodReadinessGate{ConditionType: Gate})})
	}
	return json.Marshal(ops)
}

func addSidecar(pod *corev1.Pod, s Sidecar, o Options) error {
	i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == s.Container })
	if i < 0 {
		return fmt.Errorf("inject: the pod has no container %q", s.Container)
	}
	if s.Divert && pod.Spec.HostNetwork {
		return fmt.Errorf("inject: the traffic of a whole node is not to be diverted")
	}
	app := &pod.Spec.Containers[i]
	c := app.DeepCopy()
	name := agentName(pod, s.Container)
	id := lease.AgentID{Namespace: pod.Namespace, Pod: pod.Name, Name: name, Container: s.Container, Divert: s.Divert || len(s.Named) > 0, Filters: true, CopyFilters: true}
	oneWay(c)
	env := append(ownResources(c.Env, s.Container), besideEnv(pod, c, id, o)...)
	env = append(env,
		// A new pod has its name from the API server only after this.
		corev1.EnvVar{Name: "BERTH_AGENT_POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}},
		corev1.EnvVar{Name: "BERTH_AGENT_NAMESPACE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}},
		corev1.EnvVar{Name: "BERTH_AGENT_TOKEN_FILE", Value: TokenDir + "/token"})
	sc := securityContext(pod.Spec.SecurityContext, c.SecurityContext)
	sc.Capabilities.Add = nil
	if s.Divert {
		var user string
		if sc, user = diverting(pod.Spec.SecurityContext, sc); user != "" {
			env = append(env, corev1.EnvVar{Name: "BERTH_AGENT_USER", Value: user})
		}
	}
	ports, named := rename(pod, app, s.Named)
	if named != "" {
		env = append(env, corev1.EnvVar{Name: "BERTH_AGENT_NAMED", Value: named})
	}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
		Name: name, Image: o.Image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"/agent"},
		Env: env, EnvFrom: c.EnvFrom, Ports: ports, SecurityContext: sc, Resources: sidecarResources(c),
		VolumeMounts:             append(c.VolumeMounts, corev1.VolumeMount{Name: TokenVolume, MountPath: TokenDir, ReadOnly: true}),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	})
	return nil
}

// sidecarResources are none, unless the container has limits: then a quota may
// demand that all have.
func sidecarResources(app *corev1.Container) corev1.ResourceRequirements {
	if len(app.Resources.Limits) == 0 {
		return corev1.ResourceRequirements{}
	}
	return *app.Resources.DeepCopy()
}

// rename gives the names of ports of the app to the agent, at free numbers.
// Probes that go by such a name go by its number from now on: they are about the app.
func rename(pod *corev1.Pod, app *corev1.Container, names []lease.Port) (ports []corev1.ContainerPort, env string) {
	taken := map[int32]bool{}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, p := range c.Ports {
			taken[p.ContainerPort] = true
		}
	}
	own := int32(firstNamed)
	var pairs []string
	for _, n := range names {
		i := slices.IndexFunc(app.Ports, func(p corev1.ContainerPort) bool { return p.Name == n.Name && protocol(p) == n.Protocol })
		if n.Name == "" || i < 0 {
			continue
		}
		for taken[own] {
			own++
		}
		taken[own] = true
		was := app.Ports[i]
		app.Ports[i].Name = ""
		for _, probe := range []*corev1.Probe{app.StartupProbe, app.ReadinessProbe, app.LivenessProbe} {
			if probe != nil {
				byNumber(&probe.ProbeHandler, n.Name, was.ContainerPort)
			}
		}
		ports = append(ports, corev1.ContainerPort{Name: n.Name, ContainerPort: own, Protocol: was.Protocol})
		pairs = append(pairs, fmt.Sprintf("%d/%s=%s", was.ContainerPort, n.Protocol, strconv.Itoa(int(own))))
	}
	return ports, strings.Join(pairs, ",")
}

func byNumber(h *corev1.ProbeHandler, name string, number int32) {
	is := func(p intstr.IntOrString) bool { return p.Type == intstr.String && p.StrVal == name }
	if h.HTTPGet != nil && is(h.HTTPGet.Port) {
		h.HTTPGet.Port = intstr.FromInt32(number)
	}
	if h.TCPSocket != nil && is(h.TCPSocket.Port) {
		h.TCPSocket.Port = intstr.FromInt32(number)
	}
}
