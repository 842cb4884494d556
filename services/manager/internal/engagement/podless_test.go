package engagement

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/inject"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// A workload that has no pod, nor will have one by itself, is refused at once, with
// the command that gives it one; an engagement that was made before waits for it.
func TestPodless(t *testing.T) {
	none, yes := int32(0), true
	sel := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web", "tier": "front"}}
	meta := metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "w"}
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "ns", UID: "rs", OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", Name: "web", UID: "w", Controller: &yes}}},
		Spec: appsv1.ReplicaSetSpec{Selector: sel, Template: spec()}}
	scaled := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &none, Selector: sel, Template: spec()}}
	paused := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Paused: true, Selector: sel, Template: spec()}}
	for _, tt := range []struct {
		name       string
		client     *fake.Clientset
		phase      lease.Phase
		want, hint string
	}{
		{"scaled to 0", fake.NewClientset(scaled, set), "", "scaled to 0", "kubectl -n ns scale deployment/web --replicas=1"},
		{"scaled to 0, pending", fake.NewClientset(scaled, set), lease.Pending, "scaled to 0", "kubectl -n ns scale deployment/web --replicas=1"},
		{"scaled to 0 while engaged", fake.NewClientset(scaled, set), lease.Active, "", ""},
		{"paused before it had a pod", fake.NewClientset(paused), "", "is paused", "kubectl -n ns rollout resume deployment/web"},
		{"paused since", fake.NewClientset(paused, set), "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := Key{"ns", "Deployment", "web"}
			w, err := resolve(t.Context(), tt.client, k)
			if err != nil {
				t.Fatal(err)
			}
			f := check(k, w, &engagement{spec: lease.EngagementSpec{Kind: lease.Ingest, Container: "web"}, status: lease.EngagementStatus{Phase: tt.phase}})
			switch {
			case tt.want == "" && f != nil:
				t.Errorf("refused: %s", f.message)
			case tt.want != "" && (f == nil || !strings.Contains(f.message, tt.want) || f.hint != tt.hint):
				t.Errorf("%+v, want %q", f, tt.want)
			}
		})
	}
}

// Where no pod is Ready it is said why, as far as it is known, and earlier where
// that does not mend itself.
func TestDiagnoseUnready(t *testing.T) {
	waiting := func(reason string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "web", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "m"}}}}}
	}
	for _, tt := range []struct {
		name   string
		w      workload
		status *corev1.PodStatus // nil: there is no pod
		within time.Duration
		want   string
	}{
		{"no pod yet", workload{replicas: 1}, nil, 31 * time.Second, "no pod of Deployment/web is Ready"},
		{"quota", workload{replicas: 1, failure: "exceeded quota"}, nil, 5 * time.Second, "the cluster refuses them: exceeded quota"},
		{"image", workload{replicas: 1}, ptr(waiting("ImagePullBackOff")), 5 * time.Second, "image of container web of pod p cannot be pulled: m"},
		{"crash", workload{replicas: 1}, ptr(waiting("CrashLoopBackOff")), 31 * time.Second, "container web does not start in pod p: CrashLoopBackOff"},
		{"starts", workload{replicas: 1}, ptr(waiting("ContainerCreating")), 31 * time.Second, "no pod of Deployment/web is Ready"},
		{"no node", workload{replicas: 1}, &corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/3 nodes"}}}, 11 * time.Second, "finds no node: 0/3 nodes"},
		{"scaled to 0 while engaged", workload{}, nil, time.Minute, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := NewView(fake.NewClientset(), "berth", nil, slog.New(slog.DiscardHandler))
				c := New(v, hub.New(func(hub.Change) {}), nil, nil, inject.Options{Image: "agent:1"})
				defer c.queue.ShutDown()
				k := Key{"ns", "Deployment", "web"}
				e := &engagement{lease: &coordinationv1.Lease{}, spec: lease.EngagementSpec{ID: "e", Container: "web"}}
				pods := map[string]*corev1.Pod{}
				if tt.status != nil {
					pods["p"] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: *tt.status}
				}
				m, began := &memory{}, time.Now()
				for {
					p := m.patience("e")
					f := c.diagnoseBeside(t.Context(), k, &tt.w, e, pods, nil, 0, p)
					p.forget()
					switch {
					case f != nil && (tt.want == "" || !strings.Contains(f.message, tt.want) || f.hint == ""):
						t.Fatalf("%+v, want %q", f, tt.want)
					case f != nil && time.Since(began) < patienceImage:
						t.Fatalf("at once: %s", f.message)
					case f != nil, tt.want == "" && time.Since(began) > tt.within:
						return
					case time.Since(began) > tt.within:
						t.Fatalf("nothing within %v", tt.within)
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

func ptr[T any](v T) *T { return &v }
