package workload

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func container(name string, ports ...corev1.ContainerPort) corev1.Container {
	return corev1.Container{Name: name, Ports: ports}
}

func TestPorts(t *testing.T) {
	c := container("app",
		corev1.ContainerPort{Name: "http", ContainerPort: 8080},
		corev1.ContainerPort{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		corev1.ContainerPort{Name: "dns-tcp", ContainerPort: 53, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "sctp", ContainerPort: 99, Protocol: corev1.ProtocolSCTP},
	)
	for _, tc := range []struct {
		given string // comma-separated
		want  string // handler:container/protocol(name)
		err   string
	}{
		{"", "8080:8080/TCP(http) 53:53/UDP(dns) 53:53/TCP(dns-tcp)", ""},
		{"8080", "8080:8080/TCP(http)", ""},
		{"9000:8080", "9000:8080/TCP(http)", ""},
		{"9000:http", "9000:8080/TCP(http)", ""},
		{"5353:dns", "5353:53/UDP(dns)", ""},
		{"5353:53", "5353:53/TCP(dns-tcp)", ""},
		{"5353:53/udp", "5353:53/UDP(dns)", ""},
		{"53/UDP,53/TCP", "53:53/UDP(dns) 53:53/TCP(dns-tcp)", ""},
		{"7000", "7000:7000/TCP()", ""},
		{"7000:7001/UDP", "7000:7001/UDP()", ""},
		{"1:8080,2:http", "", "engaged twice"},
		{"http", "", "not a number"},
		{"0", "", "not a number"},
		{"65536", "", "not a number"},
		{"80:web", "", `no port named "web"; the container app declares 8080/TCP (http)`},
		{"80/ICMP", "", "neither TCP nor UDP"},
		{"80:", "", `no port named ""`},
	} {
		var given []string
		if tc.given != "" {
			given = strings.Split(tc.given, ",")
		}
		ports, err := Ports(c, given)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%q: %v, want %q", tc.given, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.given, err)
			continue
		}
		var got []string
		for _, p := range ports {
			got = append(got, fmt.Sprintf("%d:%d/%s(%s)", p.Handler, p.Container, p.Protocol, p.Name))
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%q: %s, want %s", tc.given, s, tc.want)
		}
	}
	if p, err := Ports(container("worker"), nil); err != nil || len(p) != 0 {
		t.Errorf("a container without ports: %v, %v", p, err)
	}
}

func TestToPod(t *testing.T) {
	ports := []lease.Port{{Container: 80, Handler: 8080, Protocol: "TCP"}}
	for given, want := range map[string]string{
		"6379": "[{6379 0 TCP }]", "53/udp 53": "[{53 0 UDP } {53 0 TCP }]", "80": "[{80 0 TCP }]", "8080/UDP": "[{8080 0 UDP }]",
		"8080": "the handler listens on that port itself", "0": "not a port like", "x": "not a port like", "1/SCTP": "not a port like", "1 1": "given twice",
	} {
		got, err := ToPod(strings.Fields(given), ports)
		if err == nil && fmt.Sprint(got) != want || err != nil && (!strings.Contains(err.Error(), want) || fault.CodeOf(err) != fault.InvalidArgument) {
			t.Errorf("%s: %v, %v; want %s", given, got, err, want)
		}
	}
}

func TestContainerAndNames(t *testing.T) {
	one := Workload{Kind: Deployment, Name: "web", Replicas: 1, Containers: []corev1.Container{container("app")}}
	two := Workload{Kind: Deployment, Name: "web", Replicas: 1, Containers: []corev1.Container{container("app"), container("proxy")}}
	if c, err := one.Container(""); err != nil || c.Name != "app" {
		t.Errorf("%v, %v", c.Name, err)
	}
	if _, err := two.Container(""); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), "app, proxy") || !strings.HasPrefix(fault.From(err).Hint, "--container") {
		t.Errorf("%v", err)
	}
	if _, err := two.Container("x"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if c, err := two.Container("proxy"); err != nil || c.Name != "proxy" {
		t.Errorf("%v, %v", c.Name, err)
	}
	ports, _ := Ports(container("app", corev1.ContainerPort{ContainerPort: 80}), nil)
	for want, got := range map[string]string{
		"web":                    one.EngagementName("app"),
		"web/proxy":              two.EngagementName("proxy"),
		"intercept-web-80":       HandlerName("web", ports),
		"intercept-web-proxy":    HandlerName("web/proxy", nil),
		"intercept-web-proxy-80": HandlerName("web/proxy", ports),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	none := one
	none.Replicas = 0
	if f := none.Obstacle(); f == nil || !strings.Contains(f.Hint, "kubectl scale") {
		t.Errorf("%v", f)
	}
}

func TestFind(t *testing.T) {
	tmpl := corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{container("app")}}}
	meta := func(n string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: n, Namespace: "shop"} }
	yes := true
	owned := meta("frontend-v1-abc")
	owned.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "frontend-v1", Controller: &yes}}
	c := &cluster.Cluster{Server: "https://dev", Kube: fake.NewClientset(
		&appsv1.Deployment{ObjectMeta: meta("frontend-v1"), Spec: appsv1.DeploymentSpec{Template: tmpl}},
		&appsv1.Deployment{ObjectMeta: meta("db"), Spec: appsv1.DeploymentSpec{Template: tmpl}},
		&appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{Template: tmpl}},
		&appsv1.ReplicaSet{ObjectMeta: owned, Spec: appsv1.ReplicaSetSpec{Template: tmpl}},
		&appsv1.ReplicaSet{ObjectMeta: meta("alone"), Spec: appsv1.ReplicaSetSpec{Template: tmpl}},
	)}
	ctx := context.Background()
	for ref, want := range map[string]string{
		"frontend-v1": "Deployment/frontend-v1", "deploy/frontend-v1": "Deployment/frontend-v1",
		"sts/db": "StatefulSet/db", "Deployment/db": "Deployment/db", "alone": "ReplicaSet/alone",
	} {
		if w, err := Find(ctx, c, "shop", ref); err != nil || w.Title() != want {
			t.Errorf("%s: %s, %v", ref, w.Title(), err)
		}
	}
	for ref, want := range map[string]struct {
		code fault.Code
		says string
	}{
		"db":          {fault.InvalidArgument, "Deployment/db, StatefulSet/db"},
		"frontend":    {fault.NotFound, "near it: frontend-v1"},
		"job/x":       {fault.InvalidArgument, "no kind of workload"},
		"sts/frontnd": {fault.NotFound, "frontend-v1"},
	} {
		if _, err := Find(ctx, c, "shop", ref); fault.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v, want %s %q", ref, err, want.code, want.says)
		}
	}
	all, err := List(ctx, c, "shop")
	if err != nil || len(all) != 4 {
		t.Fatalf("%v, %v", all, err)
	}
	if w, err := Find(ctx, c, "shop", "frontend-v1-abc"); err != nil || w.Obstacle() == nil || w.Obstacle().Hint != "ctl replace Deployment/frontend-v1" {
		t.Errorf("%v %v", w.Obstacle(), err)
	}
}
