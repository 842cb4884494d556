package service

import (
	"context"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/workload"

	coordv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// workloads lists what can be engaged, and by whom it is.
func (s *service) workloads(ctx context.Context, req command.ListWorkloads) (command.Workloads, error) {
	if err := idFault("connection", req.Connection); err != nil {
		return command.Workloads{}, err
	}
	conn, err := s.connected(req.Connection)
	if err != nil {
		return command.Workloads{}, err
	}
	ns := req.Namespace
	if ns == "" {
		ns = conn.Namespace
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := workload.List(ctx, conn.Cluster, ns)
	if err != nil {
		return command.Workloads{}, err
	}
	held, err := conn.Cluster.Kube.CoordinationV1().Leases(ns).List(ctx, metav1.ListOptions{LabelSelector: lease.LabelKind + "=" + lease.KindEngagement})
	if err != nil {
		return command.Workloads{}, cluster.Explain(err, conn.Cluster.Server, "", cluster.Right{Verb: "list", Group: "coordination.k8s.io", Resource: "leases", Namespace: ns})
	}
	out := command.Workloads{Items: []command.Workload{}}
	for _, w := range list {
		out.Items = append(out.Items, record(w, held.Items))
	}
	return out, nil
}

// record is a workload with who engages it, and what stands in the way of
// engaging it: that every container is replaced. One of several leaves the others
// engageable, and what is beside the app leaves the workload so.
func record(w workload.Workload, leases []coordv1.Lease) command.Workload {
	r := command.Workload{
		Kind: w.Kind, Name: w.Name, Namespace: w.Namespace,
		Ready: fmt.Sprintf("%d/%d", w.Ready, w.Replicas), Containers: w.ContainerNames(), Engageable: true,
	}
	if o := w.Obstacle(lease.Replace); o != nil {
		r.Engageable, r.Reason = false, o.Message
	}
	var holders, engaged []string
	for _, l := range leases {
		spec, err := lease.Unmarshal[lease.EngagementSpec](l.Annotations[lease.AnnotationSpec])
		if err != nil || spec.WorkloadKind != w.Kind || spec.Workload != w.Name {
			continue
		}
		switch spec.Kind {
		case lease.Ingest:
			holders = append(holders, spec.Client+" (ingest)")
		case lease.Intercept, lease.Wiretap:
			var ports []string
			for _, p := range spec.Ports {
				ports = append(ports, fmt.Sprintf("%d/%s", p.Container, p.Protocol))
			}
			if spec.Filter.Filtered() {
				ports = append(ports, "with "+spec.Filter.String())
			}
			holders = append(holders, spec.Client+" ("+string(spec.Kind)+" "+strings.Join(ports, " ")+")")
		default:
			holders, engaged = append(holders, spec.Client), append(engaged, spec.Container)
		}
		r.Engagement = spec.ID
	}
	if len(holders) > 0 {
		r.Holder = strings.Join(holders, ", ")
		if len(engaged) > 0 && len(engaged) >= len(w.Containers) {
			r.Engageable, r.Reason = false, "engaged by "+r.Holder
		}
	}
	return r
}
