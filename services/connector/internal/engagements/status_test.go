package engagements

import (
	"fmt"
	"strings"
	"testing"

	"berth.dev/lease"
	"berth.dev/services/connector/internal/engage"

	coordv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestReader: each change on the Lease is told once, whatever else is written.
func TestReader(t *testing.T) {
	version := func(phase lease.Phase, pods ...string) *coordv1.Lease {
		st := lease.EngagementStatus{Phase: phase, Error: "e"}
		for _, p := range pods {
			st.Pods = append(st.Pods, lease.PodStatus{Name: p, Agent: true})
		}
		st.Pods = append(st.Pods, lease.PodStatus{Name: "without-agent"})
		return &coordv1.Lease{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{lease.AnnotationState: lease.Marshal(st)}}}
	}
	r := reader{namespace: "shop"}
	var got []string
	for _, obj := range []*coordv1.Lease{
		{}, version(lease.Pending), version(lease.Pending, "a"), version(lease.Prepared, "a"), version(lease.Prepared, "a"),
		version(lease.Active, "a"), version(lease.Active, "a"), version(lease.Active, "b", "a"), version(lease.Active, "a", "b"),
		version(lease.Restoring, "a"), version(lease.Failed), version(lease.Failed), nil,
	} {
		for _, in := range r.read(obj) {
			got = append(got, string(in.On)+strings.Join(in.Pods, "+"))
		}
	}
	want := []string{string(engage.WorkloadPrepared) + "a", string(engage.TrafficDiverted) + "a", string(engage.PodsChanged) + "a+b", string(engage.ManagerFailed), string(engage.LeaseGone)}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("%q, want %q", got, want)
	}
	lost := func(n int64) *coordv1.Lease {
		st := lease.EngagementStatus{Phase: lease.Active, Lost: n}
		return &coordv1.Lease{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{lease.AnnotationState: lease.Marshal(st)}}}
	}
	r, got = reader{phase: lease.Active, pods: []string{}}, nil
	for _, n := range []int64{0, 2, 2, 5} {
		for _, in := range r.read(lost(n)) {
			got = append(got, fmt.Sprint(in.On, in.Lost))
		}
	}
	if strings.Join(got, ", ") != "copies lost2, copies lost5" {
		t.Errorf("%q", got)
	}
	// Of several changes in one version each is told.
	some := func(lost int64, pods []lease.PodStatus, ports ...uint16) *coordv1.Lease {
		st := lease.EngagementStatus{Phase: lease.Active, Lost: lost, Pods: pods, NotHTTP: ports,
			Ports: []lease.Port{{Container: 80, Handler: 3000, Protocol: "TCP"}, {Container: 443, Protocol: "TCP"}, {Container: 443, Protocol: "UDP"}}}
		return &coordv1.Lease{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{lease.AnnotationState: lease.Marshal(st)}}}
	}
	r, got = reader{phase: lease.Active, pods: []string{}}, nil
	for _, obj := range []*coordv1.Lease{some(0, nil), some(1, []lease.PodStatus{{Name: "a", Agent: true}}, 443), some(1, []lease.PodStatus{{Name: "a", Agent: true}}, 443), some(1, nil, 80, 443)} {
		for _, in := range r.read(obj) {
			s := string(in.On)
			if in.On == engage.NotHTTP {
				s += fmt.Sprint(in.Ports)
			}
			got = append(got, s)
		}
	}
	if strings.Join(got, ", ") != "pods changed, copies lost, not HTTP[{443 443 TCP }], pods changed, not HTTP[{80 3000 TCP } {443 443 TCP }]" {
		t.Errorf("%q", got)
	}
	bad := &coordv1.Lease{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{lease.AnnotationState: "{"}}}
	if in := (&reader{}).read(bad); len(in) != 1 || in[0].On != engage.ManagerFailed {
		t.Errorf("%+v", in)
	}
}
