// Package workload finds what can be engaged: Deployments, StatefulSets and
// ReplicaSets, their containers and ports.
//
// Lookups answer with faults that name the alternatives: an unknown workload
// with the nearest names, a container that was not named with the list of them.
// The choice of containers and ports is pure.
package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"
)

// Kinds lists those that can be engaged in the order in which a bare name is
// looked up.
var Kinds = []string{lease.Deployment, lease.StatefulSet, lease.ReplicaSet}

// resourceOf is the API resource of a kind.
func resourceOf(kind string) string { return strings.ToLower(kind) + "s" }

// Workload is one of them.
type Workload struct {
	Kind, Name, Namespace string
	Replicas, Ready       int32 // wanted, ready
	Containers            []corev1.Container
	Sidecars              []corev1.Container // init containers that stay: a Service may lead to them
	Volumes               []corev1.Volume
	Owner                 string            // kind/name of the workload that controls it
	Labels                map[string]string // of its pods
	Paused                bool              // a Deployment that was paused before it had a ReplicaSet: nobody creates a pod
}

// Title is kind/name.
func (w Workload) Title() string { return w.Kind + "/" + w.Name }

// ContainerNames are those of its app containers.
func (w Workload) ContainerNames() []string {
	var n []string
	for _, c := range w.Containers {
		n = append(n, c.Name)
	}
	return n
}

// Obstacle says why w cannot be engaged, nil where it can. verb is the kind of
// engagement, for the command that helps.
func (w Workload) Obstacle(verb lease.Kind) *fault.Error {
	switch {
	case w.Owner != "":
		return fault.New(fault.FailedPrecondition, instead(verb, w.Owner), "%s belongs to %s: engage that one", w.Title(), w.Owner)
	case w.Replicas == 0:
		return fault.New(fault.FailedPrecondition, fmt.Sprintf("kubectl scale %s --replicas 1 -n %s", strings.ToLower(w.Title()), w.Namespace), "%s is scaled to 0: it has no pod to engage", w.Title())
	case w.Paused:
		return fault.New(fault.FailedPrecondition, fmt.Sprintf("kubectl rollout resume %s -n %s", strings.ToLower(w.Title()), w.Namespace), "%s is paused, and was so before it had a pod: nobody creates one", w.Title())
	}
	return nil
}

// instead is the command that engages another workload.
func instead(verb lease.Kind, title string) string { return "ctl " + string(verb) + " " + title }

// Find looks up [kind/]name, with the kind as kubectl takes it, for an engagement
// of the kind verb.
func Find(ctx context.Context, c *cluster.Cluster, namespace, ref string, verb lease.Kind) (Workload, error) {
	kinds, name := Kinds, ref
	if k, n, ok := strings.Cut(ref, "/"); ok {
		kind, known := lease.KindOf(k)
		if !known {
			return Workload{}, fault.New(fault.InvalidArgument, "ctl list -n "+namespace, "%q is no kind of workload that can be engaged, which are: %s", k, strings.Join(Kinds, ", "))
		}
		if !slices.Contains(Kinds, kind) {
			return Workload{}, refuse(ctx, c, namespace, kind, n, verb)
		}
		kinds, name = []string{kind}, n
	}
	found := make([]*Workload, len(kinds))
	errs := make([]error, len(kinds))
	var g errgroup.Group
	for i, kind := range kinds {
		g.Go(func() error {
			w, err := get(ctx, c, namespace, kind, name)
			if err == nil {
				found[i] = &w
			} else if !apierrors.IsNotFound(err) {
				errs[i] = cluster.Explain(err, c.Server, "", cluster.Right{Verb: "get", Group: "apps", Resource: resourceOf(kind), Namespace: namespace})
			}
			return nil
		})
	}
	_ = g.Wait()
	found = slices.DeleteFunc(found, func(w *Workload) bool { return w == nil })
	switch {
	case len(found) == 1:
		return *found[0], nil
	case len(found) > 1:
		var titles []string
		for _, w := range found {
			titles = append(titles, w.Title())
		}
		return Workload{}, fault.New(fault.InvalidArgument, instead(verb, titles[0]), "%s is ambiguous in the namespace %s: %s", name, namespace, strings.Join(titles, ", "))
	}
	for _, err := range errs {
		if err != nil {
			return Workload{}, err
		}
	}
	if len(kinds) > 1 {
		if f := other(ctx, c, namespace, name, verb); f != nil {
			return Workload{}, f
		}
	}
	return Workload{}, unknown(ctx, c, namespace, name, kinds)
}

func unknown(ctx context.Context, c *cluster.Cluster, namespace, name string, kinds []string) error {
	hint := "ctl list -n " + namespace
	what := strings.Join(kinds, ", ")
	all, err := List(ctx, c, namespace)
	if err != nil || len(all) == 0 {
		return fault.New(fault.NotFound, hint, "the namespace %s has no %s named %s", namespace, what, name)
	}
	var names []string
	for _, w := range all {
		if len(kinds) == 1 && w.Name == name { // of another kind
			return fault.New(fault.NotFound, hint, "the namespace %s has no %s named %s, but %s", namespace, what, name, w.Title())
		}
		names = append(names, w.Name)
	}
	return fault.New(fault.NotFound, hint, "the namespace %s has no %s named %s; near it: %s", namespace, what, name, strings.Join(Nearest(name, names, 3), ", "))
}

func get(ctx context.Context, c *cluster.Cluster, namespace, kind, name string) (Workload, error) {
	apps := c.Kube.AppsV1()
	switch kind {
	case lease.Deployment:
		d, err := apps.Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return Workload{}, err
		}
		w := fromDeployment(d)
		if d.Spec.Paused {
			// Who may not see them has it engaged: the manager looks too.
			sets, err := apps.ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
			w.Paused = err == nil && !hasReplicaSet(d, sets.Items)
		}
		return w, nil
	case lease.StatefulSet:
		s, err := apps.StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return Workload{}, err
		}
		return fromStatefulSet(s), nil
	default:
		r, err := apps.ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return Workload{}, err
		}
		return fromReplicaSet(r), nil
	}
}

// List returns the workloads of a namespace by name, without ReplicaSets that
// belong to another workload. A kind that the user may not list is left out,
// unless that leaves none.
func List(ctx context.Context, c *cluster.Cluster, namespace string) ([]Workload, error) {
	apps := c.Kube.AppsV1()
	var lists [3][]Workload
	var paused []*appsv1.Deployment
	var sets []appsv1.ReplicaSet
	var errs [3]error
	var g errgroup.Group
	g.Go(func() error {
		l, err := apps.Deployments(namespace).List(ctx, metav1.ListOptions{})
		if errs[0] = err; err == nil {
			for i := range l.Items {
				lists[0] = append(lists[0], fromDeployment(&l.Items[i]))
				if l.Items[i].Spec.Paused {
					paused = append(paused, &l.Items[i])
				}
			}
		}
		return nil
	})
	g.Go(func() error {
		l, err := apps.StatefulSets(namespace).List(ctx, metav1.ListOptions{})
		if errs[1] = err; err == nil {
			for i := range l.Items {
				lists[1] = append(lists[1], fromStatefulSet(&l.Items[i]))
			}
		}
		return nil
	})
	g.Go(func() error {
		l, err := apps.ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
		if errs[2] = err; err == nil {
			sets = l.Items
			for i := range l.Items {
				if w := fromReplicaSet(&l.Items[i]); w.Owner == "" {
					lists[2] = append(lists[2], w)
				}
			}
		}
		return nil
	})
	_ = g.Wait()
	failed := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed++
		if failed == len(errs) || !apierrors.IsForbidden(err) {
			return nil, cluster.Explain(err, c.Server, "", cluster.Right{Verb: "list", Group: "apps", Resource: resourceOf(Kinds[i]), Namespace: namespace})
		}
	}
	for _, d := range paused {
		i := slices.IndexFunc(lists[0], func(w Workload) bool { return w.Name == d.Name })
		lists[0][i].Paused = errs[2] == nil && !hasReplicaSet(d, sets)
	}
	all := slices.Concat(lists[0], lists[1], lists[2])
	slices.SortStableFunc(all, func(a, b Workload) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func fromDeployment(d *appsv1.Deployment) Workload {
	return from(lease.Deployment, d, d.Spec.Replicas, d.Status.ReadyReplicas, d.Spec.Template)
}

func fromStatefulSet(s *appsv1.StatefulSet) Workload {
	return from(lease.StatefulSet, s, s.Spec.Replicas, s.Status.ReadyReplicas, s.Spec.Template)
}

func fromReplicaSet(r *appsv1.ReplicaSet) Workload {
	return from(lease.ReplicaSet, r, r.Spec.Replicas, r.Status.ReadyReplicas, r.Spec.Template)
}

func from(kind string, o metav1.Object, replicas *int32, ready int32, t corev1.PodTemplateSpec) Workload {
	w := Workload{
		Kind: kind, Name: o.GetName(), Namespace: o.GetNamespace(), Replicas: wanted(replicas), Ready: ready,
		Containers: t.Spec.Containers, Volumes: t.Spec.Volumes, Owner: owner(o), Labels: t.Labels,
	}
	for _, c := range t.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			w.Sidecars = append(w.Sidecars, c)
		}
	}
	return w
}

// hasReplicaSet reports whether one of sets is the Deployment's.
func hasReplicaSet(d *appsv1.Deployment, sets []appsv1.ReplicaSet) bool {
	return slices.ContainsFunc(sets, func(r appsv1.ReplicaSet) bool { return metav1.IsControlledBy(&r, d) })
}

// wanted: the API's default is one.
func wanted(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// owner is the controlling workload. Owners of other kinds (an operator's
// resource) do not stand in the way.
func owner(o metav1.Object) string {
	if ref := metav1.GetControllerOf(o); ref != nil {
		if slices.Contains(Kinds, ref.Kind) {
			return ref.Kind + "/" + ref.Name
		}
	}
	return ""
}
