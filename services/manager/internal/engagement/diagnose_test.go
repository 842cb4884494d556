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
	"berth.dev/services/manager/internal/swap"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Every trouble is named, with a command to type, within 15 s, and not at once:
// most mend themselves.
func TestDiagnose(t *testing.T) {
	waiting := func(container, reason string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "m"}}}}}
	}
	running := corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "web", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}
	nowhere := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/3 nodes"}}}
	for _, tt := range []struct {
		name    string
		status  corev1.PodStatus
		refused string
		arrived bool
		want    string // "" is no failure
	}{
		{"agent's image", waiting("web", "ImagePullBackOff"), "", false, "agent's image agent:1 cannot be pulled"},
		{"a neighbour's image", waiting("proxy", "ErrImagePull"), "", false, "image of container proxy"},
		{"crash", waiting("web", "CrashLoopBackOff"), "", false, "the agent does not start"},
		{"missing secret", waiting("web", "CreateContainerConfigError"), "", false, "CreateContainerConfigError"},
		{"no node", nowhere, "", false, "finds no node: 0/3 nodes"},
		{"agent cannot reach the manager", running, "", false, "does not reach the manager"},
		{"starting", waiting("web", "ContainerCreating"), "", false, ""},
		{"arrived, waits for its handler", running, "", true, ""},
		{"refused", corev1.PodStatus{}, "exceeded quota", false, "exceeded quota"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := NewView(fake.NewClientset(), "berth", nil, slog.New(slog.DiscardHandler))
				c := New(v, hub.New(func(hub.Change) {}), nil, nil, inject.Options{Image: "agent:1"})
				defer c.queue.ShutDown()
				k, e := Key{"ns", "Deployment", "web"}, &engagement{spec: lease.EngagementSpec{ID: "e", Container: "web"}}
				m := &memory{trouble: map[string]time.Time{}}
				s := swap.State{Replicas: 1, Want: "e"}
				pods := map[string]*corev1.Pod{}
				if tt.refused == "" {
					s.Pods = []swap.Pod{{Name: "p", Mark: "e", Arrived: tt.arrived}}
					pods["p"] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: tt.status}
				}
				w := &workload{failure: tt.refused}
				if f := c.diagnose(t.Context(), k, w, m, e, s, pods); f != nil {
					t.Fatalf("at once: %s", f.message)
				}
				time.Sleep(2 * time.Second)
				if f := c.diagnose(t.Context(), k, w, m, e, s, pods); f != nil {
					t.Fatalf("after 2 s: %s", f.message)
				}
				time.Sleep(13 * time.Second)
				f := c.diagnose(t.Context(), k, w, m, e, s, pods)
				switch {
				case tt.want == "" && f != nil:
					t.Errorf("failed: %s", f.message)
				case tt.want != "" && (f == nil || !strings.Contains(f.message, tt.want) || f.hint == ""):
					t.Errorf("%+v, want %q", f, tt.want)
				}
			})
		})
	}
}
