package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/deploy/manifests"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	coordv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Uninstall restores every engagement and deletes everything that is Berth's.
// What is not there is not missed.
func (in *Installer) Uninstall(ctx context.Context, namespace, version string) error {
	// The image does not matter: names and kinds are what is deleted by.
	all, err := in.objects(manifests.Options{Namespace: namespace, Image: "berth-cluster:none", Version: version})
	if err != nil {
		return err
	}
	if err := in.releaseAll(ctx, namespace); err != nil {
		return err
	}
	slices.Reverse(all)
	// The webhook goes first: what comes after must not get an agent any more.
	slices.SortStableFunc(all, func(a, b object) int { return rank(a) - rank(b) })
	var gone []object
	for _, obj := range all {
		deleted, err := in.delete(ctx, obj)
		if err != nil {
			return err
		}
		if deleted {
			gone = append(gone, obj)
		}
		if obj.GetKind() == "MutatingWebhookConfiguration" {
			if err := in.replaceAgents(ctx); err != nil {
				return err
			}
		}
	}
	return in.awaitGone(ctx, gone)
}

// rank sorts the webhook first and the namespace last.
func rank(o object) int {
	switch o.GetKind() {
	case "MutatingWebhookConfiguration":
		return 0
	case "Namespace":
		return 2
	}
	return 1
}

// delete deletes an object, if it is ours.
func (in *Installer) delete(ctx context.Context, obj object) (bool, error) {
	have, err := obj.api.Get(ctx, obj.GetName(), metav1.GetOptions{})
	switch {
	case isGone(err):
		return false, nil
	case err != nil:
		return false, in.explain(err, obj.may("get"))
	case have.GetLabels()["app.kubernetes.io/part-of"] != "berth":
		return false, nil // of the same name by chance
	}
	policy := metav1.DeletePropagationBackground
	err = obj.api.Delete(ctx, obj.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
	if isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, in.explain(err, obj.may("delete"))
	}
	in.say(event.InstallationStep{Action: "deleted", Object: obj.String()})
	return true, nil
}

// awaitGone waits until the objects are gone, those of a deleted namespace with it.
func (in *Installer) awaitGone(ctx context.Context, objs []object) error {
	left := objs
	if len(left) == 0 {
		return nil
	}
	in.say(event.InstallationStep{Action: "waiting", Object: objs[len(objs)-1].String() + " to be gone"})
	return probe(ctx, goneTime, func(ctx context.Context) (bool, error) {
		for len(left) > 0 {
			_, err := left[0].api.Get(ctx, left[0].GetName(), metav1.GetOptions{})
			if err == nil {
				return false, nil
			}
			if !isGone(err) {
				return false, in.explain(err, left[0].may("get"))
			}
			left = left[1:]
		}
		return true, nil
	}, func() error {
		var names []string
		for _, o := range left {
			names = append(names, o.String())
		}
		return fault.New(fault.Unavailable, "kubectl get namespaces", "not gone after %v: %s", goneTime, strings.Join(names, ", "))
	})
}

// releaseAll asks the manager to restore every engaged workload, and waits. What
// the manager does not restore, since it is away, loses its Lease nevertheless;
// replaceAgents then takes the agents out of its pods.
func (in *Installer) releaseAll(ctx context.Context, namespace string) error {
	held, err := in.engagements(ctx)
	if err != nil || len(held) == 0 {
		return err
	}
	for _, l := range held {
		ref := cluster.Ref{Namespace: l.Namespace, Name: l.Name, UID: l.UID}
		if err := in.c.Annotate(ctx, ref, lease.AnnotationRelease, "uninstall"); err != nil && fault.CodeOf(err) != fault.NotFound {
			return err
		}
		in.say(event.InstallationStep{Action: "waiting", Object: fmt.Sprintf("Lease %s/%s to be restored", l.Namespace, l.Name)})
	}
	d, err := in.c.Kube.AppsV1().Deployments(namespace).Get(ctx, managerName, metav1.GetOptions{})
	if err == nil && d.Status.AvailableReplicas > 0 {
		err = probe(ctx, restoreTime, func(ctx context.Context) (bool, error) {
			held, err = in.engagements(ctx)
			return len(held) == 0, err
		}, func() error { return ctx.Err() }) // out of time is no failure here, ctx's end is
		if err != nil {
			return err
		}
	}
	for _, l := range held {
		if err := in.c.Drop(ctx, cluster.Ref{Namespace: l.Namespace, Name: l.Name, UID: l.UID}); err != nil {
			return err
		}
		in.say(event.InstallationStep{Action: "deleted", Object: fmt.Sprintf("Lease %s/%s", l.Namespace, l.Name)})
	}
	return nil
}

func (in *Installer) engagements(ctx context.Context) ([]coordv1.Lease, error) {
	l, err := in.c.Kube.CoordinationV1().Leases("").List(ctx, metav1.ListOptions{LabelSelector: lease.LabelKind + "=" + lease.KindEngagement})
	if err != nil {
		return nil, in.explain(err, cluster.Right{Verb: "list", Group: "coordination.k8s.io", Resource: "leases in all namespaces"})
	}
	return l.Items, nil
}

// replaceAgents deletes the pods in which an agent is left, now that no webhook
// would put one into their replacements, and those that a swap took out of their
// ReplicaSet.
func (in *Installer) replaceAgents(ctx context.Context) error {
	for _, label := range []string{lease.LabelEngagement, lease.LabelReleased} {
		pods, err := in.c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: label})
		if err != nil {
			return in.explain(err, cluster.Right{Verb: "list", Resource: "pods in all namespaces"})
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			err := in.c.Kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
			if err != nil && !isGone(err) {
				return in.explain(err, cluster.Right{Verb: "delete", Resource: "pods", Name: p.Name, Namespace: p.Namespace})
			}
			in.say(event.InstallationStep{Action: "deleted", Object: fmt.Sprintf("Pod %s/%s", p.Namespace, p.Name)})
		}
	}
	return nil
}
