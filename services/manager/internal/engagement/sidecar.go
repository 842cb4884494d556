package engagement

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/inject"

	corev1 "k8s.io/api/core/v1"
)

// refusal says that a running pod takes no agent, and why.
type refusal struct {
	e      *engagement
	why    string
	policy bool // it is the cluster's policy that forbids it
}

func (r *refusal) Error() string { return r.why }

// sidecarsOf are the agents that must come with new pods, for engagements that
// could not be made in running ones. It is the same list for the same
// engagements, whatever their order.
func sidecarsOf(engs []*engagement) []inject.Sidecar {
	by := map[string]*inject.Sidecar{}
	for _, e := range engs {
		if !e.status.Sidecar() {
			continue
		}
		s := by[e.spec.Container]
		if s == nil {
			s = &inject.Sidecar{Container: e.spec.Container}
			by[s.Container] = s
		}
		switch {
		case !e.spec.Kind.Diverts():
		case e.status.Named:
			for _, p := range e.spec.Ports {
				s.Named = append(s.Named, lease.Port{Container: p.Container, Protocol: p.Protocol, Name: p.Name})
			}
		default:
			s.Divert = true
		}
	}
	var out []inject.Sidecar
	for _, s := range by {
		slices.SortFunc(s.Named, func(a, b lease.Port) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b inject.Sidecar) int { return strings.Compare(a.Container, b.Container) })
	return out
}

// nameless is a port that cannot be brought to the agent by its name.
func nameless(w *workload, e *engagement) (lease.Port, bool) {
	for _, p := range e.spec.Ports {
		declared := slices.ContainsFunc(w.template.Spec.Containers, func(c corev1.Container) bool {
			return c.Name == e.spec.Container && slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool {
				return cp.Name == p.Name && uint16(cp.ContainerPort) == p.Container
			})
		})
		if p.Name == "" || p.Protocol != "TCP" || !declared {
			return p, true
		}
	}
	return lease.Port{}, false
}

// fallBack lets an engagement that running pods refuse be made by exchanging
// them: the agent comes as a sidecar. Where the cluster's policy forbids to divert
// traffic, the port's name is given to the agent instead.
func (c *Controller) fallBack(ctx context.Context, k Key, w *workload, r *refusal) error {
	e := r.e
	if e.reached() {
		c.log.Warn("a pod takes no agent", "engagement", e.spec.ID, "err", r.why)
		return nil // not for one pod's sake
	}
	if e.spec.Kind.Diverts() && w.template.Spec.HostNetwork {
		return c.fail(ctx, e, &failure{k.Workload() + " uses its node's network: there is no traffic of its pods alone to divert", "ctl replace " + e.spec.Workload})
	}
	st := e.status
	if e.spec.Kind.Diverts() && r.policy {
		if p, is := nameless(w, e); is {
			return c.fail(ctx, e, &failure{fmt.Sprintf("the namespace %s does not let an agent divert traffic (%s), and port %d/%s is not reached by a name that could be given to the agent", k.Namespace, r.why, p.Container, p.Protocol),
				"give the service's targetPort a name of container " + e.spec.Container + ", or: ctl replace " + e.spec.Workload})
		}
		st.Named = true
	}
	if err := c.selfTest(ctx, false); err != nil {
		return c.fail(ctx, e, webhookFailure(err))
	}
	c.log.Info("the agent comes with new pods", "engagement", e.spec.ID, "why", r.why)
	st.Phase, st.Method, st.Why = lease.Pending, string(w.method), r.why
	return c.setStatus(ctx, e, st)
}
