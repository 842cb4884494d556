package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
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
	one := Workload{Kind: lease.Deployment, Name: "web", Replicas: 1, Containers: []corev1.Container{container("app")}}
	two := Workload{Kind: lease.Deployment, Name: "web", Replicas: 1, Containers: []corev1.Container{container("app"), container("proxy")}}
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
	if f := none.Obstacle(lease.Replace); f == nil || !strings.Contains(f.Hint, "kubectl scale") {
		t.Errorf("%v", f)
	}
}

func TestFind(t *testing.T) {
	tmpl := corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{container("app")}}}
	meta := func(n string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: n, Namespace: "shop"} }
	yes := true
	owned := meta("frontend-v1-abc")
	owned.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "frontend-v1", Controller: &yes}}
	halted := meta("halted-abc")
	halted.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "halted", UID: "halted", Controller: &yes}}
	by := func(name, kind, owner string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: meta(name)}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &yes}}
		return p
	}
	web := tmpl
	web.Labels = map[string]string{"app": "web"}
	c := &cluster.Cluster{Server: "https://dev", Kube: fake.NewClientset(
		&appsv1.Deployment{ObjectMeta: meta("frontend-v1"), Spec: appsv1.DeploymentSpec{Template: web}},
		&appsv1.Deployment{ObjectMeta: meta("db"), Spec: appsv1.DeploymentSpec{Template: tmpl}},
		&appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{Template: tmpl}},
		&appsv1.ReplicaSet{ObjectMeta: owned, Spec: appsv1.ReplicaSetSpec{Template: tmpl}},
		&appsv1.ReplicaSet{ObjectMeta: meta("alone"), Spec: appsv1.ReplicaSetSpec{Template: tmpl}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "unborn", Namespace: "shop", UID: "unborn"}, Spec: appsv1.DeploymentSpec{Paused: true, Template: tmpl}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "halted", Namespace: "shop", UID: "halted"}, Spec: appsv1.DeploymentSpec{Paused: true, Template: tmpl}},
		&appsv1.ReplicaSet{ObjectMeta: halted, Spec: appsv1.ReplicaSetSpec{Template: tmpl}},
		&appsv1.DaemonSet{ObjectMeta: meta("logger")}, by("logger-x", "DaemonSet", "logger"),
		&batchv1.Job{ObjectMeta: meta("migrate")}, &batchv1.CronJob{ObjectMeta: meta("nightly")}, &corev1.ReplicationController{ObjectMeta: meta("old")},
		&corev1.Pod{ObjectMeta: meta("lonely")}, by("frontend-v1-abc-x", "ReplicaSet", "frontend-v1-abc"), by("db-0", "StatefulSet", "db"), by("kubelets", "Node", "node-1"),
		&corev1.Service{ObjectMeta: meta("shop"), Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}}}, &corev1.Service{ObjectMeta: meta("by-hand")},
	)}
	ctx := context.Background()
	for ref, want := range map[string]string{
		"frontend-v1": "Deployment/frontend-v1", "deploy/frontend-v1": "Deployment/frontend-v1",
		"sts/db": "StatefulSet/db", "Deployment/db": "Deployment/db", "alone": "ReplicaSet/alone",
	} {
		if w, err := Find(ctx, c, "shop", ref, lease.Replace); err != nil || w.Title() != want {
			t.Errorf("%s: %s, %v", ref, w.Title(), err)
		}
	}
	for ref, want := range map[string]struct {
		code fault.Code
		says string
	}{
		"db":          {fault.InvalidArgument, "Deployment/db, StatefulSet/db"},
		"frontend":    {fault.NotFound, "near it: frontend-v1"},
		"rollout/x":   {fault.InvalidArgument, "no kind of workload"},
		"sts/frontnd": {fault.NotFound, "frontend-v1"},
		"sts/alone":   {fault.NotFound, "no StatefulSet named alone, but ReplicaSet/alone"},

		"logger":             {fault.FailedPrecondition, "DaemonSet/logger cannot be engaged: each of its pods is its node's only one"},
		"ds/logger":          {fault.FailedPrecondition, "a Deployment, StatefulSet or ReplicaSet can"},
		"ds/loger":           {fault.NotFound, "no DaemonSet named loger, and one could not be engaged"},
		"migrate":            {fault.FailedPrecondition, "Job/migrate cannot be engaged"},
		"jobs.batch/migrate": {fault.FailedPrecondition, "Job/migrate cannot be engaged"},
		"nightly":            {fault.FailedPrecondition, "CronJob/nightly cannot be engaged"},
		"rc/old":             {fault.FailedPrecondition, "ReplicationController/old cannot be engaged"},
		"lonely":             {fault.FailedPrecondition, "Pod/lonely cannot be engaged: no workload controls it"},
		"pod/logger-x":       {fault.FailedPrecondition, "Pod/logger-x belongs to DaemonSet/logger, which cannot be engaged: each"},
		"frontend-v1-abc-x":  {fault.FailedPrecondition, "belongs to Deployment/frontend-v1: engage that one"},
		"po/db-0":            {fault.FailedPrecondition, "belongs to StatefulSet/db: engage that one"},
		"po/kubelets":        {fault.FailedPrecondition, "belongs to Node/node-1, which cannot be engaged"},
		"svc/shop":           {fault.FailedPrecondition, "Service/shop is no workload, but leads to Deployment/frontend-v1: engage that"},
		"by-hand":            {fault.FailedPrecondition, "Service/by-hand cannot be engaged"},
	} {
		if _, err := Find(ctx, c, "shop", ref, lease.Replace); fault.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v, want %s %q", ref, err, want.code, want.says)
		}
	}
	for ref, want := range map[string]string{"svc/shop": "ctl wiretap Deployment/frontend-v1", "po/db-0": "ctl wiretap StatefulSet/db", "logger": "ctl list -n shop"} {
		if _, err := Find(ctx, c, "shop", ref, lease.Wiretap); fault.From(err).Hint != want {
			t.Errorf("%s: hint %q, want %q", ref, fault.From(err).Hint, want)
		}
	}
	all, err := List(ctx, c, "shop")
	if err != nil || len(all) != 6 {
		t.Fatalf("%v, %v", all, err)
	}
	for ref, paused := range map[string]bool{"unborn": true, "halted": false} {
		w, err := Find(ctx, c, "shop", ref, lease.Intercept)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(o Workload) bool { return o.Name == ref })
		for _, w := range []Workload{w, all[i]} {
			o := w.Obstacle(lease.Intercept)
			if (o != nil) != paused || paused && (o.Hint != "kubectl rollout resume deployment/unborn -n shop" || !strings.Contains(o.Message, "is paused")) {
				t.Errorf("%s: %v", ref, o)
			}
		}
	}
	// Who may not look has it refused by what he calls it, or as unknown.
	c.Kube.(*fake.Clientset).PrependReactor("get", "daemonsets", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(appsv1.Resource("daemonsets"), "logger", nil)
	})
	if _, err := Find(ctx, c, "shop", "ds/logger", lease.Replace); !strings.Contains(fmt.Sprint(err), "DaemonSet/logger cannot be engaged") {
		t.Error(err)
	}
	if _, err := Find(ctx, c, "shop", "logger", lease.Replace); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
	if w, err := Find(ctx, c, "shop", "frontend-v1-abc", lease.Replace); err != nil || w.Obstacle(lease.Replace) == nil || w.Obstacle(lease.Replace).Hint != "ctl replace Deployment/frontend-v1" {
		t.Errorf("%v %v", w.Obstacle(lease.Replace), err)
	}
}
