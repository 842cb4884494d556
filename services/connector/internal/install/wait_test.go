package install

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodState(t *testing.T) {
	waiting := func(reason, msg string, restarts int32) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Image: "berth-cluster:x", RestartCount: restarts,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: msg}}}}}
	}
	for _, tc := range []struct {
		name     string
		status   corev1.PodStatus
		says     string
		hopeless bool
	}{
		{"pulling", waiting("ContainerCreating", "", 0), "waits: ContainerCreating", false},
		{"first failed pull", waiting("ErrImagePull", "not found\nmore", 0), "ErrImagePull not found", false},
		{"no image", waiting("ImagePullBackOff", "Back-off", 0), "cannot get the image berth-cluster:x", true},
		{"never pull", waiting("ErrImageNeverPull", "", 0), "--image", true},
		{"policy", waiting("CreateContainerConfigError", "runAsNonRoot", 0), "runAsNonRoot", true},
		{"first crash", waiting("CrashLoopBackOff", "", 1), "again and again", false},
		{"crashes", waiting("CrashLoopBackOff", "", 3), "again and again", true},
		{"no node", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes"}}}, "0/1 nodes", false},
		{"nothing known", corev1.PodStatus{}, "", false},
	} {
		state, hopeless := podState(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: tc.status})
		if !strings.Contains(state, tc.says) || tc.says == "" && state != "" || hopeless != tc.hopeless || strings.Contains(state, "\n") {
			t.Errorf("%s: %q %v", tc.name, state, hopeless)
		}
	}
}
