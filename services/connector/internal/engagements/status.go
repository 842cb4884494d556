package engagements

import (
	"slices"

	"berth.dev/bus/event"
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
	notHTTP             int // ports
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
	var all []engage.Input
	switch {
	case changed && st.Phase == lease.Prepared:
		in.On = engage.WorkloadPrepared
	case changed && st.Phase == lease.Active:
		in.On = engage.TrafficDiverted
	case moved && st.Phase == lease.Active:
		in.On = engage.PodsChanged
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
	}
	if in.On != "" {
		all = append(all, in)
	}
	if st.Phase != lease.Active {
		return all
	}
	if st.Lost > r.lost {
		r.lost = st.Lost
		all = append(all, engage.Input{On: engage.CopiesLost, Lost: st.Lost})
	}
	if len(st.NotHTTP) > r.notHTTP {
		r.notHTTP = len(st.NotHTTP)
		of := slices.DeleteFunc(slices.Clone(in.Ports), func(p event.Port) bool { return p.Protocol != "TCP" || !slices.Contains(st.NotHTTP, p.Container) })
		all = append(all, engage.Input{On: engage.NotHTTP, Ports: of})
	}
	return all
}
