package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/inject"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

type engagements func(owner string) (inject.Engagement, bool, error)

func (f engagements) Wanted(_ context.Context, _ string, o metav1.OwnerReference) (inject.Engagement, bool, error) {
	return f(o.Name)
}

func pod(owner string) []byte {
	yes := true
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "i"}}}}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, Controller: &yes}}
	}
	b, _ := json.Marshal(p)
	return b
}

// serve runs a webhook over real TLS; post sends it a review as the API server
// does, trusting its authority and demanding its Service's name.
func serve(t *testing.T, e Engagements) (w *Webhook, post func(object []byte) *admissionv1.AdmissionResponse) {
	t.Helper()
	w = &Webhook{Client: fake.NewClientset(), Namespace: "berth", Engagements: e, Log: slog.New(slog.DiscardHandler), Options: inject.Options{Image: "agent:1"}}
	if err := w.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, addr) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.pem)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "berth-manager.berth.svc"}}}
	return w, func(object []byte) *admissionv1.AdmissionResponse {
		t.Helper()
		body, _ := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
			Request: &admissionv1.AdmissionRequest{UID: types.UID("u"), Namespace: "ns", Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: object}}})
		var resp *http.Response
		var err error
		for range 100 { // until it listens
			if resp, err = client.Post("https://"+addr+Path, "application/json", bytes.NewReader(body)); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(b, &review); err != nil || review.Response == nil || review.Response.UID != "u" || !review.Response.Allowed || review.Kind != "AdmissionReview" {
			t.Fatalf("answer %s, %v", b, err)
		}
		return review.Response
	}
}

func TestReview(t *testing.T) {
	_, post := serve(t, engagements(func(owner string) (inject.Engagement, bool, error) {
		switch owner {
		case "engaged":
			return inject.Engagement{EngagementSpec: lease.EngagementSpec{ID: "e", Kind: lease.Replace, Container: "app"}}, true, nil
		case "other container":
			return inject.Engagement{EngagementSpec: lease.EngagementSpec{ID: "e", Kind: lease.Replace, Container: "gone"}}, true, nil
		case "broken":
			return inject.Engagement{}, false, errors.New("API server away")
		}
		return inject.Engagement{}, false, nil
	}))
	for _, tt := range []struct {
		name, owner     string
		patched, warned bool
	}{
		{"of an engaged workload", "engaged", true, false},
		{"of another workload", "free", false, false},
		{"of nobody", "", false, false},
		{"container renamed meanwhile: admitted as it is", "other container", false, true},
		{"look-up fails: admitted as it is", "broken", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := post(pod(tt.owner))
			if (r.Patch != nil) != tt.patched || (len(r.Warnings) > 0) != tt.warned {
				t.Errorf("patch %s, warnings %v", r.Patch, r.Warnings)
			}
		})
	}
	if r := post([]byte(`{"metadata":3}`)); r.Patch != nil || len(r.Warnings) == 0 {
		t.Errorf("rubbish: %+v", r)
	}
}

// Only the pod of a test that is under way, as a dry run, gets the mark.
func TestSelfTestMark(t *testing.T) {
	w := &Webhook{}
	yes, no := true, false
	w.test.seen = map[string]bool{"n": false}
	mark := func(nonce string, dry *bool) bool {
		return w.test.answer(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{testLabel: nonce}}}, dry) != nil
	}
	if mark("n", &no) || mark("n", nil) || mark("m", &yes) || mark("", &yes) {
		t.Error("marked what is no test")
	}
	if w.test.seen["n"] {
		t.Error("seen before it came")
	}
	if !mark("n", &yes) || !w.test.seen["n"] {
		t.Error("the test's pod was not marked")
	}
}

func TestUnreachedIsNamed(t *testing.T) {
	w, _ := serve(t, engagements(func(string) (inject.Engagement, bool, error) { return inject.Engagement{}, false, nil }))
	err := w.SelfTest(t.Context(), true) // a fake API server has no such configuration and calls nobody
	if !errors.Is(err, ErrUnreached) || !strings.Contains(err.Error(), configuration) {
		t.Errorf("%v", err)
	}
}

func TestAuthorityIsKept(t *testing.T) {
	c := fake.NewClientset()
	a, err := loadAuthority(t.Context(), c, "berth", "x")
	if err != nil {
		t.Fatal(err)
	}
	b, err := loadAuthority(t.Context(), c, "berth", "x")
	if err != nil || !bytes.Equal(a.pem, b.pem) {
		t.Errorf("another authority, %v", err)
	}
	first, _ := a.certificate(nil)
	second, _ := a.certificate(nil)
	if first != second {
		t.Error("a fresh certificate is not used again")
	}
	a.leaf.Leaf.NotAfter = time.Now().Add(leafLife/3 - time.Hour)
	if third, _ := a.certificate(nil); third == first {
		t.Error("an old certificate is not renewed")
	}
}
