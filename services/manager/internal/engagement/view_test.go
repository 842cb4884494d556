package engagement

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/proof"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func view(t *testing.T, leases ...*coordinationv1.Lease) *View {
	t.Helper()
	v := NewView(fake.NewClientset(), "berth", proof.NewKey([]byte("k")), slog.New(slog.DiscardHandler))
	for _, l := range leases {
		if err := v.leaseInf.GetIndexer().Add(l); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func connection(id string) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "berth", Name: lease.ConnectionName(id), UID: types.UID("c" + id),
		Labels: map[string]string{lease.LabelKind: lease.KindConnection, lease.LabelConnection: id}}}
}

func engaged(id, container string, age time.Duration, annotations ...string) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: lease.EngagementName("Deployment", "web", container), UID: types.UID(id),
		CreationTimestamp: metav1.NewTime(time.Now().Add(-age)), Labels: map[string]string{lease.LabelKind: lease.KindEngagement},
		Annotations: map[string]string{lease.AnnotationSpec: lease.Marshal(lease.EngagementSpec{ID: id, Connection: "c", Kind: lease.Replace, WorkloadKind: "Deployment", Workload: "web", Container: container})}}}
	for i := 0; i < len(annotations); i += 2 {
		l.Annotations[annotations[i]] = annotations[i+1]
	}
	return l
}

func all(*engagement) bool { return true }

func TestOldestLiveEngagementHasTheWorkload(t *testing.T) {
	failed := lease.Marshal(lease.EngagementStatus{Phase: lease.Failed})
	v := view(t, connection("c"),
		engaged("failed", "a", 5*time.Hour, lease.AnnotationState, failed),
		engaged("released", "b", 4*time.Hour, lease.AnnotationRelease, "true"),
		engaged("young", "c", 2*time.Hour),
		engaged("old", "d", 3*time.Hour))
	engs := v.engagements("ns", all)
	if e := arbitrate(engs).replace; len(engs) != 4 || e == nil || e.spec.ID != "old" {
		t.Errorf("of %d it is %+v", len(engs), e)
	}
	if engs := v.engagements("elsewhere", all); arbitrate(engs).replace != nil {
		t.Error("found in another namespace")
	}
}

func TestWhatEndsAnEngagement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := metav1.Now()
		deleting := engaged("e", "a", 0)
		deleting.DeletionTimestamp = &now
		stranger := connection("c") // in a namespace where it counts for nothing
		stranger.Namespace = "ns"
		for name, tt := range map[string]struct {
			leases []*coordinationv1.Lease
			ended  bool
		}{
			"lives":                          {[]*coordinationv1.Lease{connection("c"), engaged("e", "a", 0)}, false},
			"released":                       {[]*coordinationv1.Lease{connection("c"), engaged("e", "a", 0, lease.AnnotationRelease, "")}, true},
			"being deleted":                  {[]*coordinationv1.Lease{connection("c"), deleting}, true},
			"no connection":                  {[]*coordinationv1.Lease{engaged("e", "a", 0)}, true},
			"a connection somewhere else":    {[]*coordinationv1.Lease{stranger, engaged("e", "a", 0)}, true},
			"somebody else's connection":     {[]*coordinationv1.Lease{connection("d"), engaged("e", "a", 0)}, true},
			"an engagement as a connection?": {[]*coordinationv1.Lease{{ObjectMeta: metav1.ObjectMeta{Namespace: "berth", Name: lease.ConnectionName("c"), Labels: map[string]string{lease.LabelKind: lease.KindEngagement}}}, engaged("e", "a", 0)}, true},
		} {
			engs := view(t, tt.leases...).engagements("ns", func(e *engagement) bool { return e.spec.ID == "e" })
			if len(engs) != 1 || (engs[0].ended != "") != tt.ended {
				t.Errorf("%s: %q", name, engs[0].ended)
			}
		}
	})
}

// A client may come before its Lease, and waits for it; who has none is told so.
func TestConnectionAwaitsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := view(t)
		came := connection("c")
		came.Annotations = map[string]string{lease.AnnotationSpec: lease.Marshal(lease.ConnectionSpec{Name: "dev"})}
		begun := time.Now()
		go func() {
			time.Sleep(leaseComesWithin / 3)
			v.arrivals.tell() // of another one
			time.Sleep(leaseComesWithin / 3)
			if err := v.leaseInf.GetIndexer().Add(came); err != nil {
				t.Error(err)
			}
			v.arrivals.tell()
		}()
		spec, err := v.Connection(t.Context(), "c")
		if waited := time.Since(begun); err != nil || spec.Name != "dev" || waited != 2*(leaseComesWithin/3) {
			t.Errorf("%+v, %v after %v", spec, err, waited)
		}
		begun = time.Now()
		if _, err := v.Connection(t.Context(), "stranger"); err == nil || !strings.Contains(err.Error(), "no live connection") {
			t.Errorf("of a stranger: %v", err)
		}
		if waited := time.Since(begun); waited != leaseComesWithin {
			t.Errorf("a stranger waited %v", waited)
		}
	})
}

// The engagement is renewed, its connection is not: it ends with that.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engaged("e", "a", 0)
		v := view(t, connection("c"), e)
		ended := func() string { return v.engagements("ns", all)[0].ended }
		if s := ended(); s != "" {
			t.Fatal(s)
		}
		for range 3 {
			time.Sleep(lease.RenewEvery)
			n := metav1.NowMicro()
			e = e.DeepCopy()
			e.Spec.RenewTime = &n
			if err := v.leaseInf.GetIndexer().Update(e); err != nil {
				t.Fatal(err)
			}
			if s := ended(); s != "" {
				t.Fatal(s)
			}
		}
		time.Sleep(lease.Duration - 3*lease.RenewEvery)
		if s := ended(); s != "its connection has ended" {
			t.Errorf("ended: %q", s)
		}
		time.Sleep(lease.Duration)
		if s := ended(); s != "its lease was not renewed in time" {
			t.Errorf("ended: %q", s)
		}
	})
}

func TestNewer(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{{"10", "9", true}, {"9", "10", false}, {"9", "9", false}, {"", "9", false}, {"x", "9", false}} {
		if newer(tt.a, tt.b) != tt.want {
			t.Errorf("%s newer than %s: %v", tt.a, tt.b, !tt.want)
		}
	}
}

// An agent in a pod that was there shows its proof from the pod's own address.
func TestBesideProof(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-1", UID: "u"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}, {IP: "fd00::7"}}}}
	key := proof.NewKey([]byte("k"))
	v := NewView(fake.NewClientset(pod), "berth", key, slog.New(slog.DiscardHandler))
	id := lease.AgentID{Namespace: "ns", Pod: "web-1", Name: "berth-agent-app-1", Container: "app"}
	good := key.Of("u", id.Name)
	for _, tt := range []struct {
		name, token, from string
		change            func(*lease.AgentID)
		want              string
	}{
		{"good", good, "10.0.0.7", nil, ""},
		{"by IPv6", good, "fd00::7", nil, ""},
		{"from elsewhere", good, "10.0.0.8", nil, "which is not the pod's address"},
		{"of another agent", key.Of("u", "berth-agent-app-2"), "10.0.0.7", nil, "not that of agent"},
		{"of a pod of the same name before", key.Of("old", id.Name), "10.0.0.7", nil, "not that of agent"},
		{"of a pod that is not there", good, "10.0.0.7", func(a *lease.AgentID) { a.Pod = "web-2" }, "there is no pod web-2"},
	} {
		a := id
		if tt.change != nil {
			tt.change(&a)
		}
		uid, err := v.Beside(t.Context(), a, tt.token, netip.MustParseAddr(tt.from))
		if tt.want == "" && (err != nil || uid != "u") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %q, %v; want %q", tt.name, uid, err, tt.want)
		}
	}
}
