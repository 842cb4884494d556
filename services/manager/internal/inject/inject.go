// Package inject decides what an engaged workload's new pod looks like: a pure
// function from a pod and an engagement to a JSON patch (RFC 6902), golden-tested.
//
// For a replace the engaged container keeps its name, environment, ports,
// mounts, resources and user, but runs the agent in the place of its own
// program. Whatever Pod Security accepted of the original it accepts of the
// result: nothing is asked for that the `restricted` profile refuses, except
// where the original itself ran as root.
package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names of what is put into a pod.
const (
	TokenVolume = "berth-token"
	TokenDir    = "/var/run/berth"
	// nonRootUser is the agent's user where the pod demands some user but root
	// and names none.
	nonRootUser = 65532
	statusPort  = 9900 // first choice for the agent's own port
	tokenTTL    = 3600 // seconds; kubelet renews it at 80 %
)

// Options are the same for all pods of an installation.
type Options struct {
	Image     string   // of the agent: the manager's own
	Addresses []string // host:port of the manager, in order of preference
	Pin       string   // the manager's
}

// Engagement is what is injected.
type Engagement struct {
	lease.EngagementSpec
	Workload string    // kind/name, for the pod's annotation
	Sidecars []Sidecar // agents that are to come beside containers
}

// op is one operation of a JSON patch.
type op struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// Ports are the container's ports that an engagement takes: those it asks for,
// else all that the container declares. SCTP is left out: nobody relays it.
func Ports(c *corev1.Container, asked []lease.Port) []lease.Port {
	var ports []lease.Port
	if len(asked) > 0 {
		ports = slices.Clone(asked)
	} else {
		for _, p := range c.Ports {
			proto := string(p.Protocol)
			if proto == "" {
				proto = string(corev1.ProtocolTCP)
			}
			if proto == string(corev1.ProtocolSCTP) {
				continue
			}
			ports = append(ports, lease.Port{Container: uint16(p.ContainerPort), Protocol: proto, Name: p.Name})
		}
	}
	for i := range ports {
		if ports[i].Handler == 0 {
			ports[i].Handler = ports[i].Container
		}
		if ports[i].Protocol == "" {
			ports[i].Protocol = string(corev1.ProtocolTCP)
		}
	}
	return ports
}

// Pod returns the JSON patch that engages the pod.
func Pod(pod *corev1.Pod, e Engagement, o Options) ([]byte, error) {
	if len(e.Sidecars) > 0 {
		return sidecars(pod, e, o)
	}
	switch e.Kind {
	case lease.Replace:
	case lease.Intercept, lease.Wiretap:
		return gate(pod, e)
	default:
		return nil, fmt.Errorf("inject: engagements of kind %q need no new pod", e.Kind)
	}
	i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == e.Container })
	if i < 0 {
		return nil, fmt.Errorf("inject: the pod has no container %q", e.Container)
	}
	c := replaced(pod, i, e, o)

	labels := map[string]string{lease.LabelEngagement: e.ID}
	for k, v := range pod.Labels {
		if k != lease.LabelEngagement {
			labels[k] = v
		}
	}
	annotations := map[string]string{}
	for k, v := range pod.Annotations {
		annotations[k] = v
	}
	annotations[lease.AnnotationWorkload] = e.Workload

	volumes := append(slices.Clone(pod.Spec.Volumes), tokenVolume())
	return json.Marshal([]op{
		{"add", "/metadata/labels", labels},
		{"add", "/metadata/annotations", annotations},
		{"add", "/spec/volumes", volumes},
		{"replace", "/spec/containers/" + strconv.Itoa(i), c},
	})
}

// Gate is the condition without which a new pod of an intercepted workload is
// not Ready: it is True when its traffic is diverted, so that nothing that a
// rollout or a scaling sends to the pod comes to the app.
const Gate = corev1.PodConditionType(lease.Group + "/diverted")

// gate adds the gate; the agent comes by an ephemeral container.
func gate(pod *corev1.Pod, e Engagement) ([]byte, error) {
	annotations := map[string]string{}
	for k, v := range pod.Annotations {
		annotations[k] = v
	}
	annotations[lease.AnnotationWorkload] = e.Workload
	return json.Marshal([]op{
		{"add", "/metadata/annotations", annotations},
		{"add", "/spec/readinessGates", append(slices.Clone(pod.Spec.ReadinessGates), corev1.PodReadinessGate{ConditionType: Gate})},
	})
}

// replaced is the container with the agent in it.
func replaced(pod *corev1.Pod, i int, e Engagement, o Options) *corev1.Container {
	c := pod.Spec.Containers[i].DeepCopy()
	var mounts []string
	for _, m := range c.VolumeMounts {
		mounts = append(mounts, m.MountPath)
	}
	var ports []string
	for _, p := range Ports(c, e.Ports) {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Container, p.Protocol))
	}
	own := freePort(pod)

	c.Image, c.ImagePullPolicy = o.Image, corev1.PullIfNotPresent
	c.Command, c.Args, c.WorkingDir = []string{"/agent"}, nil, ""
	c.Stdin, c.StdinOnce, c.TTY = false, false, false
	c.LivenessProbe, c.StartupProbe, c.Lifecycle = nil, nil, nil
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(int32(own)), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds:    1,
		TimeoutSeconds:   1,
		SuccessThreshold: 1,
		FailureThreshold: 3, // a manager's restart need not take the pod out of its Services
	}
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: TokenVolume, MountPath: TokenDir, ReadOnly: true})
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	// Last, so that they win over envFrom and over what the image's user wrote.
	for _, kv := range [][2]string{
		{"BERTH_AGENT_MANAGER", strings.Join(o.Addresses, ",")},
		{"BERTH_AGENT_PIN", o.Pin},
		{"BERTH_AGENT_ENGAGEMENT", e.ID},
		{"BERTH_AGENT_PORTS", strings.Join(ports, ",")},
		{"BERTH_AGENT_MOUNTS", strings.Join(mounts, ":")},
		{"BERTH_AGENT_TOKEN_FILE", TokenDir + "/token"},
		{"BERTH_AGENT_LISTEN", ":" + strconv.Itoa(own)},
		{"BERTH_AGENT_GRACE", strconv.FormatInt(grace, 10) + "s"},
	} {
		c.Env = append(c.Env, corev1.EnvVar{Name: kv[0], Value: kv[1]})
	}
	c.SecurityContext = securityContext(pod.Spec.SecurityContext, c.SecurityContext)
	return c
}

// securityContext keeps who the container runs as and takes everything else
// away. Where nobody says who, the image did; its answer is lost with the
// image, so the agent runs as root without any capability but the one for low
// ports: that reads root's volumes and listens on port 80.
func securityContext(pod *corev1.PodSecurityContext, was *corev1.SecurityContext) *corev1.SecurityContext {
	no, yes := false, true
	sc := &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem:   &yes,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	var user *int64
	var nonRoot *bool
	if pod != nil {
		user, nonRoot = pod.RunAsUser, pod.RunAsNonRoot
	}
	if was != nil {
		sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot, sc.SELinuxOptions = was.RunAsUser, was.RunAsGroup, was.RunAsNonRoot, was.SELinuxOptions
		if was.RunAsUser != nil {
			user = was.RunAsUser
		}
		if was.RunAsNonRoot != nil {
			nonRoot = was.RunAsNonRoot
		}
	}
	switch {
	case user != nil:
		if *user == 0 {
			sc.Capabilities.Add = []corev1.Capability{"NET_BIND_SERVICE"}
		}
	case nonRoot != nil && *nonRoot:
		u := int64(nonRootUser)
		sc.RunAsUser = &u
	default:
		u := int64(0)
		sc.RunAsUser = &u
		sc.Capabilities.Add = []corev1.Capability{"NET_BIND_SERVICE"}
	}
	return sc
}

// freePort is a port for the agent's own endpoint that no container of the pod declares.
func freePort(pod *corev1.Pod) int {
	taken := map[int32]bool{}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, p := range c.Ports {
			taken[p.ContainerPort] = true
		}
	}
	p := int32(statusPort)
	for taken[p] {
		p++
	}
	return int(p)
}

// tokenVolume is the pod's proof to the manager.
func tokenVolume() corev1.Volume {
	ttl := int64(tokenTTL)
	return corev1.Volume{Name: TokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: lease.AgentAudience, ExpirationSeconds: &ttl, Path: "token",
		}}},
	}}}
}
