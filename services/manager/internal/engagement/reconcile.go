package engagement

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/inject"
	"berth.dev/services/manager/internal/swap"

	corev1 "k8s.io/api/core/v1"
)

func cut(workload string) (kind, name string, ok bool) { return strings.Cut(workload, "/") }

// failure ends an engagement that cannot be made, with words for its user.
type failure struct{ message, hint string }

func (f *failure) Error() string { return f.message }

// reconcile takes the next steps for one workload.
func (c *Controller) reconcile(ctx context.Context, k Key) error {
	m := c.remember(k)
	engs := c.view.engagements(k.Namespace, func(e *engagement) bool { return e.key() == k })
	if err := c.endBeside(ctx, engs, m); err != nil {
		return err
	}
	w, err := resolve(ctx, c.client, k)
	if errors.Is(err, errKind) {
		for _, e := range engs {
			if err := c.fail(ctx, e, &failure{message: err.Error(), hint: "ctl list"}); err != nil {
				return err
			}
		}
		w, err = nil, nil
	}
	if err != nil {
		return err
	}
	e, beside, err := c.elect(ctx, k, w, engs)
	if err != nil {
		return err
	}
	if w == nil {
		w = &workload{method: swap.Surge} // gone: what bridges for it goes too
	}
	pods := c.podsOf(k, w)
	sidecars := sidecarsOf(beside)
	s := c.state(k, w, m, e, sidecars, pods)
	s.Overdue = e == nil && c.overdue(engs, m, s, pods)
	calm, err := c.besides(ctx, k, w, m, beside, s, pods)
	if err != nil {
		return err
	}
	// On whose behalf pods are exchanged.
	lead := e
	for _, b := range beside {
		if lead == nil && b.status.Sidecar() {
			lead = b
		}
	}
	if lead != nil {
		if err := c.admit(ctx, m, lead, s, pods); err != nil {
			return err
		}
		if lead.status.Phase == lease.Failed {
			c.queue.Add(k) // once more, now to take it back
			return nil
		}
	}
	if plan := swap.Plan(s); len(plan) > 0 {
		for _, a := range plan {
			if err := c.do(ctx, k, w, s, a, pods[a.Pod]); err != nil {
				return err
			}
		}
		c.queue.Add(k) // judge by what has become of it
		return nil
	}
	if err := c.judge(ctx, k, w, m, e, s, pods); err != nil {
		return err
	}
	if err := c.restored(ctx, engs, m, s, pods); err != nil {
		return err
	}
	if calm && s.Done() && len(m.trouble) == 0 && !bridging(s) && (e == nil || e.status.Phase == lease.Active) {
		c.settle(k, m, len(engs) == 0)
	} else if len(engs) == 0 && len(pods) == 0 {
		c.settle(k, m, true)
	}
	return nil
}

func bridging(s swap.State) bool {
	return slices.ContainsFunc(s.Pods, func(p swap.Pod) bool { return p.Released && !p.Deleting })
}

// elect returns the engagement that the workload's pods shall have, and those
// that have agents beside its containers; it fails those that cannot be.
func (c *Controller) elect(ctx context.Context, k Key, w *workload, engs []*engagement) (*engagement, []*engagement, error) {
	r := arbitrate(engs)
	for e, why := range r.refused {
		if err := c.fail(ctx, e, &failure{why, "ctl list"}); err != nil {
			return nil, nil, err
		}
	}
	var beside []*engagement
	for _, e := range r.beside {
		if f := check(k, w, e); f != nil {
			if err := c.fail(ctx, e, f); err != nil {
				return nil, nil, err
			}
			continue
		}
		beside = append(beside, e)
	}
	if r.replace == nil {
		return nil, beside, nil
	}
	if err := check(k, w, r.replace); err != nil {
		return nil, beside, c.fail(ctx, r.replace, err)
	}
	return r.replace, beside, nil
}

// check finds what makes an engagement impossible from the start.
func check(k Key, w *workload, e *engagement) *failure {
	switch {
	case w == nil || w.template == nil:
		return &failure{fmt.Sprintf("there is no %s %q in namespace %s", k.Kind, k.Name, k.Namespace), "ctl list"}
	case e.spec.Kind.Diverts() && len(e.spec.Ports) == 0:
		return &failure{"no port is given for the " + string(e.spec.Kind), "ctl " + string(e.spec.Kind) + " " + e.spec.Workload + " --port PORT"}
	case e.spec.Kind != lease.Replace && !e.spec.Beside():
		return &failure{fmt.Sprintf("this manager does not know engagements of kind %q", e.spec.Kind), "ctl install"}
	}
	if f := podless(k, w); f != nil && !e.reached() {
		return f
	}
	if _, err := e.spec.Filter.Normal(); err != nil {
		return &failure{err.Error(), "ctl intercept --help"}
	}
	var names []string
	for _, ctr := range w.template.Spec.Containers {
		if ctr.Name == e.spec.Container {
			return nil
		}
		names = append(names, ctr.Name)
	}
	return &failure{fmt.Sprintf("%s has no container %q: it has %s", k.Workload(), e.spec.Container, strings.Join(names, ", ")), "ctl list"}
}

// podless says why there is no pod to engage, nor will be one by itself. Where an
// engagement was made already it is no reason to end it: it waits for the next pod.
func podless(k Key, w *workload) *failure {
	what := strings.ToLower(k.Workload())
	switch {
	case w.replicas == 0:
		return &failure{k.Workload() + " is scaled to 0: it has no pod to engage", fmt.Sprintf("kubectl -n %s scale %s --replicas=1", k.Namespace, what)}
	case w.paused:
		return &failure{k.Workload() + " is paused, and was so before it had a pod: nobody creates one", fmt.Sprintf("kubectl -n %s rollout resume %s", k.Namespace, what)}
	}
	return nil
}

func (c *Controller) fail(ctx context.Context, e *engagement, f *failure) error {
	s := e.status
	s.Phase, s.Error, s.Hint = lease.Failed, f.message, f.hint
	return c.setStatus(ctx, e, s)
}

// podsOf are the workload's pods by name, bridging ones included, ended ones not.
func (c *Controller) podsOf(k Key, w *workload) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, p := range c.view.podsIn(k.Namespace) {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && w.owns(k, p) {
			out[p.Name] = p
		}
	}
	return out
}

// state is the planner's view of the workload.
func (c *Controller) state(k Key, w *workload, m *memory, e *engagement, sidecars []inject.Sidecar, pods map[string]*corev1.Pod) swap.State {
	s := swap.State{Method: w.method, Ordered: w.ordered, First: w.first, Replicas: w.replicas}
	// Until the handler has the traffic the app is behind the agents.
	needed := e != nil && !c.switched(e)
	var arrived func(uid string) bool
	if e != nil {
		s.Want = e.spec.ID
		agents := c.hub.Agents(e.spec.ID)
		arrived = func(uid string) bool { return agents[uid] != nil }
	} else {
		s.Want = inject.Mark(sidecars)
		agents := c.hub.Beside()
		arrived = func(uid string) bool {
			for _, sc := range sidecars {
				if !slices.ContainsFunc(agents[uid], func(a *hub.Agent) bool { return a.Sidecar && a.Container == sc.Container }) {
					return false
				}
			}
			return true
		}
	}
	for _, p := range pods {
		sp := swap.Pod{
			Name: p.Name, Mark: p.Labels[lease.LabelEngagement], Ordinal: ordinal(p.Name),
			Released: p.Labels[lease.LabelReleased] != "", Retired: p.Annotations[annotationRetired] != "",
			Selected: len(w.selecting(p.Labels)) > 0, Ready: ready(p), Arrived: arrived(string(p.UID)),
			Deleting: p.DeletionTimestamp != nil,
		}
		if sp.Released {
			original, err := lease.Unmarshal[map[string]string](p.Annotations[lease.AnnotationLabels])
			sp.Adoptable = err == nil && w.adoptable(original)
		}
		if sp.Retired {
			since, ok := m.retired[string(p.UID)]
			if !ok || needed {
				since = time.Now()
				m.retired[string(p.UID)] = since
			}
			sp.Drained = !needed && time.Since(since) >= drainTime
			if !sp.Drained && !sp.Deleting && !needed {
				c.queue.AddAfter(k, drainTime-time.Since(since))
			}
		}
		s.Pods = append(s.Pods, sp)
	}
	return s
}

// admit lets an engagement begin: the webhook must be reached, or its pods would
// be exchanged for such as they were. It also finds pods that came without
// their agent nevertheless.
func (c *Controller) admit(ctx context.Context, m *memory, e *engagement, s swap.State, pods map[string]*corev1.Pod) error {
	if m.of != s.Want {
		m.of, m.first, m.without = s.Want, map[string]bool{}, map[string]bool{}
		for _, p := range pods {
			m.first[string(p.UID)] = true
		}
		m.trouble = map[string]time.Time{}
	}
	if e.status.Phase == "" {
		if err := c.selfTest(ctx, false); err != nil {
			return c.fail(ctx, e, webhookFailure(err))
		}
		return nil
	}
	for _, p := range s.Pods {
		pod := pods[p.Name]
		if p.Released || p.Deleting || p.Mark == s.Want || m.first[string(pod.UID)] || m.without[string(pod.UID)] {
			continue
		}
		m.without[string(pod.UID)] = true
		c.log.Warn("a pod came without its agent", "engagement", e.spec.ID, "pod", p.Name)
		if e.status.Phase == lease.Active || e.status.Phase == lease.Prepared {
			continue // released again, and not the end of what works
		}
		if err := c.selfTest(ctx, true); err != nil {
			return c.fail(ctx, e, webhookFailure(err))
		}
		if len(m.without) > 3*max(s.Replicas, 1) {
			return c.fail(ctx, e, &failure{"new pods come without the agent, although the admission webhook is reached: another webhook or controller undoes it",
				"kubectl get mutatingwebhookconfigurations"})
		}
	}
	return nil
}

func webhookFailure(err error) *failure {
	return &failure{"the agent cannot be put into pods: " + err.Error(), "ctl doctor"}
}

// judge writes the status of the engagement, and tells its agents whether their
// handler runs.
func (c *Controller) judge(ctx context.Context, k Key, w *workload, m *memory, e *engagement, s swap.State, pods map[string]*corev1.Pod) error {
	if e == nil {
		return nil
	}
	st := lease.EngagementStatus{Phase: e.status.Phase, Method: string(s.Method)}
	for i := range w.template.Spec.Containers {
		if ctr := &w.template.Spec.Containers[i]; ctr.Name == e.spec.Container {
			st.Ports = inject.Ports(ctr, e.spec.Ports)
		}
	}
	for _, p := range s.Pods {
		if !p.Released && !p.Deleting && p.Mark == s.Want {
			st.Pods = append(st.Pods, lease.PodStatus{Name: p.Name, IP: pods[p.Name].Status.PodIP, Agent: p.Arrived, Ready: p.Ready})
		}
	}
	slices.SortFunc(st.Pods, func(a, b lease.PodStatus) int { return strings.Compare(a.Name, b.Name) })

	c.tell(ctx, k, w, e, st.Ports, s, pods)
	switch {
	case st.Phase == lease.Active: // what was reached stays, the pods say the rest
	case s.Done() && s.Arrived() && c.switched(e) && c.observed(ctx, k, w, m, e, st.Ports, s, pods):
		st.Phase = lease.Active
	case st.Phase == lease.Prepared:
	case s.Arrived():
		st.Phase = lease.Prepared
	default:
		st.Phase = lease.Pending
	}
	if st.Phase != lease.Active {
		if f := c.diagnose(ctx, k, w, m, e, s, pods); f != nil {
			st.Phase, st.Error, st.Hint = lease.Failed, f.message, f.hint
			c.queue.Add(k)
		}
	} else {
		clear(m.trouble)
	}
	return c.setStatus(ctx, e, st)
}

// overdue reports whether an engagement has ended whose workload does not become
// Ready again: in time, or ever, as far as its pods tell. It is let be then.
func (c *Controller) overdue(engs []*engagement, m *memory, s swap.State, pods map[string]*corev1.Pod) bool {
	return slices.ContainsFunc(engs, func(e *engagement) bool {
		since, ok := m.restoring[e.spec.ID]
		return ok && e.ended != "" && (time.Since(since) > restoreLimit || c.hopeless(s, pods))
	})
}

// hopeless reports whether a pod as wanted has a container that does not start.
func (c *Controller) hopeless(s swap.State, pods map[string]*corev1.Pod) bool {
	return slices.ContainsFunc(s.Pods, func(p swap.Pod) bool {
		if p.Released || p.Deleting || p.Ready || p.Mark != s.Want {
			return false
		}
		st := pods[p.Name].Status
		return slices.ContainsFunc(slices.Concat(st.InitContainerStatuses, st.ContainerStatuses), func(cs corev1.ContainerStatus) bool {
			f, _ := c.container(&cs, "", p.Name, "")
			return f != nil
		})
	})
}

// restored deletes the Leases of engagements that have ended and of which
// nothing is left in the workload's pods.
func (c *Controller) restored(ctx context.Context, engs []*engagement, m *memory, s swap.State, pods map[string]*corev1.Pod) error {
	for _, e := range engs {
		if e.ended == "" || e.spec.Beside() && !e.status.Sidecar() {
			continue
		}
		since, ok := m.restoring[e.spec.ID]
		if !ok {
			since = time.Now()
			m.restoring[e.spec.ID] = since
			c.log.Info("engagement ends", "engagement", e.spec.ID, "cause", e.ended)
		}
		left := slices.ContainsFunc(s.Pods, func(p swap.Pod) bool {
			mine := p.Mark == e.spec.ID || e.spec.Beside() && inject.IsMark(p.Mark) && p.Mark != s.Want
			return mine && !p.Deleting && !p.Retired || p.Released && !p.Retired && !p.Deleting
		})
		if !left && (s.Done() || s.Overdue) {
			if err := c.deleteLease(ctx, e.lease); err != nil {
				return err
			}
			delete(m.restoring, e.spec.ID)
			c.hub.Forget(e.spec.ID)
			c.log.Info("workload restored", "engagement", e.spec.ID, "seconds", time.Since(since).Seconds())
			continue
		}
		if e.status.Phase != lease.Failed {
			st := e.status
			st.Phase, st.Pods = lease.Restoring, nil
			if err := c.setStatus(ctx, e, st); err != nil {
				return err
			}
		}
	}
	return nil
}
