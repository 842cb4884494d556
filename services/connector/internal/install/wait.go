package install

import (
	"context"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/deploy/manifests"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// managerName is that of the Deployment and of the webhook (see deploy/manifests).
const managerName = "berth-manager"

// probe calls f until it is done, fails, or the time is over; then it fails with
// what late says.
func probe(ctx context.Context, limit time.Duration, f func(context.Context) (done bool, err error), late func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		done, err := f(ctx)
		if done || err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return late()
		}
	}
}

// notTerminating waits for a namespace that is being deleted to be gone: nothing
// can be created in it.
func (in *Installer) notTerminating(ctx context.Context, namespace string) error {
	said := false
	return probe(ctx, goneTime, func(ctx context.Context) (bool, error) {
		ns, err := in.c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err != nil || ns.DeletionTimestamp == nil {
			return true, nil // what else is wrong, applying will tell
		}
		if !said {
			said = true
			in.say(event.InstallationStep{Action: "waiting", Object: "Namespace " + namespace + " to be gone"})
		}
		return false, nil
	}, func() error {
		return fault.New(fault.FailedPrecondition, "kubectl get namespace "+namespace+" -o yaml", "the namespace %s is being deleted, and is not gone after %v", namespace, goneTime)
	})
}

// renew deletes pods of an earlier attempt that could not start. Whatever kept them
// from it may be mended by now, an image loaded: kubelet would look only after
// some minutes, and what it says until then is of that time.
func (in *Installer) renew(ctx context.Context, namespace string) error {
	api := in.c.Kube.CoreV1().Pods(namespace)
	pods, err := api.List(ctx, metav1.ListOptions{LabelSelector: lease.ManagerSelector})
	if err != nil {
		return in.explain(err, cluster.Right{Verb: "list", Resource: "pods", Namespace: namespace})
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if _, hopeless := podState(p); !hopeless || p.DeletionTimestamp != nil {
			continue
		}
		now := int64(0) // nothing of it runs
		err := api.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
		switch {
		case isGone(err) || apierrors.IsConflict(err):
		case apierrors.IsForbidden(err):
			return nil // it is a help only; waiting says what keeps the pod
		case err != nil:
			return in.explain(err, cluster.Right{Verb: "delete", Resource: "pods", Namespace: namespace})
		default:
			in.say(event.InstallationStep{Action: "deleted", Object: fmt.Sprintf("Pod %s/%s, which could not start", namespace, p.Name)})
		}
	}
	return nil
}

// available waits for the Deployment's new pods, and gives up early where they
// cannot come.
func (in *Installer) available(ctx context.Context, namespace string) error {
	last := "no pod has been created"
	return probe(ctx, availableTime, func(ctx context.Context) (bool, error) {
		d, err := in.c.Kube.AppsV1().Deployments(namespace).Get(ctx, managerName, metav1.GetOptions{})
		if err != nil {
			return false, in.explain(err, cluster.Right{Verb: "get", Group: "apps", Resource: "deployments", Name: managerName, Namespace: namespace})
		}
		if rolledOut(d) {
			return true, nil
		}
		if why := refusedPods(d); why != "" {
			return false, fault.New(fault.FailedPrecondition, "kubectl get events -n "+namespace, "the manager's pod cannot be created: %s", why)
		}
		pods, err := in.c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: lease.ManagerSelector})
		if err != nil {
			return false, in.explain(err, cluster.Right{Verb: "list", Resource: "pods", Namespace: namespace})
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.DeletionTimestamp != nil {
				continue
			}
			state, hopeless := podState(p)
			if state != "" {
				last = state
			}
			if hopeless {
				return false, fault.New(fault.FailedPrecondition, fmt.Sprintf("kubectl describe pod %s -n %s", p.Name, namespace), "%s", state)
			}
		}
		return false, nil
	}, func() error {
		return fault.New(fault.Unavailable, fmt.Sprintf("kubectl describe pods -n %s -l %s", namespace, lease.ManagerSelector), "the manager is not available after %v: %s", availableTime, last)
	})
}

func rolledOut(d *appsv1.Deployment) bool {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want
}

// refusedPods is why no pod may be created: a quota, a policy.
func refusedPods(d *appsv1.Deployment) string {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	return ""
}

// podState says in a sentence what keeps a pod, and whether it is hopeless.
func podState(p *corev1.Pod) (state string, hopeless bool) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("the pod %s finds no node: %s", p.Name, c.Message), false // a node may come
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		w := c.State.Waiting
		switch {
		case w == nil && c.State.Running != nil && !c.Ready:
			state = fmt.Sprintf("the pod %s runs, but is not ready", p.Name)
		case w == nil:
		case w.Reason == "ErrImageNeverPull", w.Reason == "InvalidImageName", w.Reason == "ImagePullBackOff":
			return fmt.Sprintf("the node cannot get the image %s (%s): %s; load it into the cluster, or name one that it can pull with --image", c.Image, w.Reason, brief(w.Message)), true
		case w.Reason == "CreateContainerConfigError", w.Reason == "CreateContainerError":
			return fmt.Sprintf("the pod %s cannot be started (%s): %s", p.Name, w.Reason, brief(w.Message)), true
		case w.Reason == "CrashLoopBackOff":
			why := "see its log"
			if t := c.LastTerminationState.Terminated; t != nil {
				why = fmt.Sprintf("exit code %d %s", t.ExitCode, brief(t.Message))
			}
			return fmt.Sprintf("the manager in the pod %s ends again and again: %s", p.Name, why), c.RestartCount >= 3
		case w.Reason != "":
			state = fmt.Sprintf("the pod %s waits: %s %s", p.Name, w.Reason, brief(w.Message))
		}
	}
	return state, false
}

// brief is the first line of a message, of a length that fits a sentence.
func brief(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}

// answers waits for what the manager publishes of itself.
func (in *Installer) answers(ctx context.Context, o manifests.Options, anyVersion bool) (event.Installed, error) {
	var done event.Installed
	why := "the manager has not published itself"
	err := probe(ctx, webhookTime, func(ctx context.Context) (bool, error) {
		info, err := in.c.Info(ctx, o.Namespace)
		switch {
		case fault.CodeOf(err) == fault.FailedPrecondition: // not published yet
			return false, nil
		case err != nil:
			return false, err
		case !anyVersion && info.Version != o.Version:
			why = fmt.Sprintf("the manager says that its version is %s, and not %s", info.Version, o.Version)
			return false, nil
		case info.Webhook != "ok":
			why = "the manager's admission webhook is not reached by the API server: " + info.Webhook
			if info.Webhook == "" {
				why = "the manager has not finished the self-test of its webhook"
			}
			return false, nil
		}
		done = event.Installed{Namespace: o.Namespace, Version: info.Version, Webhook: info.Webhook}
		return true, nil
	}, func() error {
		return fault.New(fault.FailedPrecondition, fmt.Sprintf("kubectl logs -n %s deployment/%s", o.Namespace, managerName), "%s", why)
	})
	return done, err
}

// isGone reports whether err says that an object is not there.
func isGone(err error) bool { return apierrors.IsNotFound(err) }
