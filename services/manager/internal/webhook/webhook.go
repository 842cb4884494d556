// Package webhook is the admission webhook that puts agents into new pods of
// engaged workloads, its certificate, and the test of whether it is reached.
//
// The webhook never keeps a pod from starting: whatever goes wrong, the pod is
// admitted as it came, with a warning, and the reconciler finds it without its
// agent. Its decision is that of the process's own view of the Leases, which is
// the one that the reconciler acts by: a pod that the reconciler makes a
// ReplicaSet create meets a webhook that knows why.
package webhook

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"berth.dev/services/manager/internal/inject"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Path of the webhook, as in the manifests.
const Path = "/inject"

// maxReview bounds a request: etcd's own limit on an object is 1.5 MiB.
const maxReview = 4 << 20

// Engagements answers which engagement a workload's new pods are to get.
type Engagements interface {
	// Wanted returns the engagement of the workload that controls pods owned by
	// owner, if it has one. It must be quick when the namespace has none.
	Wanted(ctx context.Context, namespace string, owner metav1.OwnerReference) (inject.Engagement, bool, error)
}

// Webhook serves admission reviews.
type Webhook struct {
	Client      kubernetes.Interface
	Namespace   string // the manager's
	Engagements Engagements
	Options     inject.Options
	Log         *slog.Logger

	ca   *authority
	test selfTest
}

// Prepare loads the certificate authority.
func (w *Webhook) Prepare(ctx context.Context) error {
	var err error
	w.ca, err = loadAuthority(ctx, w.Client, w.Namespace, "berth-manager."+w.Namespace+".svc")
	return err
}

// Serve serves on addr until ctx ends.
func (w *Webhook) Serve(ctx context.Context, addr string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, w.serve)
	srv := &http.Server{
		Handler:           mux,
		TLSConfig:         &tls.Config{GetCertificate: w.ca.certificate, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(w.Log.Handler(), slog.LevelDebug),
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for the webhook: %w", err)
	}
	var stopped sync.WaitGroup
	stopped.Go(func() {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = srv.Shutdown(sctx)
	})
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the webhook: %w", err)
	}
	stopped.Wait()
	return nil
}

func (w *Webhook) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxReview))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
		http.Error(rw, "not an admission review", http.StatusBadRequest)
		return
	}
	review.Response = w.Review(r.Context(), review.Request)
	review.Request = nil
	rw.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(rw).Encode(review); err != nil {
		w.Log.Debug("admission answer not sent", "err", err)
	}
}

// Review decides on one request.
func (w *Webhook) Review(ctx context.Context, q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	patch, err := w.patch(ctx, q)
	resp := &admissionv1.AdmissionResponse{UID: q.UID, Allowed: true}
	if err != nil {
		w.Log.Error("a pod is admitted without its agent", "namespace", q.Namespace, "err", err)
		resp.Warnings = []string{"berth: " + err.Error()}
	}
	if patch != nil {
		t := admissionv1.PatchTypeJSONPatch
		resp.Patch, resp.PatchType = patch, &t
	}
	return resp
}

func (w *Webhook) patch(ctx context.Context, q *admissionv1.AdmissionRequest) ([]byte, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(q.Object.Raw, &pod); err != nil {
		return nil, fmt.Errorf("parse pod: %w", err)
	}
	if p := w.test.answer(&pod, q.DryRun); p != nil {
		return p, nil
	}
	owner := metav1.GetControllerOf(&pod)
	if owner == nil {
		return nil, nil
	}
	e, ok, err := w.Engagements.Wanted(ctx, q.Namespace, *owner)
	if err != nil || !ok {
		return nil, err
	}
	patch, err := inject.Pod(&pod, e, w.Options)
	if err == nil {
		w.Log.Info("agent put into a new pod", "engagement", e.ID, "namespace", q.Namespace, "workload", e.Workload)
	}
	return patch, err
}
