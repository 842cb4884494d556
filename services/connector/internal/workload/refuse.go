package workload

import (
	"context"
	"slices"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"golang.org/x/sync/errgroup"
)

// refused are the kinds that people name and that cannot be engaged, in the order
// in which a bare name is looked up among them, and why.
var refused = []struct{ kind, why string }{
	{lease.DaemonSet, "each of its pods is its node's only one, and not one of a number of replicas that are exchanged for others"},
	{lease.CronJob, "it has pods at times only, which run to their end"},
	{lease.Job, "its pods run to their end, and no others follow that an agent could be put into"},
	{lease.ReplicationController, "it is the ReplicaSet's predecessor, which Berth does not know"},
	{lease.Service, "it is no workload, and selects the pods of none that can be engaged"},
	{lease.Pod, "no workload controls it, so what is taken out of it would be put back by nobody"},
}

// refuse says why an object of a kind that cannot be engaged is refused, and what
// can be engaged instead.
func refuse(ctx context.Context, c *cluster.Cluster, namespace, kind, name string, verb lease.Kind) *fault.Error {
	found, err := lookUp(ctx, c, namespace, kind, name, verb)
	if apierrors.IsNotFound(err) {
		return fault.New(fault.NotFound, "ctl list -n "+namespace, "the namespace %s has no %s named %s, and one could not be engaged: %s can", namespace, kind, name, some(Kinds))
	}
	if found != nil {
		return found
	}
	return refusal(namespace, kind, name) // who may not look knows that it is of this kind
}

// other refuses what is no workload of that name but something else; nil where
// there is nothing, or nothing that the user may see.
func other(ctx context.Context, c *cluster.Cluster, namespace, name string, verb lease.Kind) *fault.Error {
	found := make([]*fault.Error, len(refused))
	var g errgroup.Group
	for i, r := range refused {
		g.Go(func() error {
			found[i], _ = lookUp(ctx, c, namespace, r.kind, name, verb)
			return nil
		})
	}
	_ = g.Wait()
	for _, f := range found {
		if f != nil {
			return f
		}
	}
	return nil
}

// lookUp is the refusal of an object that is there.
func lookUp(ctx context.Context, c *cluster.Cluster, namespace, kind, name string, verb lease.Kind) (*fault.Error, error) {
	var err error
	switch get := (metav1.GetOptions{}); kind {
	case lease.DaemonSet:
		_, err = c.Kube.AppsV1().DaemonSets(namespace).Get(ctx, name, get)
	case lease.CronJob:
		_, err = c.Kube.BatchV1().CronJobs(namespace).Get(ctx, name, get)
	case lease.Job:
		_, err = c.Kube.BatchV1().Jobs(namespace).Get(ctx, name, get)
	case lease.ReplicationController:
		_, err = c.Kube.CoreV1().ReplicationControllers(namespace).Get(ctx, name, get)
	case lease.Service:
		var s *corev1.Service
		if s, err = c.Kube.CoreV1().Services(namespace).Get(ctx, name, get); err == nil {
			return behind(ctx, c, s, verb), nil
		}
	case lease.Pod:
		var p *corev1.Pod
		if p, err = c.Kube.CoreV1().Pods(namespace).Get(ctx, name, get); err == nil {
			return controlled(ctx, c, p, verb), nil
		}
	}
	if err != nil {
		return nil, err
	}
	return refusal(namespace, kind, name), nil
}

func refusal(namespace, kind, name string) *fault.Error {
	return fault.New(fault.FailedPrecondition, "ctl list -n "+namespace, "%s/%s cannot be engaged: %s; %s can", kind, name, why(kind), some(Kinds))
}

func why(kind string) string {
	for _, r := range refused {
		if r.kind == kind {
			return r.why
		}
	}
	return "Berth does not know what controls pods like that"
}

// behind refuses a Service by the workloads that it leads to.
func behind(ctx context.Context, c *cluster.Cluster, s *corev1.Service, verb lease.Kind) *fault.Error {
	all, err := List(ctx, c, s.Namespace)
	if err != nil {
		return refusal(s.Namespace, lease.Service, s.Name)
	}
	var titles []string
	for _, w := range all {
		if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.Labels)) {
			titles = append(titles, w.Title())
		}
	}
	if len(titles) == 0 {
		return refusal(s.Namespace, lease.Service, s.Name)
	}
	return fault.New(fault.FailedPrecondition, instead(verb, titles[0]), "Service/%s is no workload, but leads to %s: engage that", s.Name, strings.Join(titles, ", "))
}

// controlled refuses a pod by the workload that controls it.
func controlled(ctx context.Context, c *cluster.Cluster, p *corev1.Pod, verb lease.Kind) *fault.Error {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return refusal(p.Namespace, lease.Pod, p.Name)
	}
	kind, name := owner.Kind, owner.Name
	if kind == lease.ReplicaSet {
		if w, err := get(ctx, c, p.Namespace, kind, name); err == nil && w.Owner != "" {
			kind, name, _ = strings.Cut(w.Owner, "/")
		}
	}
	title := kind + "/" + name
	if slices.Contains(Kinds, kind) {
		return fault.New(fault.FailedPrecondition, instead(verb, title), "Pod/%s belongs to %s: engage that one", p.Name, title)
	}
	return fault.New(fault.FailedPrecondition, "ctl list -n "+p.Namespace, "Pod/%s belongs to %s, which cannot be engaged: %s; %s can", p.Name, title, why(kind), some(Kinds))
}

// some lists kinds as alternatives, with the article of the first.
func some(kinds []string) string {
	return "a " + strings.Join(kinds[:len(kinds)-1], ", ") + " or " + kinds[len(kinds)-1]
}
