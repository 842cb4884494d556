package engagement

import (
	"context"
	"reflect"
	"slices"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/entrance"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/swap"
	"berth.dev/tunnel"

	corev1 "k8s.io/api/core/v1"
)

const (
	observeWithin = drainTime             // the rules of other nodes are not seen anyway: see observed
	observeAgain  = 50 * time.Millisecond // between two looks
)

// tell tells the agents in a container's place where what comes to them goes, if
// they were told otherwise or nothing: they are Ready only while that is somewhere.
func (c *Controller) tell(ctx context.Context, k Key, w *workload, e *engagement, ports []lease.Port, s swap.State, pods map[string]*corev1.Pod) {
	q := lease.AgentRun{Run: c.reached(k, e)}
	if !e.running() {
		q.App = app(w, ports, s, pods)
	}
	for _, a := range c.hub.Agents(e.spec.ID) {
		told, ok := a.Told()
		if ok && reflect.DeepEqual(told, q) || !ok && !q.Run && len(q.App) == 0 {
			continue
		}
		c.tellOne(ctx, e, a, q)
	}
}

// app are the addresses of the pods that the agents pass on to until the handler
// runs: of those whose places they have taken. None where that could not be done
// unnoticed: datagrams, and pods with further containers, of which one may be a
// mesh's proxy that takes connections from its peers alone.
func app(w *workload, ports []lease.Port, s swap.State, pods map[string]*corev1.Pod) []string {
	if s.Method != swap.Surge || len(w.template.Spec.Containers) != 1 || slices.ContainsFunc(w.template.Spec.InitContainers, restarts) {
		return nil
	}
	if slices.ContainsFunc(ports, func(p lease.Port) bool { return p.Protocol != string(corev1.ProtocolTCP) }) {
		return nil
	}
	var out []string
	for _, p := range s.Pods {
		if ip := pods[p.Name].Status.PodIP; p.Released && p.Mark == "" && p.Ready && !p.Deleting && ip != "" {
			out = append(out, ip)
		}
	}
	slices.Sort(out)
	return out
}

// restarts reports whether an init container is one that stays: a sidecar.
func restarts(c corev1.Container) bool { return c.RestartPolicy != nil }

func (c *Controller) tellOne(ctx context.Context, e *engagement, a *hub.Agent, q lease.AgentRun) {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	holds, err := tunnel.Call[lease.AgentRun, lease.AgentRun](cctx, a.Session, lease.MethodAgentRun, q)
	if err != nil {
		c.log.Warn("an agent was not told", "engagement", e.spec.ID, "pod", a.Pod, "err", err)
		return // its session is on its way out, or the next tick tries again
	}
	if len(q.App) > len(holds.App) {
		c.log.Info("an agent does not reach all of the app's pods", "engagement", e.spec.ID, "pod", a.Pod, "reached", holds.App)
	}
	a.SetTold(q)
}

// switched reports whether every agent has confirmed that what comes goes to the
// handler.
func (c *Controller) switched(e *engagement) bool {
	if !e.running() {
		return false
	}
	for _, a := range c.hub.Agents(e.spec.ID) {
		if told, _ := a.Told(); !told.Run {
			return false
		}
	}
	return true
}

// observed reports whether what is sent to the workload's Services arrives at its
// agents, as far as that can be seen: the node of this manager is asked by
// connections to each of them. A node's rules follow the API with some delay, and
// until then they lead to pods that have left; other nodes have the same delay,
// which nobody can see. It is not waited for longer than that may take.
func (c *Controller) observed(ctx context.Context, k Key, w *workload, m *memory, e *engagement, ports []lease.Port, s swap.State, pods map[string]*corev1.Pod) bool {
	if m.observing != e.spec.ID {
		m.observing, m.observedFrom = e.spec.ID, time.Now()
	}
	for _, p := range s.Pods {
		if p.Released || p.Deleting || p.Mark != s.Want {
			continue
		}
		for _, at := range entrance.Of(w.selecting(pods[p.Name].Labels), pods[p.Name], ports) {
			if !c.entrances.Lead(ctx, at, e.spec.ID, len(s.Pods)) && time.Since(m.observedFrom) < observeWithin {
				c.queue.AddAfter(k, observeAgain)
				return false
			}
		}
		break // the Services of one are those of all
	}
	return true
}
