package engagement

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/inject"
	"berth.dev/services/manager/internal/swap"
	"berth.dev/tunnel"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// patienceReady is how long a workload may have no Ready pod.
	patienceReady = 30 * time.Second
	// agentDeaths is how many agents of an engagement may end in a pod before it
	// is given up.
	agentDeaths = 3
	// idleFor is how long an agent that serves nothing stays while nobody is connected.
	idleFor = 3 * time.Minute
)

// besides makes the agents beside the containers of a workload serve the
// engagements that are so, adds agents where there are none, and says on the
// Leases how far that is.
//
// What is in a pod is read from the pod (its ephemeral containers), who has come
// from the hub, and what an agent was told last from the hub too; so there is
// nothing to remember and nothing to undo but to tell the agents.
func (c *Controller) besides(ctx context.Context, k Key, w *workload, m *memory, live []*engagement, s swap.State, pods map[string]*corev1.Pod) (settled bool, err error) {
	agents := c.hub.Beside()
	if len(live) == 0 && !slices.ContainsFunc(values(pods), func(p *corev1.Pod) bool { return len(agents[string(p.UID)]) > 0 || gated(p) }) {
		return true, nil
	}
	if err := c.populate(ctx, live, pods, agents); err != nil {
		var r *refusal
		if !errors.As(err, &r) {
			return false, err
		}
		if err := c.fallBack(ctx, k, w, r); err != nil {
			return false, err
		}
		if !r.e.reached() {
			c.queue.Add(k)
			return false, nil
		}
	}
	plan := map[*hub.Agent]*lease.AgentServe{}
	connections := map[string]string{}
	for _, p := range pods {
		for _, a := range agents[string(p.UID)] {
			plan[a] = &lease.AgentServe{Node: nodeOf(p)}
		}
		for _, e := range live {
			connections[e.spec.ID] = e.spec.Connection
			if a := pick(agents[string(p.UID)], e); a != nil {
				s := lease.Served{ID: e.spec.ID}
				if e.spec.Kind.Diverts() && c.reached(k, e) {
					s.Divert = inject.Diverted(p, byNumber(e), e.spec)
				}
				plan[a].Engagements = append(plan[a].Engagements, s)
			}
		}
	}
	c.tellBeside(ctx, plan, connections)
	if err := c.gates(ctx, k, m, live, pods, agents); err != nil {
		return false, err
	}
	settled = !slices.ContainsFunc(values(pods), gated)
	for _, e := range live {
		ok, err := c.judgeBeside(ctx, k, w, m, e, s, pods, agents)
		if err != nil {
			return false, err
		}
		settled = settled && ok
	}
	return settled, nil
}

// byNumber are an engagement's ports without the names that were given to the agent.
func byNumber(e *engagement) []lease.Port {
	ports := slices.Clone(e.spec.Ports)
	for i := range ports {
		if e.status.Named {
			ports[i].Name = ""
		}
	}
	return ports
}

func values(pods map[string]*corev1.Pod) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range pods {
		out = append(out, p)
	}
	return out
}

func nodeOf(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.HostIPs {
		out = append(out, ip.IP)
	}
	if len(out) == 0 && p.Status.HostIP != "" {
		out = append(out, p.Status.HostIP)
	}
	return out
}

// pick is the agent of a pod that is to serve an engagement: the one that does,
// or the last that can.
func pick(agents []*hub.Agent, e *engagement) *hub.Agent {
	var best *hub.Agent
	for _, a := range agents {
		if a.Container != e.spec.Container || e.spec.Kind.Diverts() && !a.Divert || !e.spec.SplitBy(a.Filters, a.CopyFilters) {
			continue
		}
		if _, ok := a.Connection(e.spec.ID); ok {
			return a
		}
		best = a
	}
	return best
}

// populate adds an agent to every pod that has none for one of the engagements.
// A pod need not be Ready for that: its agent starts beside its containers.
func (c *Controller) populate(ctx context.Context, live []*engagement, pods map[string]*corev1.Pod, agents map[string][]*hub.Agent) error {
	type addition struct {
		pod       *corev1.Pod
		container string
	}
	wanted := map[addition]*engagement{}
	for _, p := range pods {
		if p.DeletionTimestamp != nil || p.Spec.NodeName == "" || p.Labels[lease.LabelReleased] != "" {
			continue
		}
		for _, e := range live {
			if e.status.Sidecar() || pick(agents[string(p.UID)], e) != nil || c.coming(p, e) {
				continue
			}
			at := addition{p, e.spec.Container}
			if old := wanted[at]; old == nil || !old.spec.Kind.Diverts() {
				wanted[at] = e
			}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for at, e := range wanted {
		wg.Go(func() {
			if err := c.add(ctx, e, at.pod); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// coming reports whether an agent that could serve e is in the pod and has not
// ended, whether or not it has come to the manager.
func (c *Controller) coming(p *corev1.Pod, e *engagement) bool {
	for _, ec := range p.Spec.EphemeralContainers {
		id, ok := inject.AgentOf(&ec, c.options.Pin)
		if !ok || id.Container != e.spec.Container || e.spec.Kind.Diverts() && !id.Divert || !e.spec.SplitBy(id.Filters, id.CopyFilters) {
			continue
		}
		if s := statusOf(p, ec.Name); s == nil || s.State.Terminated == nil {
			return true
		}
	}
	return false
}

func statusOf(p *corev1.Pod, name string) *corev1.ContainerStatus {
	i := slices.IndexFunc(p.Status.EphemeralContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Status.EphemeralContainerStatuses[i]
}

// add puts an agent beside the container of a running pod. The pod is read anew,
// since the view has only what it looks at.
func (c *Controller) add(ctx context.Context, e *engagement, p *corev1.Pod) error {
	divert := e.spec.Kind.Diverts()
	pod, err := c.client.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && pod.UID != p.UID {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s: %w", p.Name, err)
	}
	if c.coming(pod, e) {
		return nil
	}
	ec, err := inject.Ephemeral(pod, e.spec.Container, divert, func(name string) string { return c.view.proof.Of(string(pod.UID), name) }, c.options)
	if err != nil {
		return refused(e, err)
	}
	body := lease.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "spec": map[string]any{"ephemeralContainers": []any{ec}}})
	got, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "berth-manager"}, "ephemeralcontainers")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // the pod is gone, or another by now
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return refused(e, err)
	case err != nil:
		return fmt.Errorf("add an agent to pod %s: %w", p.Name, err)
	}
	c.log.Info("pod: add agent", "engagement", e.spec.ID, "namespace", p.Namespace, "pod", p.Name, "agent", ec.Name)
	if t, err := trim(got); err == nil {
		c.view.wrote(t.(*corev1.Pod))
	}
	return nil
}

// refused tells what cannot be from what may be tried again.
func refused(e *engagement, err error) error {
	var never inject.Refusal
	if errors.As(err, &never) {
		return &refusal{e: e, why: never.Error()}
	}
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
		return &refusal{e: e, why: err.Error(), policy: true}
	}
	return err
}

// tellBeside tells each agent what it is to do, where it was told otherwise.
// Flows of an engagement are taken from before the agent begins until it has ended.
func (c *Controller) tellBeside(ctx context.Context, plan map[*hub.Agent]*lease.AgentServe, connections map[string]string) {
	var wg sync.WaitGroup
	for a, q := range plan {
		assigned := map[string]string{}
		for _, s := range q.Engagements {
			assigned[s.ID] = connections[s.ID]
		}
		told, _ := a.Serves()
		if told != nil && reflect.DeepEqual(told, q) || told == nil && len(q.Engagements) == 0 {
			a.Assign(assigned)
			continue
		}
		wg.Go(func() {
			a.AlsoAssign(assigned)
			cctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			served, err := tunnel.Call[lease.AgentServe, lease.AgentServed](cctx, a.Session, lease.MethodAgentServe, *q)
			if err != nil {
				c.log.Warn("an agent was not told", "pod", a.Pod, "agent", a.Name, "err", err)
				return // its session is on its way out, or the next tick tries again
			}
			a.SetServes(q, served)
			a.Assign(assigned)
		})
	}
	wg.Wait()
}

// serves is what an agent has confirmed about an engagement.
func serves(a *hub.Agent, id string) (s lease.Served, problem string, ok bool) {
	q, answer := a.Serves()
	if q == nil {
		return s, "", false
	}
	i := slices.IndexFunc(q.Engagements, func(s lease.Served) bool { return s.ID == id })
	if i < 0 {
		return s, "", false
	}
	return q.Engagements[i], answer.Errors[id], true
}

// judgeBeside writes the status of an engagement that has agents beside
// containers. It is prepared when every Ready pod has an agent that serves it, and
// active when every Ready pod's agent has said that it diverts the ports.
func (c *Controller) judgeBeside(ctx context.Context, k Key, w *workload, m *memory, e *engagement, s swap.State, pods map[string]*corev1.Pod, agents map[string][]*hub.Agent) (settled bool, err error) {
	st := lease.EngagementStatus{Phase: e.status.Phase, Method: lease.Ephemeral, Why: e.status.Why, Named: e.status.Named, Ports: inject.Ports(&corev1.Container{}, e.spec.Ports)}
	readyPods, prepared, active := 0, true, e.running()
	if e.status.Sidecar() {
		st.Method = e.status.Method
		prepared = s.Done() // until then pods without an agent answer too
		active = active && prepared
	}
	var f *failure
	for _, p := range pods {
		if p.DeletionTimestamp != nil || p.Labels[lease.LabelReleased] != "" {
			continue
		}
		ps := lease.PodStatus{Name: p.Name, IP: p.Status.PodIP, Ready: ready(p)}
		if a := pick(agents[string(p.UID)], e); a != nil {
			served, problem, ok := serves(a, e.spec.ID)
			ps.Agent = ok && problem == ""
			if a.Sidecar { // another engagement's; it stays for as long as this one
				st.Method = string(w.method)
			}
			if problem != "" {
				f = &failure{fmt.Sprintf("the traffic of pod %s cannot be diverted: %s", p.Name, problem), "ctl replace " + e.spec.Workload}
			}
			if ps.Ready {
				prepared = prepared && ps.Agent
				active = active && ps.Agent && len(served.Divert) == len(e.spec.Ports)
			}
		} else if ps.Ready {
			prepared, active = false, false
		}
		if ps.Ready {
			readyPods++
		}
		st.Pods = append(st.Pods, ps)
	}
	slices.SortFunc(st.Pods, func(a, b lease.PodStatus) int { return strings.Compare(a.Name, b.Name) })
	complete := readyPods > 0 && prepared
	switch {
	case complete && active:
		st.Phase = lease.Active
	case st.Phase == lease.Active, st.Phase == lease.Prepared: // what was reached stays, the pods say the rest
	case complete:
		st.Phase = lease.Prepared
	default:
		st.Phase = lease.Pending
	}
	st.Lost, st.NotHTTP = e.status.Lost, e.status.NotHTTP
	if e.spec.Splits() {
		c.lost(ctx, e, &st)
	}
	lasts := m.patience(e.spec.ID)
	if f == nil && st.Phase != lease.Active && e.status.Sidecar() {
		f = c.diagnose(ctx, k, w, m, e, s, pods)
	} else if f == nil && (st.Phase == lease.Pending || st.Phase == lease.Prepared && !complete) {
		f = c.diagnoseBeside(ctx, k, w, e, pods, agents, readyPods, lasts)
	}
	lasts.forget()
	if f != nil && st.Phase != lease.Active {
		st.Phase, st.Error, st.Hint = lease.Failed, f.message, f.hint
		c.queue.Add(k)
	}
	if f != nil && st.Phase == lease.Active {
		c.log.Warn("an active engagement has a pod that does not follow", "engagement", e.spec.ID, "err", f.message)
	}
	return complete && (st.Phase == lease.Active && active || st.Phase == lease.Prepared && !e.running()), c.setStatus(ctx, e, st)
}

// lost asks the agents of an engagement that shares its ports what that has not
// had. One that does not answer counts next time.
func (c *Controller) lost(ctx context.Context, e *engagement, st *lease.EngagementStatus) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n, ports := int64(0), slices.Clone(st.NotHTTP)
	for _, a := range c.hub.Agents(e.spec.ID) {
		got, err := tunnel.Call[struct{}, lease.AgentLost](ctx, a.Session, lease.MethodAgentLost, struct{}{})
		if err == nil {
			n += got.Connections[e.spec.ID]
			ports = append(ports, got.NotHTTP[e.spec.ID]...)
		}
	}
	slices.Sort(ports)
	st.Lost, st.NotHTTP = max(st.Lost, n), slices.Compact(ports)
}

// patience counts for how long what is wrong has been so.
type patience struct {
	since map[string]time.Time
	seen  map[string]bool
}

func (m *memory) patience(id string) *patience {
	if m.beside == nil {
		m.beside = map[string]map[string]time.Time{}
	}
	if m.beside[id] == nil {
		m.beside[id] = map[string]time.Time{}
	}
	return &patience{m.beside[id], map[string]bool{}}
}

func (p *patience) lasts(what string, limit time.Duration) bool {
	p.seen[what] = true
	since, ok := p.since[what]
	if !ok {
		p.since[what] = time.Now()
		return false
	}
	return time.Since(since) >= limit
}

// forget drops what is not wrong any more.
func (p *patience) forget() {
	for what := range p.since {
		if !p.seen[what] {
			delete(p.since, what)
		}
	}
}

// diagnoseBeside says why an engagement does not get on, once that has lasted too
// long to mend itself.
func (c *Controller) diagnoseBeside(ctx context.Context, k Key, w *workload, e *engagement, pods map[string]*corev1.Pod, agents map[string][]*hub.Agent, readyPods int, p *patience) *failure {
	if readyPods == 0 {
		if f := podless(k, w); f != nil { // scaled to 0 since the engagement was made
			return nil
		}
		return c.diagnoseUnready(ctx, k, w, e, pods, p)
	}
	for _, pod := range pods {
		if !ready(pod) || pod.DeletionTimestamp != nil || pick(agents[string(pod.UID)], e) != nil {
			continue
		}
		deaths, last := 0, ""
		for _, ec := range pod.Spec.EphemeralContainers {
			id, ok := inject.AgentOf(&ec, c.options.Pin)
			if !ok || id.Container != e.spec.Container {
				continue
			}
			s := statusOf(pod, ec.Name)
			hint := fmt.Sprintf("kubectl -n %s logs %s -c %s", k.Namespace, pod.Name, ec.Name)
			switch {
			case s == nil:
				if p.lasts("start "+pod.Name, patienceSchedule) {
					return &failure{fmt.Sprintf("the node of pod %s does not start the agent", pod.Name), fmt.Sprintf("kubectl -n %s describe pod %s", k.Namespace, pod.Name)}
				}
			case s.State.Terminated != nil:
				if t := s.State.Terminated; t.ExitCode != 0 && t.FinishedAt.After(e.lease.CreationTimestamp.Time) {
					deaths++
					last = strings.TrimSpace(fmt.Sprintf("exit code %d %s", t.ExitCode, t.Message))
				}
			case s.State.Waiting != nil:
				if f, limit := c.container(s, s.Name, pod.Name, hint); f != nil && p.lasts(s.Name+" "+pod.Name, limit) {
					return f
				}
			case p.lasts("arrive "+pod.Name, patienceArrive):
				return &failure{fmt.Sprintf("the agent runs in pod %s but does not reach the manager: does a NetworkPolicy of namespace %s forbid it to connect to %s, port 8080?", pod.Name, k.Namespace, c.view.namespace), hint}
			}
			if deaths >= agentDeaths {
				return &failure{fmt.Sprintf("the agent ends again and again in pod %s: %s", pod.Name, last), hint}
			}
		}
	}
	return nil
}

// diagnoseUnready says why no pod of the workload is Ready, of which one is enough.
// What most likely mends itself has the whole time: an app may crash until what it
// needs is there.
func (c *Controller) diagnoseUnready(ctx context.Context, k Key, w *workload, e *engagement, pods map[string]*corev1.Pod, p *patience) *failure {
	late := p.lasts("ready", patienceReady)
	none := fmt.Sprintf("no pod of %s is Ready", k.Workload())
	if len(pods) == 0 {
		why := w.failure
		if k.Kind == lease.StatefulSet {
			why = c.createFailure(ctx, k, e)
		}
		if why != "" && p.lasts("create", patienceCreate) {
			return &failure{none + ", for the cluster refuses them: " + why, describe(k)}
		}
	}
	for _, pod := range pods {
		hint := fmt.Sprintf("kubectl -n %s describe pod %s", k.Namespace, pod.Name)
		if msg := unschedulable(pod); msg != "" && p.lasts("schedule "+pod.Name, patienceSchedule) {
			return &failure{fmt.Sprintf("%s: pod %s finds no node: %s", none, pod.Name, msg), hint}
		}
		for _, cs := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			f, limit := c.container(&cs, "", pod.Name, hint)
			if f == nil {
				continue
			}
			if crashes(cs) {
				limit = patienceReady
			}
			if p.lasts(cs.Name+" "+pod.Name, limit) || late {
				return &failure{none + ": " + f.message, f.hint}
			}
		}
	}
	if late {
		return &failure{none, describe(k)}
	}
	return nil
}

// crashes reports whether a container is between two attempts.
func crashes(cs corev1.ContainerStatus) bool {
	return cs.State.Waiting != nil && cs.State.Waiting.Reason == "CrashLoopBackOff"
}

// describe is the command that shows what Kubernetes says of the workload.
func describe(k Key) string {
	return fmt.Sprintf("kubectl -n %s describe %s", k.Namespace, strings.ToLower(k.Workload()))
}

// endBeside ends the engagements beside containers that are to end: their agents
// are told, and the Leases deleted. It asks nobody about the workload, so that
// the traffic is back at once, and also when the workload is gone.
func (c *Controller) endBeside(ctx context.Context, engs []*engagement, m *memory) error {
	for _, e := range engs {
		if e.ended == "" || !e.spec.Beside() {
			continue
		}
		plan := map[*hub.Agent]*lease.AgentServe{}
		connections := map[string]string{}
		for _, a := range c.hub.Agents(e.spec.ID) {
			told, _ := a.Serves()
			if told == nil || a.Name == "" {
				continue
			}
			q := *told
			q.Engagements = slices.DeleteFunc(slices.Clone(q.Engagements), func(s lease.Served) bool { return s.ID == e.spec.ID })
			for _, s := range q.Engagements {
				connections[s.ID], _ = a.Connection(s.ID)
			}
			plan[a] = &q
		}
		c.tellBeside(ctx, plan, connections)
		if e.status.Sidecar() {
			continue // when the pods are exchanged back
		}
		if err := c.deleteLease(ctx, e.lease); err != nil {
			return err
		}
		c.hub.Forget(e.spec.ID)
		delete(m.beside, e.spec.ID)
		c.log.Info("engagement ended", "engagement", e.spec.ID, "cause", e.ended)
	}
	return nil
}

// dismiss lets agents go that have had nothing to serve for a while, if nobody
// is connected who might want them.
func (c *Controller) dismiss(ctx context.Context, connections int) {
	if connections > 0 {
		return
	}
	for _, as := range c.hub.Beside() {
		for _, a := range as {
			if a.Idle() > idleFor && !a.Sidecar {
				c.tellBeside(ctx, map[*hub.Agent]*lease.AgentServe{a: {Exit: true}}, nil)
			}
		}
	}
}
