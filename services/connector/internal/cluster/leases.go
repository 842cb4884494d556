package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/lease"

	coordv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// FieldManager names Berth in the objects it writes.
const FieldManager = "berth"

// Ref names one Lease, and not another that has come by the same name since.
type Ref struct {
	Namespace, Name string
	UID             types.UID
}

func leaseRight(verb, namespace string) Right {
	return Right{Verb: verb, Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace}
}

// HoldConnection creates the Lease of a connection. One that is there with the
// same name is of the same connection (the name holds its id) and is replaced.
func (c *Cluster) HoldConnection(ctx context.Context, namespace, id string, spec lease.ConnectionSpec) (Ref, error) {
	l := newLease(lease.ConnectionName(id), namespace, spec.Client, map[string]string{
		lease.LabelKind: lease.KindConnection, lease.LabelConnection: id,
	}, lease.Marshal(spec))
	api := c.Kube.CoordinationV1().Leases(namespace)
	got, err := api.Create(ctx, l, metav1.CreateOptions{FieldManager: FieldManager})
	if apierrors.IsAlreadyExists(err) {
		if err := api.Delete(ctx, l.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return Ref{}, c.explain(err, leaseRight("delete", namespace))
		}
		got, err = api.Create(ctx, l, metav1.CreateOptions{FieldManager: FieldManager})
	}
	if err != nil {
		return Ref{}, c.explain(err, leaseRight("create", namespace))
	}
	return Ref{namespace, got.Name, got.UID}, nil
}

// HoldEngagement creates the Lease that engages a container. Where it is
// engaged already the fault says by whom and since when. The resource version
// returned is where a Watch begins.
func (c *Cluster) HoldEngagement(ctx context.Context, namespace string, spec lease.EngagementSpec) (Ref, string, error) {
	name := spec.LeaseName()
	l := newLease(name, namespace, spec.Client, map[string]string{
		lease.LabelKind: lease.KindEngagement, lease.LabelConnection: spec.Connection, lease.LabelEngagement: spec.ID,
	}, lease.Marshal(spec))
	api := c.Kube.CoordinationV1().Leases(namespace)
	got, err := api.Create(ctx, l, metav1.CreateOptions{FieldManager: FieldManager})
	if apierrors.IsAlreadyExists(err) {
		return Ref{}, "", c.heldBy(ctx, namespace, name, spec)
	}
	if err != nil {
		return Ref{}, "", c.explain(err, leaseRight("create", namespace))
	}
	return Ref{namespace, got.Name, got.UID}, got.ResourceVersion, nil
}

func (c *Cluster) heldBy(ctx context.Context, namespace, name string, spec lease.EngagementSpec) error {
	what := fmt.Sprintf("the container %s of %s %s", spec.Container, spec.WorkloadKind, spec.Workload)
	hint := "ctl list"
	l, err := c.Kube.CoordinationV1().Leases(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fault.New(fault.AlreadyExists, hint, "%s is engaged already", what)
	}
	holder, since := "someone", l.CreationTimestamp.Time
	if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" {
		holder = *l.Spec.HolderIdentity
	}
	held, err := lease.Unmarshal[lease.EngagementSpec](l.Annotations[lease.AnnotationSpec])
	if err == nil && held.Connection == spec.Connection {
		hint = "ctl leave " + spec.Workload
	}
	if l.Annotations[lease.AnnotationRelease] != "" {
		return fault.New(fault.AlreadyExists, "ctl list", "%s is still being restored from the engagement of %s; try again in a moment", what, holder)
	}
	return fault.New(fault.AlreadyExists, hint, "%s is engaged by %s since %s (%v ago)", what, holder, since.UTC().Format(time.RFC3339), time.Since(since).Round(time.Second))
}

// Conflict is the fault that an engagement would meet which another one
// excludes, nil if there is none. Two that begin at once both meet none: then it
// is the manager who refuses one of them.
func (c *Cluster) Conflict(ctx context.Context, namespace string, spec lease.EngagementSpec) error {
	if spec.Kind == lease.Ingest {
		return nil // disturbs nobody
	}
	list, err := c.Kube.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{LabelSelector: lease.LabelKind + "=" + lease.KindEngagement, ResourceVersion: "0"})
	if err != nil {
		return c.explain(err, leaseRight("list", namespace))
	}
	for _, l := range list.Items {
		held, err := lease.Unmarshal[lease.EngagementSpec](l.Annotations[lease.AnnotationSpec])
		if err != nil || held.WorkloadKind != spec.WorkloadKind || held.Workload != spec.Workload || l.Annotations[lease.AnnotationRelease] != "" {
			continue
		}
		if what, ok := excludes(held, spec); ok {
			hint := "ctl list"
			if held.Connection == spec.Connection {
				hint = "ctl leave " + spec.Workload
			}
			return fault.New(fault.AlreadyExists, hint, "%s of %s %s is engaged by %s since %s (%v ago)", what, spec.WorkloadKind, spec.Workload, held.Client,
				l.CreationTimestamp.UTC().Format(time.RFC3339), time.Since(l.CreationTimestamp.Time).Round(time.Second))
		}
	}
	return nil
}

// excludes says what of held stands in the way of spec. Two replaces of one
// container meet in the Lease's name.
func excludes(held, spec lease.EngagementSpec) (what string, ok bool) {
	switch {
	case held.Kind == lease.Ingest || held.Kind == lease.Replace && spec.Kind == lease.Replace:
		return "", false
	case held.Kind == lease.Replace:
		return "the container " + held.Container, true
	case spec.Kind == lease.Replace:
		return "a port", true
	}
	return lease.Clash(held, spec)
}

func newLease(name, namespace, holder string, labels map[string]string, spec string) *coordv1.Lease {
	now, seconds := metav1.NowMicro(), int32(lease.Duration.Seconds())
	return &coordv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels, Annotations: map[string]string{lease.AnnotationSpec: spec}},
		Spec:       coordv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now},
	}
}

// Renew says that the holder lives. A Lease that is gone is a NotFound fault.
func (c *Cluster) Renew(ctx context.Context, r Ref) error {
	return c.patch(ctx, r, map[string]any{"spec": map[string]any{"renewTime": metav1.NowMicro()}})
}

// Annotate sets an annotation.
func (c *Cluster) Annotate(ctx context.Context, r Ref, key, value string) error {
	return c.patch(ctx, r, map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}})
}

// patch merges body into the Lease, but only into the one that r names: a
// different UID is answered with a conflict, which means that ours is gone.
func (c *Cluster) patch(ctx context.Context, r Ref, body map[string]any) error {
	if r.UID != "" {
		md, _ := body["metadata"].(map[string]any)
		if md == nil {
			md = map[string]any{}
			body["metadata"] = md
		}
		md["uid"] = r.UID
	}
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("marshal patch: %w", err)
	}
	_, err = c.Kube.CoordinationV1().Leases(r.Namespace).Patch(ctx, r.Name, types.MergePatchType, b, metav1.PatchOptions{FieldManager: FieldManager})
	if apierrors.IsConflict(err) {
		return fault.New(fault.NotFound, "", "the lease %s is another one by now", r.Name)
	}
	return c.explain(err, leaseRight("patch", r.Namespace))
}

// Drop deletes the Lease; one that is gone is no error.
func (c *Cluster) Drop(ctx context.Context, r Ref) error {
	opts := metav1.DeleteOptions{}
	if r.UID != "" {
		opts.Preconditions = &metav1.Preconditions{UID: &r.UID}
	}
	err := c.Kube.CoordinationV1().Leases(r.Namespace).Delete(ctx, r.Name, opts)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return c.explain(err, leaseRight("delete", r.Namespace))
}

// Watch calls seen with every version of the Lease from the resource version on,
// and with nil once when it is gone; then, or when ctx ends, it returns. What
// the watch misses while the API server is away is caught up with by a get.
func (c *Cluster) Watch(ctx context.Context, r Ref, version string, seen func(*coordv1.Lease)) {
	api := c.Kube.CoordinationV1().Leases(r.Namespace)
	for ctx.Err() == nil {
		if version == "" {
			l, err := api.Get(ctx, r.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err), err == nil && l.UID != r.UID:
				seen(nil)
				return
			case err != nil:
				pause(ctx, time.Second)
				continue
			}
			seen(l)
			version = l.ResourceVersion
		}
		w, err := api.Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", r.Name).String(), ResourceVersion: version,
		})
		if err != nil {
			// No right to watch, or no API server: asking does as well.
			version = ""
			pause(ctx, time.Second)
			continue
		}
		gone := follow(ctx, w, r, seen)
		w.Stop()
		if gone {
			seen(nil)
			return
		}
		version = ""
	}
}

// follow reads a watch until it ends; gone tells that the Lease is.
func follow(ctx context.Context, w watch.Interface, r Ref, seen func(*coordv1.Lease)) (gone bool) {
	for {
		select {
		case <-ctx.Done():
			return false
		case ev, ok := <-w.ResultChan():
			if !ok || ev.Type == watch.Error {
				return false
			}
			l, ok := ev.Object.(*coordv1.Lease)
			if !ok || l.Name != r.Name {
				continue
			}
			if ev.Type == watch.Deleted || l.UID != r.UID {
				return true
			}
			seen(l)
		}
	}
}

// pause waits between two attempts at an API server that does not answer.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
