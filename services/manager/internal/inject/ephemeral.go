package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
)

const (
	// agentPrefix begins the name of every agent's container beside another.
	agentPrefix = "berth-agent-"
	agentEnv    = "BERTH_AGENT_"
)

// Refusal says that a pod can have no agent added while it runs.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// Ephemeral is the ephemeral container that puts an agent beside a container
// of a running pod: with its environment, its volumes and its user, but without
// ports, probes and resources, which ephemeral containers do not have. With
// divert it may redirect the pod's traffic, for which it needs NET_ADMIN, and so
// begins as root; it becomes the container's user when it has started.
//
// prove makes the agent's proof to the manager from its name.
func Ephemeral(pod *corev1.Pod, container string, divert bool, prove func(name string) string, o Options) (*corev1.EphemeralContainer, error) {
	i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == container })
	if i < 0 {
		return nil, fmt.Errorf("inject: the pod has no container %q", container)
	}
	if pod.Spec.HostNetwork {
		return nil, Refusal("its pods use their node's network")
	}
	c := pod.Spec.Containers[i].DeepCopy()
	for _, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			return nil, Refusal(fmt.Sprintf("%s is mounted by subPath, which an ephemeral container cannot", m.MountPath))
		}
	}
	oneWay(c)
	name := agentName(pod, container)
	id := lease.AgentID{Namespace: pod.Namespace, Pod: pod.Name, Name: name, Container: container, Divert: divert, Filters: true, CopyFilters: true}
	// What an agent in the container's place was told is not for this one.
	c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return strings.HasPrefix(e.Name, agentEnv) })
	c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == TokenVolume })
	env := append(ownResources(c.Env, container), besideEnv(pod, c, id, o)...)
	env = append(env, corev1.EnvVar{Name: "BERTH_AGENT_PROOF", Value: prove(name)})
	sc := securityContext(pod.Spec.SecurityContext, c.SecurityContext)
	// It listens on no port that is low; what root may do with files it needs.
	sc.Capabilities.Add = slices.DeleteFunc(sc.Capabilities.Add, func(c corev1.Capability) bool { return c == "NET_BIND_SERVICE" })
	if divert {
		var user string
		if sc, user = diverting(pod.Spec.SecurityContext, sc); user != "" {
			env = append(env, corev1.EnvVar{Name: "BERTH_AGENT_USER", Value: user})
		}
	}
	return &corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: o.Image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"/agent"},
		Env: env, EnvFrom: c.EnvFrom, VolumeMounts: c.VolumeMounts, SecurityContext: sc,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}}, nil
}

// oneWay takes the propagation of mounts back to the node from a container: that
// is for the privileged.
func oneWay(c *corev1.Container) {
	for i := range c.VolumeMounts {
		if p := c.VolumeMounts[i].MountPropagation; p != nil && *p == corev1.MountPropagationBidirectional {
			one := corev1.MountPropagationHostToContainer
			c.VolumeMounts[i].MountPropagation = &one
		}
	}
}

// besideEnv tells an agent beside a container who it is. It stands last, so
// that it wins over what the container has.
func besideEnv(pod *corev1.Pod, c *corev1.Container, id lease.AgentID, o Options) []corev1.EnvVar {
	var mounts []string
	for _, m := range c.VolumeMounts {
		mounts = append(mounts, m.MountPath)
	}
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	var env []corev1.EnvVar
	for _, kv := range [][2]string{
		{"BERTH_AGENT_MANAGER", strings.Join(o.Addresses, ",")},
		{"BERTH_AGENT_PIN", o.Pin},
		{"BERTH_AGENT_BESIDE", lease.Marshal(id)},
		{"BERTH_AGENT_MOUNTS", strings.Join(mounts, ":")},
		{"BERTH_AGENT_GRACE", strconv.FormatInt(grace, 10) + "s"},
	} {
		env = append(env, corev1.EnvVar{Name: kv[0], Value: kv[1]})
	}
	return env
}

// ownResources makes references to a container's own resources name it, since
// they are to be another's.
func ownResources(env []corev1.EnvVar, container string) []corev1.EnvVar {
	for i := range env {
		if f := env[i].ValueFrom; f != nil && f.ResourceFieldRef != nil && f.ResourceFieldRef.ContainerName == "" {
			f.ResourceFieldRef.ContainerName = container
		}
	}
	return env
}

// diverting is who an agent that diverts traffic runs as: root with NET_ADMIN
// and what it takes to become whom the container runs as (user, as uid:gid; ""
// for root).
func diverting(pod *corev1.PodSecurityContext, was *corev1.SecurityContext) (sc *corev1.SecurityContext, user string) {
	sc = was.DeepCopy()
	uid, gid := int64(0), int64(0)
	if pod != nil {
		if pod.RunAsUser != nil {
			uid = *pod.RunAsUser
		}
		if pod.RunAsGroup != nil {
			gid = *pod.RunAsGroup
		}
	}
	if was.RunAsUser != nil {
		uid = *was.RunAsUser
	}
	if was.RunAsGroup != nil {
		gid = *was.RunAsGroup
	}
	sc.Capabilities.Add = append([]corev1.Capability{"NET_ADMIN"}, was.Capabilities.Add...)
	if uid != 0 {
		sc.Capabilities.Add = append(sc.Capabilities.Add, "SETGID", "SETUID")
		user = fmt.Sprintf("%d:%d", uid, gid)
	}
	root, no := int64(0), false
	sc.RunAsUser, sc.RunAsNonRoot = &root, &no
	return sc, user
}

// agentName is the next free name for an agent's container: those that have
// ended stay in the pod's list for ever.
func agentName(pod *corev1.Pod, container string) string {
	taken := map[string]bool{}
	for _, e := range pod.Spec.EphemeralContainers {
		taken[e.Name] = true
	}
	for _, c := range pod.Spec.Containers {
		taken[c.Name] = true
	}
	base := agentPrefix + container
	if len(base) > 56 {
		h := sha256.Sum256([]byte(base))
		base = base[:47] + "-" + hex.EncodeToString(h[:4])
	}
	for n := 1; ; n++ {
		if name := fmt.Sprintf("%s-%d", base, n); !taken[name] {
			return name
		}
	}
}

// IsAgent reports whether a container of that name is an agent beside another.
func IsAgent(name string) bool { return strings.HasPrefix(name, agentPrefix) }

// Bare is what AgentOf reads of an agent's ephemeral container.
func Bare(e corev1.EphemeralContainer) corev1.EphemeralContainer {
	b := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: e.Name}}
	for _, v := range e.Env {
		if v.Name == agentEnv+"BESIDE" || v.Name == agentEnv+"PIN" {
			b.Env = append(b.Env, v)
		}
	}
	return b
}

// AgentOf reads who the agent in an ephemeral container is, from what Ephemeral
// wrote; ok is false for other containers, and for agents of a manager with
// another pin: one of an installation that was taken out runs on for minutes, and
// will never come to this one.
func AgentOf(e *corev1.EphemeralContainer, pin string) (lease.AgentID, bool) {
	if !IsAgent(e.Name) || valueOf(e.Env, agentEnv+"PIN") != pin {
		return lease.AgentID{}, false
	}
	id, err := lease.Unmarshal[lease.AgentID](valueOf(e.Env, agentEnv+"BESIDE"))
	return id, err == nil && id.Name == e.Name
}

// valueOf is the value that a variable has for the container: the last one's.
func valueOf(env []corev1.EnvVar, name string) string {
	for _, v := range slices.Backward(env) {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}
