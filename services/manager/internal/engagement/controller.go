// Package engagement makes the cluster follow the Leases: it swaps the pods of
// engaged workloads, tells agents when their handler runs, says on each Lease
// how far it is, and puts everything back when an engagement ends, for whatever
// reason.
//
// It is level-based: one call of reconcile looks at one workload (its Leases,
// its pods, itself) and takes the next steps. What has been done is on the
// objects: a pod's labels say which engagement's agent is in it, whether it was
// released from its ReplicaSet, and how its labels were. So a manager that dies
// anywhere is followed by one that goes on from there, and a restoration needs
// neither the client nor anybody's memory.
//
// Workloads are reconciled concurrently, each by one goroutine at a time.
package engagement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/entrance"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/inject"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Times of the controller.
const (
	tick         = time.Second            // unsettled workloads and expiry are looked at again
	settledTick  = 10 * time.Second       // settled ones
	drainTime    = 2 * time.Second        // for a retired pod's removal from Services to get around
	restoreLimit = 40 * time.Second       // a restored workload that does not become Ready is let be; connector waits for 60 s
	clientGrace  = 5 * time.Second        // a client's tunnel may be cut for so long before its agents turn unready
	workers      = 4                      // workloads at a time
	callTimeout  = 5 * time.Second        // of calls to agents
	backoffFirst = 100 * time.Millisecond // of a workload whose reconciliation failed
	backoffMost  = 10 * time.Second
)

var errKind = errors.New("not a kind of workload that can be engaged")

// SelfTest tells whether the admission webhook is reached.
type SelfTest func(ctx context.Context, again bool) error

// Controller reconciles.
type Controller struct {
	view     *View
	client   kubernetes.Interface
	hub      *hub.Hub
	selfTest SelfTest
	// entrances tell whether a workload's Services lead to its agents.
	entrances *entrance.Observer
	image     string // of the agent, for messages
	options   inject.Options
	log       *slog.Logger
	queue     workqueue.TypedRateLimitingInterface[Key]

	mu     sync.Mutex
	memory map[Key]*memory
}

// memory is what a controller may forget: times by its own clock, and counts.
type memory struct {
	settledAt time.Time
	settled   bool
	first     map[string]bool                 // UIDs of the pods that were there before the engagement
	of        string                          // engagement that first is about
	without   map[string]bool                 // UIDs of pods that came without their agent
	retired   map[string]time.Time            // by pod UID
	restoring map[string]time.Time            // by engagement
	trouble   map[string]time.Time            // by what is wrong, since when
	beside    map[string]map[string]time.Time // the same of engagements beside containers, by their id

	observing    string    // the engagement whose Services are looked at
	observedFrom time.Time // since when
}

// New makes a controller on a view; the hub's changes are to be told to Changed.
func New(view *View, h *hub.Hub, selfTest SelfTest, entrances *entrance.Observer, options inject.Options) *Controller {
	c := &Controller{view: view, client: view.client, hub: h, selfTest: selfTest, entrances: entrances, image: options.Image, options: options, log: view.log, memory: map[Key]*memory{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[Key](backoffFirst, backoffMost))}
	return c
}

// Changed is told by the hub that sessions have come or gone.
func (c *Controller) Changed(h hub.Change) {
	for _, e := range c.view.engagements(h.Namespace, func(e *engagement) bool {
		return h.Namespace != "" || e.spec.ID == h.Engagement || h.Connection != "" && e.spec.Connection == h.Connection
	}) {
		c.enqueue(e.key())
	}
}

// Watch registers for events; call it before the view is started.
func (c *Controller) Watch() error {
	on := func(f func(any)) cache.ResourceEventHandlerFuncs {
		return cache.ResourceEventHandlerFuncs{AddFunc: f, UpdateFunc: func(_, o any) { f(o) }, DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			if m, ok := o.(metav1.Object); ok {
				defer c.view.forget(string(m.GetUID()))
			}
			f(o)
		}}
	}
	if _, err := c.view.leaseInf.AddEventHandler(on(c.leaseChanged)); err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	if _, err := c.view.podInf.AddEventHandler(on(c.podChanged)); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	return nil
}

func (c *Controller) leaseChanged(o any) {
	l, ok := o.(*coordinationv1.Lease)
	if !ok {
		return
	}
	if l.Labels[lease.LabelKind] == lease.KindConnection {
		c.connectionChanged(l)
		return
	}
	if e, err := c.view.read(l); err == nil {
		c.enqueue(e.key())
	}
}

// connectionChanged cuts the sessions of a connection that has ended.
func (c *Controller) connectionChanged(l *coordinationv1.Lease) {
	id := l.Labels[lease.LabelConnection]
	if id == "" && len(l.Name) > len(lease.ConnectionName("")) {
		id = l.Name[len(lease.ConnectionName("")):]
	}
	if l.Namespace != c.view.namespace || c.view.connected(id) {
		return
	}
	c.hub.Cut(id)
	c.Changed(hub.Change{Connection: id})
}

func (c *Controller) podChanged(o any) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	if k, ok := keyOf(p); ok {
		c.enqueue(k)
		return
	}
	if metav1.GetControllerOf(p) == nil {
		return
	}
	for _, e := range c.view.engagements(p.Namespace, func(*engagement) bool { return true }) {
		c.enqueue(e.key())
	}
}

// keyOf is the workload that a pod is marked with.
func keyOf(p *corev1.Pod) (Key, bool) {
	kind, name, ok := cut(p.Annotations[lease.AnnotationWorkload])
	if !ok || p.Labels[lease.LabelEngagement] == "" && p.Labels[lease.LabelReleased] == "" && !gated(p) {
		return Key{}, false
	}
	return Key{p.Namespace, kind, name}, true
}

func (c *Controller) enqueue(k Key) {
	c.mu.Lock()
	if m := c.memory[k]; m != nil {
		m.settled = false
	}
	c.mu.Unlock()
	c.queue.Add(k)
}

// Run reconciles until ctx ends. The view must have been started.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { c.work(ctx) })
	}
	for t := time.NewTicker(tick); ; {
		c.sweep(ctx)
		select {
		case <-t.C:
			continue
		case <-ctx.Done():
		}
		t.Stop()
		break
	}
	c.queue.ShutDown()
	wg.Wait()
	return nil
}

// sweep enqueues what time alone changes: expired Leases, and workloads that
// are on their way. It also removes connections' Leases that were not renewed.
func (c *Controller) sweep(ctx context.Context) {
	keys := map[Key]bool{}
	for _, e := range c.view.engagements(metav1.NamespaceAll, func(*engagement) bool { return true }) {
		keys[e.key()] = keys[e.key()] || e.ended != ""
	}
	c.mu.Lock()
	for k := range c.memory {
		if _, ok := keys[k]; !ok {
			keys[k] = false
		}
	}
	for k, urgent := range keys {
		if m := c.memory[k]; urgent || m == nil || !m.settled || time.Since(m.settledAt) > settledTick {
			c.queue.Add(k)
		}
	}
	c.mu.Unlock()

	list, err := c.view.leases.Leases(c.view.namespace).List(labels.SelectorFromSet(labels.Set{lease.LabelKind: lease.KindConnection}))
	if err != nil {
		return
	}
	for _, l := range list {
		if c.view.left(l) > 0 || l.DeletionTimestamp != nil {
			continue
		}
		c.log.Info("a connection was not renewed in time", "connection", l.Labels[lease.LabelConnection], "lease", l.Name)
		c.connectionChanged(l)
		if err := c.deleteLease(ctx, l); err != nil {
			c.log.Warn("an expired connection's lease stays", "lease", l.Name, "err", err)
		}
	}
	c.dismiss(ctx, len(list))
	// Sessions whose Lease went while nobody looked.
	for _, id := range c.hub.Connections() {
		if !c.view.connected(id) && c.view.connection(id) == nil {
			if _, err := c.view.Connection(ctx, id); err != nil {
				c.hub.Cut(id)
			}
		}
	}
}

func (c *Controller) work(ctx context.Context) {
	for {
		k, down := c.queue.Get()
		if down {
			return
		}
		err := c.reconcile(ctx, k)
		switch {
		case ctx.Err() != nil:
		case apierrors.IsConflict(err):
			c.queue.AddAfter(k, 20*time.Millisecond) // somebody was quicker; look again
		case err != nil:
			c.log.Error("reconcile", "namespace", k.Namespace, "workload", k.Workload(), "err", err)
			c.queue.AddRateLimited(k)
		default:
			c.queue.Forget(k)
		}
		c.queue.Done(k)
	}
}

func (c *Controller) remember(k Key) *memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memory[k]
	if m == nil {
		m = &memory{retired: map[string]time.Time{}, restoring: map[string]time.Time{}, trouble: map[string]time.Time{}}
		c.memory[k] = m
	}
	return m
}

// settle says that nothing is under way for the workload; without engagements
// and marks nothing is remembered of it either.
func (c *Controller) settle(k Key, m *memory, forget bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.settled, m.settledAt = true, time.Now()
	if forget {
		delete(c.memory, k)
	}
}

func (c *Controller) deleteLease(ctx context.Context, l *coordinationv1.Lease) error {
	err := c.client.CoordinationV1().Leases(l.Namespace).Delete(ctx, l.Name,
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &l.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete lease %s/%s: %w", l.Namespace, l.Name, err)
	}
	return nil
}

// setStatus writes the status if it says something else.
func (c *Controller) setStatus(ctx context.Context, e *engagement, s lease.EngagementStatus) error {
	body := lease.Marshal(s)
	if body == lease.Marshal(e.status) && e.lease.Annotations[lease.AnnotationState] != "" {
		return nil
	}
	patch := lease.Marshal(map[string]any{"metadata": map[string]any{"uid": e.lease.UID, "annotations": map[string]any{lease.AnnotationState: body}}})
	_, err := c.client.CoordinationV1().Leases(e.lease.Namespace).Patch(ctx, e.lease.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "berth-manager"})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s: %w", e.spec.ID, err)
	}
	if s.Phase != e.status.Phase {
		c.log.Info("engagement is "+string(s.Phase), "engagement", e.spec.ID, "namespace", e.lease.Namespace, "workload", e.key().Workload(), "method", s.Method, "err", s.Error)
	}
	c.view.wroteStatus(string(e.lease.UID), s)
	e.status = s
	return nil
}
