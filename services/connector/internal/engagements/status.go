package engagements

import (
	"slices"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/engage"

	coordv1 "k8s.io/api/coordination/v1"
)

// watchLease turns what the manager writes on the Lease into inputs, until the
// Lease is gone.
func (l *Live) watchLease() {
	r := reader{workload: l.plan.spec.Workload, namespace: l.plan.ref.Namespace}
	l.plan.conn.Cluster.Watch(l.life, l.plan.ref, l.plan.version, func(obj *coordv1.Lease) {
		for _, in := range r.read(obj) {
			l.put(in)
		}
	})
}

// reader remembers what it has read, so that each change is told once.
type reader struct {
	workload, namespace string
	phase               lease.Phase
	pods                []string
	lost                int64
}

// read returns what is new in a version of the Lease; nil is its end.
func (r *reader) read(obj *coordv1.Lease) []engage.Input {
	if obj == nil {
		return []engage.Input{{On: engage.LeaseGone}}
	}
	text := obj.Annotations[lease.AnnotationState]
	if text == "" {
		return nil
	}
	st, err := lease.Unmarshal[lease.EngagementStatus](text)
	if err != nil {
		return []engage.Input{{On: engage.ManagerFailed, Error: fault.New(fault.FailedPrecondition, "ctl install", "the manager's status of the engagement is not understood; it is of another version: %v", err)}}
	}
	pods := []string{}
	for _, p := range st.Pods {
		if p.Agent {
			pods = append(pods, p.Name)
		}
	}
	slices.Sort(pods)
	changed := st.Phase != r.phase
	moved := !slices.Equal(pods, r.pods)
	r.phase, r.pods = st.Phase, pods
	in := engage.Input{Pods: pods, Ports: eventPorts(st.Ports), Method: st.Method, Why: st.Why}
	switch {
	case changed && st.Phase == lease.Prepared:
		in.On = engage.WorkloadPrepared
	case changed && st.Phase == lease.Active:
		in.On = engage.TrafficDiverted
	case moved && st.Phase == lease.Active:
		in.On = engage.PodsChanged
	case st.Lost > r.lost && st.Phase == lease.Active:
		r.lost = st.Lost
		in.On, in.Lost = engage.CopiesLost, st.Lost
	case changed && st.Phase == lease.Failed:
		msg := st.Error
		if msg == "" {
			msg = "the manager could not engage the workload"
		}
		hint := st.Hint
		if hint == "" {
			hint = "kubectl describe pods -n " + r.namespace
		}
		in.On, in.Error = engage.ManagerFailed, fault.New(fault.FailedPrecondition, hint, "%s", msg)
	default:
		return nil
	}
	return []engage.Input{in}
}
