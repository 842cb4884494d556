package engagement

import (
	"context"
	"fmt"
	"slices"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/swap"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// do takes one step of a plan. Each is one write to one object, conditional on
// the version that the plan was made from, and leaves on the object what is
// needed to go on from there.
func (c *Controller) do(ctx context.Context, k Key, w *workload, s swap.State, a swap.Action, p *corev1.Pod) error {
	c.log.Info("pod: "+string(a.Verb), "engagement", s.Want, "namespace", k.Namespace, "workload", k.Workload(), "pod", a.Pod)
	var err error
	switch a.Verb {
	case swap.Release:
		engagement := s.Want
		if engagement == "" {
			engagement = p.Labels[lease.LabelEngagement]
		}
		err = c.patch(ctx, p, map[string]any{w.release: nil, lease.LabelReleased: engagement},
			map[string]any{lease.AnnotationWorkload: k.Workload(), lease.AnnotationLabels: lease.Marshal(p.Labels)})
	case swap.Adopt:
		original, uerr := lease.Unmarshal[map[string]string](p.Annotations[lease.AnnotationLabels])
		if uerr != nil {
			return fmt.Errorf("adopt pod %s: %w", p.Name, uerr)
		}
		set := map[string]any{lease.LabelReleased: nil}
		for key, v := range original {
			set[key] = v
		}
		annotations := map[string]any{lease.AnnotationLabels: nil, annotationRetired: nil}
		if original[lease.LabelEngagement] == "" {
			annotations[lease.AnnotationWorkload] = nil
		}
		err = c.patch(ctx, p, set, annotations)
	case swap.Retire:
		err = c.patch(ctx, p, w.unselect(p.Labels), map[string]any{annotationRetired: time.Now().UTC().Format(time.RFC3339)})
	case swap.Delete:
		err = c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &p.UID, ResourceVersion: &p.ResourceVersion}})
		if err == nil {
			c.view.deleted(p)
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s pod %s: %w", a.Verb, a.Pod, err)
	}
	return nil
}

// patch changes labels and annotations; nil takes one off.
func (c *Controller) patch(ctx context.Context, p *corev1.Pod, labels, annotations map[string]any) error {
	meta := map[string]any{"resourceVersion": p.ResourceVersion}
	if labels != nil { // a null would take all of them off
		meta["labels"] = labels
	}
	if annotations != nil {
		meta["annotations"] = annotations
	}
	body := lease.Marshal(map[string]any{"metadata": meta})
	got, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "berth-manager"})
	if err != nil {
		return err
	}
	if t, err := trim(got); err == nil {
		c.view.wrote(t.(*corev1.Pod))
	}
	return nil
}

// unselect is the smallest change of labels after which no Service selects the
// pod: one label of each selector.
func (w *workload) unselect(set map[string]string) map[string]any {
	left := map[string]string{}
	for k, v := range set {
		left[k] = v
	}
	off := map[string]any{}
	for {
		selecting := w.selecting(left)
		if len(selecting) == 0 {
			return off
		}
		var keys []string
		for key := range selecting[0].Spec.Selector {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		off[keys[0]] = nil
		delete(left, keys[0])
	}
}

// reached reports whether the handler runs and its client can be reached, for
// which it may be away for a moment.
func (c *Controller) reached(k Key, e *engagement) bool {
	if !e.running() {
		return false
	}
	away, known := c.hub.VIFAway(e.spec.Connection)
	if known && away > 0 && away < clientGrace {
		c.queue.AddAfter(k, clientGrace-away+10*time.Millisecond)
	}
	return known && away < clientGrace
}
