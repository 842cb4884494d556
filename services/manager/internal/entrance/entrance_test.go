package entrance

import (
	"context"
	"net"
	"net/netip"
	"reflect"
	"sync/atomic"
	"testing"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestOf(t *testing.T) {
	service := func(ip string, ports ...corev1.ServicePort) corev1.Service {
		return corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}}}
	got := Of([]corev1.Service{
		service("10.0.0.1", corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("http")}, corev1.ServicePort{Port: 81, TargetPort: intstr.FromString("none")}),
		service("10.0.0.2", corev1.ServicePort{Port: 8080}, corev1.ServicePort{Port: 90, TargetPort: intstr.FromInt32(9090)}),
		service("10.0.0.3", corev1.ServicePort{Port: 53, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolUDP}),
		service(corev1.ClusterIPNone, corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8080)}),
		service("fd00::1", corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}),
	}, pod, []lease.Port{{Container: 8080, Protocol: "TCP"}, {Container: 9090, Protocol: "UDP"}})
	want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:8080"), netip.MustParseAddrPort("[fd00::1]:80")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A Service with one pod of some left over leads elsewhere, one without does not.
func TestLead(t *testing.T) {
	o := New()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var left atomic.Bool // every fourth connection is accepted by a pod that has left
	var n atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n.Add(1)%4 == 0 && left.Load() {
				defer c.Close()
				continue
			}
			if !o.Took("e", c.RemoteAddr().(*net.TCPAddr).AddrPort()) {
				t.Errorf("a connection from %v is not known", c.RemoteAddr())
			}
			_ = c.(*net.TCPConn).SetLinger(0) // an agent resets it
			c.Close()
		}
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	if !o.Lead(context.Background(), at, "e", 2) {
		t.Error("all connections came to agents, and it is not seen")
	}
	left.Store(true)
	if o.Lead(context.Background(), at, "e", 2) {
		t.Error("some connections came to another pod, and it is not seen")
	}
	if o.Took("e", netip.MustParseAddrPort("127.0.0.1:1")) {
		t.Error("a connection of somebody else's is taken for ours")
	}
	if len(o.sent) > 0 {
		t.Errorf("%d connections are expected for ever", len(o.sent))
	}
	l.Close()
	if o.Lead(context.Background(), at, "e", 2) {
		t.Error("nobody listens, and it leads to agents")
	}
}
