package engagement

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/expiry"
	"berth.dev/services/manager/internal/inject"
	"berth.dev/services/manager/internal/proof"
	"berth.dev/tunnel"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	coordinationlisters "k8s.io/client-go/listers/coordination/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// Key names a workload.
type Key struct{ Namespace, Kind, Name string }

// Workload is the key as it is written on pods: kind/name.
func (k Key) Workload() string { return k.Kind + "/" + k.Name }

// View is what this process knows of Leases and pods: the API server's objects
// as its informers have them, judged by its own clock. The webhook, the tunnel
// server and the controller all look through the same one, and so agree.
type View struct {
	client    kubernetes.Interface
	namespace string // the manager's
	proof     proof.Key
	log       *slog.Logger
	tracker   *expiry.Tracker

	factory   informers.SharedInformerFactory // pods
	leaseFac  informers.SharedInformerFactory // our Leases
	leases    coordinationlisters.LeaseLister
	pods      corelisters.PodLister
	leaseInf  cache.SharedIndexInformer
	podInf    cache.SharedIndexInformer
	arrivals  arrivals
	overlayMu sync.Mutex
	overlay   map[string]*corev1.Pod // by UID: what our own writes returned, until the informer has it
	statuses  map[string]lease.EngagementStatus
}

// NewView prepares the informers; Start runs them.
func NewView(client kubernetes.Interface, namespace string, key proof.Key, log *slog.Logger) *View {
	v := &View{client: client, namespace: namespace, proof: key, log: log, tracker: expiry.New(),
		overlay: map[string]*corev1.Pod{}, statuses: map[string]lease.EngagementStatus{}}
	v.leaseFac = informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = lease.LabelKind }))
	v.factory = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	v.leaseInf = v.leaseFac.Coordination().V1().Leases().Informer()
	v.leases = v.leaseFac.Coordination().V1().Leases().Lister()
	v.podInf = v.factory.Core().V1().Pods().Informer()
	v.pods = v.factory.Core().V1().Pods().Lister()
	// The informer, which is new, refuses no handler.
	_, _ = v.leaseInf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { v.arrivals.tell() }})
	return v
}

// Start runs the informers until ctx ends and waits for their first lists.
func (v *View) Start(ctx context.Context) error {
	v.leaseFac.Start(ctx.Done())
	v.factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), v.leaseInf.HasSynced, v.podInf.HasSynced) {
		return fmt.Errorf("list leases and pods: %w", context.Cause(ctx))
	}
	return nil
}

// Stop waits for the informers after the end of Start's context.
func (v *View) Stop() {
	v.leaseFac.Shutdown()
	v.factory.Shutdown()
}

// trim keeps of a pod what is looked at: a large cluster has many.
func trim(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	p.ManagedFields = nil
	for k := range p.Annotations {
		if !strings.HasPrefix(k, lease.Group+"/") {
			delete(p.Annotations, k)
		}
	}
	spec := corev1.PodSpec{HostNetwork: p.Spec.HostNetwork, NodeName: p.Spec.NodeName, ReadinessGates: p.Spec.ReadinessGates}
	for _, c := range p.Spec.Containers {
		spec.Containers = append(spec.Containers, looks(c))
	}
	for _, c := range p.Spec.InitContainers { // those that are sidecars have probes too
		if c.RestartPolicy != nil {
			spec.InitContainers = append(spec.InitContainers, looks(c))
		}
	}
	for _, e := range p.Spec.EphemeralContainers {
		if inject.IsAgent(e.Name) {
			spec.EphemeralContainers = append(spec.EphemeralContainers, inject.Bare(e))
		}
	}
	p.Spec = spec
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs, HostIP: p.Status.HostIP, HostIPs: p.Status.HostIPs,
		Conditions: p.Status.Conditions, ContainerStatuses: p.Status.ContainerStatuses, InitContainerStatuses: p.Status.InitContainerStatuses,
		EphemeralContainerStatuses: p.Status.EphemeralContainerStatuses}
	return p, nil
}

// looks is what of a container tells how it is reached and probed.
func looks(c corev1.Container) corev1.Container {
	return corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy, Ports: c.Ports, LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe, StartupProbe: c.StartupProbe}
}

// engagement is an engagement's Lease, read.
type engagement struct {
	lease  *coordinationv1.Lease
	spec   lease.EngagementSpec
	status lease.EngagementStatus
	ended  string // why it has, "" while it lives
}

func (e *engagement) key() Key {
	return Key{e.lease.Namespace, e.spec.WorkloadKind, e.spec.Workload}
}

// reached reports whether the engagement has once been made.
func (e *engagement) reached() bool {
	return e.status.Phase == lease.Prepared || e.status.Phase == lease.Active
}

// running reports whether the connector says that the handler runs.
func (e *engagement) running() bool {
	return e.lease.Annotations[lease.AnnotationHandler] == lease.HandlerRun
}

// left is how much time the holder of a Lease has left.
func (v *View) left(l *coordinationv1.Lease) time.Duration {
	d := lease.Duration
	if s := l.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		d = time.Duration(*s) * time.Second
	}
	renewal := ""
	if t := l.Spec.RenewTime; t != nil {
		renewal = t.UTC().Format(time.RFC3339Nano)
	}
	return v.tracker.Left(string(l.UID), renewal, d)
}

func (v *View) read(l *coordinationv1.Lease) (*engagement, error) {
	spec, err := lease.Unmarshal[lease.EngagementSpec](l.Annotations[lease.AnnotationSpec])
	if err != nil {
		return nil, fmt.Errorf("lease %s/%s: %w", l.Namespace, l.Name, err)
	}
	e := &engagement{lease: l, spec: spec}
	v.overlayMu.Lock()
	written, ok := v.statuses[string(l.UID)]
	v.overlayMu.Unlock()
	if ok {
		e.status = written
	} else if s := l.Annotations[lease.AnnotationState]; s != "" {
		if e.status, err = lease.Unmarshal[lease.EngagementStatus](s); err != nil {
			v.log.Warn("a status that is not ours", "engagement", spec.ID, "err", err)
		}
	}
	_, released := l.Annotations[lease.AnnotationRelease]
	switch {
	case l.DeletionTimestamp != nil:
		e.ended = "its lease is being deleted"
	case released:
		e.ended = "released"
	case v.left(l) <= 0:
		e.ended = "its lease was not renewed in time"
	case !v.connected(spec.Connection):
		e.ended = "its connection has ended"
	}
	return e, nil
}

// engagements are all that match, oldest first: of two on one workload the
// first has it.
func (v *View) engagements(namespace string, match func(*engagement) bool) []*engagement {
	list, err := v.leases.Leases(namespace).List(labels.SelectorFromSet(labels.Set{lease.LabelKind: lease.KindEngagement}))
	if err != nil {
		return nil // a lister over a cache has no errors of its own
	}
	var out []*engagement
	for _, l := range list {
		e, err := v.read(l)
		if err != nil {
			v.log.Debug("unreadable engagement", "err", err) // not ours, and asked for often
			continue
		}
		if match(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *engagement) int {
		if c := a.lease.CreationTimestamp.Compare(b.lease.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.lease.Name, b.lease.Name)
	})
	return out
}

func (v *View) connection(id string) *coordinationv1.Lease {
	l, err := v.leases.Leases(v.namespace).Get(lease.ConnectionName(id))
	if err != nil || l.Labels[lease.LabelKind] != lease.KindConnection {
		return nil
	}
	return l
}

func (v *View) connected(id string) bool {
	l := v.connection(id)
	return l != nil && l.DeletionTimestamp == nil && v.left(l) > 0
}

// leaseComesWithin is how long a client is let wait for its Lease to come. It is
// within what the client grants the handshake.
const leaseComesWithin = 3 * time.Second

// awaitConnection returns a connection's Lease, or nil if none comes. A client dials
// while its Lease is being created, and would otherwise have to come again.
func (v *View) awaitConnection(ctx context.Context, id string) *coordinationv1.Lease {
	ctx, cancel := context.WithTimeout(ctx, leaseComesWithin)
	defer cancel()
	for {
		next := v.arrivals.next()
		if l := v.connection(id); l != nil {
			return l
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil
		}
	}
}

// Connection implements tunnelserver.Cluster.
func (v *View) Connection(ctx context.Context, id string) (lease.ConnectionSpec, error) {
	gone := &tunnel.RPCError{Code: "not_found", Message: fmt.Sprintf("there is no live connection %q here: its lease is gone or was not renewed", id), Hint: "ctl connect"}
	l := v.awaitConnection(ctx, id)
	if l == nil {
		// Perhaps the informer lags behind.
		var err error
		l, err = v.client.CoordinationV1().Leases(v.namespace).Get(ctx, lease.ConnectionName(id), metav1.GetOptions{})
		if err != nil || l.Labels[lease.LabelKind] != lease.KindConnection {
			return lease.ConnectionSpec{}, gone
		}
	}
	if v.left(l) <= 0 || l.DeletionTimestamp != nil {
		return lease.ConnectionSpec{}, gone
	}
	spec, err := lease.Unmarshal[lease.ConnectionSpec](l.Annotations[lease.AnnotationSpec])
	if err != nil {
		return spec, &tunnel.RPCError{Code: "invalid_argument", Message: err.Error()}
	}
	return spec, nil
}

// byID returns an engagement by its id.
func (v *View) byID(id string) *engagement {
	engs := v.engagements(metav1.NamespaceAll, func(e *engagement) bool { return e.spec.ID == id })
	if len(engs) == 0 {
		return nil
	}
	return engs[0]
}

// Engagement implements tunnelserver.Cluster.
func (v *View) Engagement(id string) (lease.EngagementSpec, bool) {
	e := v.byID(id)
	if e == nil {
		return lease.EngagementSpec{}, false
	}
	return e.spec, true
}

// Extra keys of a bound service-account token's user.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

// PodOf implements tunnelserver.Cluster.
func (v *View) PodOf(ctx context.Context, token string) (name, uid, engagement string, err error) {
	review, err := v.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{lease.AgentAudience}}}, metav1.CreateOptions{})
	if err != nil {
		return "", "", "", &tunnel.RPCError{Code: "unavailable", Message: "the agent's token cannot be reviewed: " + err.Error()}
	}
	user := review.Status.User
	namespace, _, ok := strings.Cut(strings.TrimPrefix(user.Username, "system:serviceaccount:"), ":")
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, lease.AgentAudience) || !ok ||
		len(user.Extra[extraPodName]) != 1 || len(user.Extra[extraPodUID]) != 1 {
		return "", "", "", &tunnel.RPCError{Code: "permission_denied", Message: "the token is not that of a pod for this manager"}
	}
	name, uid = user.Extra[extraPodName][0], user.Extra[extraPodUID][0]
	pod, err := v.pods.Pods(namespace).Get(name)
	if err != nil || string(pod.UID) != uid {
		if pod, err = v.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil || string(pod.UID) != uid {
			return "", "", "", &tunnel.RPCError{Code: "not_found", Message: "the token's pod is gone"}
		}
	}
	return name, uid, pod.Labels[lease.LabelEngagement], nil
}

// Beside implements tunnelserver.Cluster. What was made for a pod that was there
// shows a proof, and comes from the pod's address; what came with the pod shows
// its token.
func (v *View) Beside(ctx context.Context, id lease.AgentID, token string, from netip.Addr) (uid string, err error) {
	if !proof.Is(token) {
		name, uid, _, err := v.PodOf(ctx, token)
		if err == nil && name != id.Pod {
			err = &tunnel.RPCError{Code: "permission_denied", Message: "the token is that of another pod"}
		}
		return uid, err
	}
	denied := func(why string) (string, error) {
		return "", &tunnel.RPCError{Code: "permission_denied", Message: why}
	}
	// The informer may not have seen the pod's address yet, which kubelet writes
	// about when it starts the agent.
	pod, err := v.pods.Pods(id.Namespace).Get(id.Pod)
	if err != nil || !hasAddress(pod, from) {
		got, gerr := v.client.CoreV1().Pods(id.Namespace).Get(ctx, id.Pod, metav1.GetOptions{})
		if gerr != nil {
			return "", &tunnel.RPCError{Code: "not_found", Message: fmt.Sprintf("there is no pod %s in namespace %s", id.Pod, id.Namespace)}
		}
		pod = got
	}
	switch {
	case !v.proof.Good(token, string(pod.UID), id.Name):
		return denied("the proof is not that of agent " + id.Name + " in pod " + id.Pod)
	case !hasAddress(pod, from):
		return denied(fmt.Sprintf("the agent of pod %s comes from %v, which is not the pod's address: something between translates addresses", id.Pod, from))
	}
	return string(pod.UID), nil
}

func hasAddress(p *corev1.Pod, a netip.Addr) bool {
	return slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool {
		own, err := netip.ParseAddr(ip.IP)
		return err == nil && own.Unmap() == a
	})
}

// Wanted implements webhook.Engagements: the workload that controls owner, and
// its engagement. Only a namespace that has engagements costs a look-up, which
// asks the API server: a rollout's ReplicaSet is younger than any cache.
func (v *View) Wanted(ctx context.Context, namespace string, owner metav1.OwnerReference) (inject.Engagement, bool, error) {
	if len(v.engagements(namespace, func(e *engagement) bool { return e.ended == "" && (e.spec.Kind != lease.Ingest || e.status.Sidecar()) })) == 0 {
		return inject.Engagement{}, false, nil
	}
	k := Key{namespace, owner.Kind, owner.Name}
	if owner.Kind == "ReplicaSet" {
		rs, err := v.client.AppsV1().ReplicaSets(namespace).Get(ctx, owner.Name, metav1.GetOptions{})
		if err != nil {
			return inject.Engagement{}, false, fmt.Errorf("read replica set %s: %w", owner.Name, err)
		}
		if d := metav1.GetControllerOf(rs); d != nil {
			k.Kind, k.Name = d.Kind, d.Name
		}
	}
	r := arbitrate(v.engagements(namespace, func(e *engagement) bool { return e.key() == k }))
	e := r.replace
	var sidecars []inject.Sidecar
	if e == nil {
		sidecars = sidecarsOf(r.beside)
	}
	for _, b := range r.beside { // an intercept, or else one that has a sidecar
		if r.replace == nil && (b.spec.Kind.Diverts() || e == nil && b.status.Sidecar()) {
			e = b
		}
	}
	if e == nil {
		return inject.Engagement{}, false, nil
	}
	return inject.Engagement{EngagementSpec: e.spec, Workload: k.Workload(), Sidecars: sidecars}, true, nil
}

// PodIPs are the addresses of all pods with a network of their own.
func (v *View) PodIPs() []netip.Addr {
	list, err := v.pods.List(labels.Everything())
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, p := range list {
		if p.Spec.HostNetwork {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}
