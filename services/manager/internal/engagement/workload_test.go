package engagement

import (
	"maps"
	"testing"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/swap"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func spec(mutate ...func(*corev1.PodSpec)) corev1.PodTemplateSpec {
	t := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "tier": "front"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}}}
	for _, m := range mutate {
		m(&t.Spec)
	}
	return t
}

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Spec: corev1.ServiceSpec{Selector: selector}}
}

func claim(modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "ns"}, Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes}}
}

func withClaim(p *corev1.PodSpec) {
	p.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
}

func TestMethod(t *testing.T) {
	sel := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web", "tier": "front"}}
	meta := metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "w"}
	deployment := func(strategy appsv1.DeploymentStrategyType, mutate ...func(*corev1.PodSpec)) runtime.Object {
		return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Selector: sel, Template: spec(mutate...), Strategy: appsv1.DeploymentStrategy{Type: strategy}}}
	}
	bare := &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Selector: sel, Template: spec()}}
	for _, tt := range []struct {
		name, kind string
		objects    []runtime.Object
		want       swap.Method
		release    string
	}{
		{"deployment", "Deployment", []runtime.Object{deployment("")}, swap.Surge, "pod-template-hash"},
		{"strategy Recreate", "Deployment", []runtime.Object{deployment(appsv1.RecreateDeploymentStrategyType)}, swap.Recreate, "pod-template-hash"},
		{"host network", "Deployment", []runtime.Object{deployment("", func(p *corev1.PodSpec) { p.HostNetwork = true })}, swap.Recreate, "pod-template-hash"},
		{"host port", "Deployment", []runtime.Object{deployment("", func(p *corev1.PodSpec) { p.Containers[0].Ports[0].HostPort = 80 })}, swap.Recreate, "pod-template-hash"},
		{"volume of one node", "Deployment", []runtime.Object{deployment("", withClaim), claim(corev1.ReadWriteOnce)}, swap.Recreate, "pod-template-hash"},
		{"volume of one pod", "Deployment", []runtime.Object{deployment("", withClaim), claim(corev1.ReadWriteOncePod)}, swap.Recreate, "pod-template-hash"},
		{"shared volume", "Deployment", []runtime.Object{deployment("", withClaim), claim(corev1.ReadWriteMany)}, swap.Surge, "pod-template-hash"},
		{"bare replica set, a label is free", "ReplicaSet", []runtime.Object{bare, service("s", map[string]string{"app": "web"})}, swap.Surge, "tier"},
		{"bare replica set, no label is free", "ReplicaSet", []runtime.Object{bare, service("s", map[string]string{"app": "web"}), service("t", map[string]string{"tier": "front"})}, swap.Recreate, ""},
		{"stateful set", "StatefulSet", []runtime.Object{&appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Selector: sel, Template: spec()}}}, swap.Recreate, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := resolve(t.Context(), fake.NewClientset(tt.objects...), Key{"ns", tt.kind, "web"})
			if err != nil || w == nil {
				t.Fatal(w, err)
			}
			if w.method != tt.want || w.release != tt.release || w.replicas != 1 || (w.method == swap.Recreate) != (w.why != "") {
				t.Errorf("%s by %q, %d replicas: %s", w.method, w.release, w.replicas, w.why)
			}
		})
	}
	if w, err := resolve(t.Context(), fake.NewClientset(), Key{"ns", "Deployment", "web"}); w != nil || err != nil {
		t.Errorf("what is not there: %v, %v", w, err)
	}
}

// After unselect no Service selects the pod; labels that no Service needs stay.
func TestUnselect(t *testing.T) {
	w := &workload{services: []corev1.Service{*service("a", map[string]string{"app": "web", "tier": "front"}), *service("b", map[string]string{"app": "web"}),
		*service("c", map[string]string{"tier": "front"}), *service("d", map[string]string{"app": "other"}), *service("headless, by hand", nil)}}
	set := map[string]string{"app": "web", "tier": "front", "keep": "x", lease.LabelReleased: "e"}
	off := w.unselect(set)
	left := maps.Clone(set)
	for k := range off {
		delete(left, k)
	}
	if len(w.selecting(left)) != 0 || left["keep"] != "x" || left[lease.LabelReleased] != "e" {
		t.Errorf("taken off %v, left %v", off, left)
	}
	if off := w.unselect(map[string]string{"app": "free"}); len(off) != 0 {
		t.Errorf("taken off a pod that no Service selects: %v", off)
	}
}

func TestOwns(t *testing.T) {
	k, yes := Key{"ns", "Deployment", "web"}, true
	w := &workload{owners: map[string]*appsv1.ReplicaSet{"rs": {Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod-template-hash": "1"}}}}}}
	pod := func(owner, released, workload string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{lease.AnnotationWorkload: workload}}}
		if owner != "" {
			p.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(owner), Controller: &yes}}
		}
		if released != "" {
			p.Labels[lease.LabelReleased] = released
		}
		return p
	}
	for name, tt := range map[string]struct {
		p    *corev1.Pod
		want bool
	}{
		"owned":                                  {pod("rs", "", ""), true},
		"of another":                             {pod("other", "", ""), false},
		"released, not yet noticed by its owner": {pod("rs", "e", "Deployment/web"), true},
		"released":                               {pod("", "e", "Deployment/web"), true},
		"released by another workload":           {pod("", "e", "Deployment/x"), false},
		"of nobody, with an annotation of no harm": {pod("", "", "Deployment/web"), false},
	} {
		if got := w.owns(k, tt.p); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !w.adoptable(labels.Set{"pod-template-hash": "1"}) || w.adoptable(labels.Set{"pod-template-hash": "2"}) {
		t.Error("adoptable by the wrong replica set")
	}
	none := int32(0)
	w.owners["rs"].Spec.Replicas = &none
	if w.adoptable(labels.Set{"pod-template-hash": "1"}) {
		t.Error("adoptable by a replica set that wants no pods: it would be deleted")
	}
}
