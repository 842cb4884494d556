package discovery

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestSubnets(t *testing.T) {
	service := func(ips ...string) runtime.Object {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s" + ips[0], Namespace: "d"}, Spec: corev1.ServiceSpec{ClusterIPs: ips}}
	}
	node := func(cidrs ...string) runtime.Object {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n" + cidrs[0]}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	}
	for _, tt := range []struct {
		name    string
		objects []runtime.Object
		pods    []netip.Addr
		want    string
	}{
		{"ServiceCIDR and podCIDRs, both families", []runtime.Object{
			&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00:10:96::/112"}}},
			service("10.97.0.1"), node("10.244.0.0/24", "fd00:10:244::/64"), node("10.244.1.0/24"),
		}, addrs("10.244.0.7", "fd00:10:244::7"), "[10.96.0.0/12 10.244.0.0/24 10.244.1.0/24 fd00:10:96::/112 fd00:10:244::/64]"},
		{"older cluster: guessed from services", []runtime.Object{service("10.96.0.1", "fd00:10:96::1"), service("10.96.7.1"), service("None"), node("10.244.0.0/24")},
			nil, "[10.96.0.0/16 10.244.0.0/24 fd00:10:96::/112]"},
		{"pods outside the nodes' ranges are covered", []runtime.Object{service("10.96.0.1"), node("10.244.0.0/24")},
			addrs("10.244.0.7", "192.168.3.4", "192.168.5.9"), "[10.96.0.0/16 10.244.0.0/24 192.168.0.0/21]"},
		{"no podCIDRs at all", []runtime.Object{service("10.96.0.1")}, addrs("172.20.1.9"), "[10.96.0.0/16 172.20.1.0/24]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Discovery{Client: fake.NewClientset(tt.objects...), PodIPs: func() []netip.Addr { return tt.pods }, Log: slog.New(slog.DiscardHandler)}
			got, err := d.Subnets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("got  %v\nwant %v", got, tt.want)
			}
		})
	}
}

func TestResolver(t *testing.T) {
	r, err := parseResolver(strings.NewReader("search berth.svc.k8s.example svc.k8s.example k8s.example lan\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"))
	if err != nil || r.Domain != "k8s.example" || fmt.Sprint(r.Servers) != "[10.96.0.10 fd00::a]" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _ := parseResolver(strings.NewReader("nameserver 10.0.0.1\n")); r.Domain != "cluster.local" {
		t.Errorf("no search list: domain %q", r.Domain)
	}
}
