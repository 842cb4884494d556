package discovery

import (
	"fmt"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

func TestDirect(t *testing.T) {
	service := func(kind corev1.ServiceType, nodePort int32, ingress ...corev1.LoadBalancerIngress) runtime.Object {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: DirectService, Namespace: "berth"},
			Spec:   corev1.ServiceSpec{Type: kind, Ports: []corev1.ServicePort{{Port: 8080, NodePort: nodePort}}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}}}
	}
	node := func(name string, ready corev1.ConditionStatus, internal, external string) runtime.Object {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeExternalIP, Address: external}, {Type: corev1.NodeInternalIP, Address: internal}}
		return n
	}
	up, down := corev1.ConditionTrue, corev1.ConditionUnknown
	for _, tt := range []struct {
		name    string
		objects []runtime.Object
		want    string
	}{
		{"no Service, of an older installation", []runtime.Object{node("a", up, "10.0.0.1", "")}, "[]"},
		{"switched off", []runtime.Object{service(corev1.ServiceTypeClusterIP, 0), node("a", up, "10.0.0.1", "")}, "[]"},
		{"node port, internal first, Ready only", []runtime.Object{service(corev1.ServiceTypeNodePort, 30123),
			node("a", up, "10.0.0.1", "192.0.2.1"), node("b", down, "10.0.0.2", ""), node("c", up, "fd00::3", "")},
			"[10.0.0.1:30123 [fd00::3]:30123 192.0.2.1:30123]"},
		{"load balancer", []runtime.Object{service(corev1.ServiceTypeLoadBalancer, 30123, corev1.LoadBalancerIngress{IP: "192.0.2.9"}, corev1.LoadBalancerIngress{Hostname: "lb.example"}),
			node("a", up, "10.0.0.1", "")}, "[192.0.2.9:8080 lb.example:8080]"},
		{"load balancer that is not there yet", []runtime.Object{service(corev1.ServiceTypeLoadBalancer, 30123), node("a", up, "10.0.0.1", "")}, "[10.0.0.1:30123]"},
		{"no more than four", []runtime.Object{service(corev1.ServiceTypeNodePort, 1), node("a", up, "10.0.0.1", ""), node("b", up, "10.0.0.2", ""), node("c", up, "10.0.0.3", ""), node("d", up, "10.0.0.4", ""), node("e", up, "10.0.0.5", "")},
			"[10.0.0.1:1 10.0.0.2:1 10.0.0.3:1 10.0.0.4:1]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Discovery{Client: fake.NewClientset(tt.objects...), Log: slog.New(slog.DiscardHandler)}
			if got := fmt.Sprint(d.Direct(t.Context(), "berth")); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
