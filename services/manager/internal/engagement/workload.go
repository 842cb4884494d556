package engagement

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/swap"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
)

// annotationRetired is on a released pod that was taken out of its Services.
const annotationRetired = lease.Group + "/retired"

// workload is what is engaged, as far as its pods' exchange is concerned.
type workload struct {
	replicas int
	template *corev1.PodTemplateSpec
	owners   map[string]*appsv1.ReplicaSet // UIDs of what controls its pods; nil value for the workload itself
	release  string                        // label to take off a pod to release it; "" if there is none
	method   swap.Method
	why      string // for the method, for people
	ordered  bool
	first    int    // a StatefulSet's lowest ordinal
	failure  string // why the last pod could not be created, as its controller says
	paused   bool   // it is a Deployment that was paused before it had a ReplicaSet: nobody creates a pod
	services []corev1.Service
}

// resolve reads a workload; nil if it does not exist.
//
// Lists are the API server's as its cache has them: one that must be the newest
// waits up to a tenth of a second for etcd to say so (Kubernetes 1.31, KEP-2340).
// The pods come from a cache too, and what is written is conditional on the
// version that it was decided from.
func resolve(ctx context.Context, c kubernetes.Interface, k Key) (*workload, error) {
	list := metav1.ListOptions{ResourceVersion: "0"}
	w := &workload{owners: map[string]*appsv1.ReplicaSet{}, method: swap.Surge}
	var services *corev1.ServiceList
	var servicesErr error
	var wg sync.WaitGroup
	wg.Go(func() { // beside the workload itself, since people wait for this
		services, servicesErr = c.CoreV1().Services(k.Namespace).List(ctx, list)
	})
	defer wg.Wait()
	var err error
	switch k.Kind {
	case "Deployment":
		err = w.deployment(ctx, c, k, list)
	case "ReplicaSet":
		err = w.replicaSet(ctx, c, k)
	case "StatefulSet":
		err = w.statefulSet(ctx, c, k)
	default:
		return nil, fmt.Errorf("%w: %s", errKind, k.Kind)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k.Workload(), err)
	}
	wg.Wait()
	if servicesErr != nil {
		return nil, fmt.Errorf("list services of %s: %w", k.Namespace, servicesErr)
	}
	w.services = services.Items
	if w.method == swap.Surge && k.Kind == "ReplicaSet" {
		w.release = w.freeLabel()
		if w.release == "" {
			w.recreate("every label that its ReplicaSet selects by is one that a Service selects by too")
		}
	}
	return w, w.besides(ctx, c, k)
}

func (w *workload) recreate(why string) {
	if w.method != swap.Recreate {
		w.method, w.why = swap.Recreate, why
	}
}

func replicas(n *int32) int {
	if n == nil {
		return 1 // the API's default
	}
	return int(*n)
}

func (w *workload) deployment(ctx context.Context, c kubernetes.Interface, k Key, opts metav1.ListOptions) error {
	var list *appsv1.ReplicaSetList
	var listErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		list, listErr = c.AppsV1().ReplicaSets(k.Namespace).List(ctx, opts)
	})
	d, err := c.AppsV1().Deployments(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	wg.Wait()
	if err != nil {
		return err
	}
	w.replicas, w.template, w.release = replicas(d.Spec.Replicas), &d.Spec.Template, appsv1.DefaultDeploymentUniqueLabelKey
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		w.recreate("its strategy is Recreate")
	}
	if listErr != nil {
		return listErr
	}
	for i := range list.Items {
		if rs := &list.Items[i]; metav1.IsControlledBy(rs, d) {
			w.owners[string(rs.UID)] = rs
			if replicas(rs.Spec.Replicas) > 0 {
				w.failure = replicaFailure(rs, w.failure)
			}
		}
	}
	w.paused = d.Spec.Paused && len(w.owners) == 0
	return nil
}

func (w *workload) replicaSet(ctx context.Context, c kubernetes.Interface, k Key) error {
	rs, err := c.AppsV1().ReplicaSets(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	w.replicas, w.template = replicas(rs.Spec.Replicas), &rs.Spec.Template
	w.owners[string(rs.UID)] = rs
	w.failure = replicaFailure(rs, "")
	return nil
}

func replicaFailure(rs *appsv1.ReplicaSet, or string) string {
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	return or
}

func (w *workload) statefulSet(ctx context.Context, c kubernetes.Interface, k Key) error {
	s, err := c.AppsV1().StatefulSets(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	w.replicas, w.template = replicas(s.Spec.Replicas), &s.Spec.Template
	w.owners[string(s.UID)] = nil
	w.ordered = s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	if s.Spec.Ordinals != nil {
		w.first = int(s.Spec.Ordinals.Start)
	}
	w.recreate("a StatefulSet's pods are one of a kind")
	return nil
}

// freeLabel is a label by which a bare ReplicaSet selects and no Service does.
func (w *workload) freeLabel() string {
	var keys []string
	for _, rs := range w.owners {
		for key := range rs.Spec.Selector.MatchLabels {
			if !slices.ContainsFunc(w.services, func(s corev1.Service) bool { _, ok := s.Spec.Selector[key]; return ok }) {
				keys = append(keys, key)
			}
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	return keys[0]
}

// besides decides whether a pod can stand beside its successor.
func (w *workload) besides(ctx context.Context, c kubernetes.Interface, k Key) error {
	if w.template.Spec.HostNetwork {
		w.recreate("it uses its node's network")
	}
	for _, ctr := range slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers) {
		for _, p := range ctr.Ports {
			if p.HostPort != 0 {
				w.recreate("it uses a port of its node")
			}
		}
	}
	for _, v := range w.template.Spec.Volumes {
		if v.PersistentVolumeClaim == nil || w.method == swap.Recreate {
			continue
		}
		pvc, err := c.CoreV1().PersistentVolumeClaims(k.Namespace).Get(ctx, v.PersistentVolumeClaim.ClaimName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue // its pods cannot start in any case
		}
		if err != nil {
			return fmt.Errorf("read volume claim %s: %w", v.PersistentVolumeClaim.ClaimName, err)
		}
		if !slices.Contains(pvc.Spec.AccessModes, corev1.ReadWriteMany) && !slices.Contains(pvc.Spec.AccessModes, corev1.ReadOnlyMany) {
			w.recreate("its volume " + pvc.Name + " is for one node at a time")
		}
	}
	return nil
}

// selecting are the Services that select a pod with these labels.
func (w *workload) selecting(set map[string]string) []corev1.Service {
	var out []corev1.Service
	for _, s := range w.services {
		if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(set)) {
			out = append(out, s)
		}
	}
	return out
}

// owns reports whether the pod is one of the workload's, bridging ones included.
func (w *workload) owns(k Key, p *corev1.Pod) bool {
	if p.Labels[lease.LabelReleased] != "" {
		return p.Annotations[lease.AnnotationWorkload] == k.Workload()
	}
	o := metav1.GetControllerOf(p)
	if o == nil || w == nil {
		return false
	}
	_, ok := w.owners[string(o.UID)]
	return ok
}

// adoptable reports whether the ReplicaSet from which the pod was taken still
// wants replicas: if so, putting the labels back gives it the pod back.
func (w *workload) adoptable(original map[string]string) bool {
	for _, rs := range w.owners {
		if rs == nil || replicas(rs.Spec.Replicas) == 0 {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
		if err == nil && sel.Matches(labels.Set(original)) {
			return true
		}
	}
	return false
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func ordinal(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		return 0
	}
	return n
}
