package engagement

import (
	"context"
	"fmt"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/inject"
	"berth.dev/services/manager/internal/swap"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// Patience with what may mend itself.
const (
	patienceImage    = 3 * time.Second  // a pull that failed once is named
	patienceSchedule = 10 * time.Second // an autoscaler would take longer, but says so in its events
	patienceCreate   = 3 * time.Second  // the controller that cannot create a pod tries again
	patienceCrash    = 10 * time.Second
	patienceArrive   = 12 * time.Second // from the agent's start to its arrival
)

// diagnose says why an engagement does not get on, once that has lasted too
// long to mend itself; nil while there is hope.
func (c *Controller) diagnose(ctx context.Context, k Key, w *workload, m *memory, e *engagement, s swap.State, pods map[string]*corev1.Pod) *failure {
	seen := map[string]bool{}
	lasts := func(what string, patience time.Duration) bool {
		seen[what] = true
		since, ok := m.trouble[what]
		if !ok {
			m.trouble[what] = time.Now()
			return false
		}
		return time.Since(since) >= patience
	}
	defer func() {
		for what := range m.trouble {
			if !seen[what] {
				delete(m.trouble, what)
			}
		}
	}()
	if !s.Swapped() {
		why := w.failure
		if k.Kind == lease.StatefulSet {
			why = c.createFailure(ctx, k, e)
		}
		if why != "" && lasts("create", patienceCreate) {
			return &failure{fmt.Sprintf("the cluster refuses the pod with the agent: %s", why), describe(k)}
		}
	}
	agent := e.spec.Container
	if e.status.Sidecar() {
		agent = inject.SidecarName(agent)
	}
	for _, p := range s.Pods {
		if p.Released || p.Deleting || p.Mark != s.Want || p.Arrived && p.Ready {
			continue
		}
		pod := pods[p.Name]
		hint := fmt.Sprintf("kubectl -n %s describe pod %s", k.Namespace, p.Name)
		if msg := unschedulable(pod); msg != "" && lasts("schedule "+p.Name, patienceSchedule) {
			return &failure{fmt.Sprintf("the new pod %s finds no node: %s", p.Name, msg), hint}
		}
		for _, cs := range append(append([]corev1.ContainerStatus{}, pod.Status.InitContainerStatuses...), pod.Status.ContainerStatuses...) {
			if f, patience := c.container(&cs, agent, p.Name, hint); f != nil && lasts(cs.Name+" "+p.Name, patience) {
				return f
			}
			if cs.Name == agent && cs.State.Running != nil && !p.Arrived && lasts("arrive "+p.Name, patienceArrive) {
				return &failure{fmt.Sprintf("the agent runs in pod %s but does not reach the manager: does a NetworkPolicy of namespace %s forbid it to connect to %s, port 8080?", p.Name, k.Namespace, c.view.namespace),
					fmt.Sprintf("kubectl -n %s logs %s -c %s", k.Namespace, p.Name, cs.Name)}
			}
		}
	}
	return nil
}

// container says what keeps a container from running; that of agentName is ours.
func (c *Controller) container(cs *corev1.ContainerStatus, agentName, pod, hint string) (*failure, time.Duration) {
	wait := cs.State.Waiting
	if wait == nil {
		return nil, 0
	}
	agent := cs.Name == agentName
	switch wait.Reason {
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ErrImageInspect":
		if agent {
			return &failure{fmt.Sprintf("the agent's image %s cannot be pulled for pod %s: %s", c.image, pod, wait.Message), "ctl install --image <an image that the nodes can pull>"}, patienceImage
		}
		return &failure{fmt.Sprintf("the image of container %s of pod %s cannot be pulled: %s", cs.Name, pod, wait.Message), hint}, patienceImage
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff":
		who := "container " + cs.Name
		if agent {
			who = "the agent"
		}
		return &failure{fmt.Sprintf("%s does not start in pod %s: %s: %s", who, pod, wait.Reason, wait.Message), hint}, patienceCrash
	}
	return nil, 0
}

func unschedulable(p *corev1.Pod) string {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && cond.Reason == corev1.PodReasonUnschedulable {
			return cond.Message
		}
	}
	return ""
}

// createFailure is why a StatefulSet could not create a pod since the
// engagement began: it has no condition for that, only events.
func (c *Controller) createFailure(ctx context.Context, k Key, e *engagement) string {
	list, err := c.client.CoreV1().Events(k.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.Set{
		"involvedObject.kind": k.Kind, "involvedObject.name": k.Name, "reason": "FailedCreate"}.String()})
	if err != nil {
		return ""
	}
	why, at := "", e.lease.CreationTimestamp.Time
	for _, ev := range list.Items {
		if t := ev.LastTimestamp.Time; !t.Before(at) {
			why, at = ev.Message, t
		}
	}
	return why
}
