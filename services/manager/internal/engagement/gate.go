package engagement

import (
	"context"
	"fmt"
	"slices"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/inject"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// gatePatience is how long a pod is kept from its Services for want of its agent.
const gatePatience = 30 * time.Second

// gated reports whether a pod waits for us to be Ready.
func gated(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || !slices.ContainsFunc(p.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool { return g.ConditionType == inject.Gate }) {
		return false
	}
	return !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == inject.Gate && c.Status == corev1.ConditionTrue
	})
}

// gates lets those new pods of a workload become Ready that may: whose traffic is
// diverted as far as it is to be, so that none of it comes to the app before. A
// pod whose agent does not come is let be after a while: whatever is wrong with
// us must not stop a rollout.
func (c *Controller) gates(ctx context.Context, k Key, m *memory, live []*engagement, pods map[string]*corev1.Pod, agents map[string][]*hub.Agent) error {
	waits := m.patience("gates")
	defer waits.forget()
	for _, p := range pods {
		if !gated(p) {
			continue
		}
		why := "nothing is to be diverted"
		for _, e := range live {
			if !e.spec.Kind.Diverts() || !c.reached(k, e) {
				continue
			}
			why = "traffic is diverted"
			a := pick(agents[string(p.UID)], e)
			if a != nil {
				if s, problem, ok := serves(a, e.spec.ID); ok && problem == "" && len(s.Divert) == len(e.spec.Ports) {
					continue
				}
			}
			if containersReady(p) && waits.lasts(string(p.UID), gatePatience) {
				c.log.Warn("a new pod becomes Ready without its agent", "engagement", e.spec.ID, "pod", p.Name)
				why = "its agent did not come"
				break
			}
			why = ""
			break
		}
		if why == "" {
			continue
		}
		body := lease.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": map[string]any{"conditions": []any{map[string]any{
			"type": inject.Gate, "status": "True", "reason": "Berth", "message": why, "lastTransitionTime": metav1.Now()}}}})
		got, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "berth-manager"}, "status")
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			continue
		case err != nil:
			return fmt.Errorf("let pod %s become Ready: %w", p.Name, err)
		}
		if t, err := trim(got); err == nil {
			c.view.wrote(t.(*corev1.Pod))
		}
	}
	return nil
}

func containersReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.ContainersReady && c.Status == corev1.ConditionTrue
	})
}
