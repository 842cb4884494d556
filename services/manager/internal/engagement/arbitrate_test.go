package engagement

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/inject"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestArbitrate(t *testing.T) {
	at := time.Now()
	// An engagement is written kind:id[:ports][:state].
	parse := func(s string, second int) *engagement {
		f := strings.Split(s, ":")
		e := &engagement{spec: lease.EngagementSpec{ID: f[1], Kind: lease.Kind(f[0]), Client: f[1], WorkloadKind: "Deployment", Workload: "web", Container: "app"},
			lease: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: f[1], CreationTimestamp: metav1.NewTime(at.Add(time.Duration(second) * time.Second))}}}
		for _, x := range f[2:] {
			switch x {
			case "ended":
				e.ended = "released"
			case "failed":
				e.status.Phase = lease.Failed
			case "active":
				e.status.Phase = lease.Active
			case "x", "y":
				e.spec.Filter.Headers = []lease.HeaderMatch{{Name: "X-Dev", Value: x}}
			default:
				for _, p := range strings.Split(x, "+") {
					var n uint16
					_, _ = fmt.Sscan(strings.TrimSuffix(p, "u"), &n)
					port := lease.Port{Container: n, Protocol: "TCP"}
					if strings.HasSuffix(p, "u") {
						port.Protocol = "UDP"
					}
					e.spec.Ports = append(e.spec.Ports, port)
				}
			}
		}
		return e
	}
	for _, tt := range []struct {
		engs string // oldest first; those joined by & are of one second
		want string // replace | beside | refused: why
	}{
		{"", "|"},
		{"replace:a", "a|"},
		{"replace:a replace:b", "a|; b: Deployment/web is engaged by a (container app)"},
		{"replace:a:ended replace:b", "b|"},
		{"replace:a:failed replace:b", "b|"},
		{"ingest:a ingest:b ingest:c", "|a b c"},
		{"replace:a ingest:b", "a|b"},
		{"ingest:b replace:a", "a|b"},
		{"intercept:a:8080 intercept:b:9090 intercept:c:8080u", "|a b c"},
		{"intercept:a:8080 intercept:b:9090+8080", "|a; b: port 8080/TCP of Deployment/web is intercepted by a"},
		{"intercept:a:8080:ended intercept:b:8080", "|b"},
		{"intercept:a:8080:x intercept:b:8080:y intercept:c:8080", "|a b c"},
		{"intercept:a:8080:x intercept:b:8080:x", "|a; b: port 8080/TCP with X-Dev=x of Deployment/web is intercepted by a"},
		{"intercept:a:8080 replace:b ingest:c", "|a c; b: Deployment/web is held by a (intercept)"},
		{"wiretap:a:8080 intercept:b:8080 wiretap:c:8080", "|a b c"},
		{"replace:a wiretap:b:8080", "a|; b: Deployment/web is replaced by a (container app)"},
		{"replace:a intercept:b:8080", "a|; b: Deployment/web is replaced by a (container app)"},
		{"intercept:a:8080&intercept:b:8080:active", "|b; a: port 8080/TCP of Deployment/web is intercepted by b"}, // was let in before
		{"intercept:a:8080 intercept:b:8080:active", "|a; b: port 8080/TCP of Deployment/web is intercepted by a"},
	} {
		var engs []*engagement
		for i, group := range strings.Fields(tt.engs) {
			for _, s := range strings.Split(group, "&") {
				engs = append(engs, parse(s, i))
			}
		}
		r := arbitrate(engs)
		got := "|"
		if r.replace != nil {
			got = r.replace.spec.ID + got
		}
		var beside, refused []string
		for _, e := range r.beside {
			beside = append(beside, e.spec.ID)
		}
		for e, why := range r.refused {
			refused = append(refused, "; "+e.spec.ID+": "+why)
		}
		slices.Sort(refused)
		if got += strings.Join(beside, " ") + strings.Join(refused, ""); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.engs, got, tt.want)
		}
	}
}

func TestSidecarsOf(t *testing.T) {
	e := func(kind lease.Kind, container, method string, named bool, ports ...lease.Port) *engagement {
		return &engagement{spec: lease.EngagementSpec{Kind: kind, Container: container, Ports: ports}, status: lease.EngagementStatus{Method: method, Named: named}}
	}
	http, grpc := lease.Port{Container: 8080, Protocol: "TCP", Name: "http", Handler: 3000}, lease.Port{Container: 9090, Protocol: "TCP", Name: "grpc"}
	engs := []*engagement{
		e(lease.Ingest, "app", lease.Ephemeral, false), // needs none
		e(lease.Ingest, "app", "surge", false),
		e(lease.Intercept, "app", "surge", true, http),
		e(lease.Intercept, "app", "surge", true, grpc),
		e(lease.Intercept, "other", "surge", false, http),
	}
	got := sidecarsOf(engs)
	if len(got) != 2 || got[0].Container != "app" || got[0].Divert || len(got[0].Named) != 2 || got[0].Named[0].Name != "grpc" || !got[1].Divert {
		t.Errorf("%+v", got)
	}
	slices.Reverse(engs)
	if a, b := inject.Mark(got), inject.Mark(sidecarsOf(engs)); a != b {
		t.Errorf("the order matters: %s, %s", a, b)
	}
	if inject.Mark(sidecarsOf(engs[4:])) != "" {
		t.Error("an ephemeral agent is asked of new pods")
	}
}

// What a name can be given for.
func TestNameless(t *testing.T) {
	w := &workload{template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}, {Name: "other", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}}}}}}
	for _, tt := range []struct {
		port lease.Port
		is   bool
	}{
		{lease.Port{Container: 8080, Protocol: "TCP", Name: "http"}, false},
		{lease.Port{Container: 8080, Protocol: "TCP"}, true},
		{lease.Port{Container: 8080, Protocol: "UDP", Name: "http"}, true},
		{lease.Port{Container: 80, Protocol: "TCP", Name: "web"}, true}, // another container's
		{lease.Port{Container: 8081, Protocol: "TCP", Name: "http"}, true},
	} {
		if _, is := nameless(w, &engagement{spec: lease.EngagementSpec{Container: "app", Ports: []lease.Port{tt.port}}}); is != tt.is {
			t.Errorf("%+v: %v", tt.port, is)
		}
	}
}
