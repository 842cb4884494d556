package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	configuration = "berth-manager" // name of the MutatingWebhookConfiguration
	testLabel     = lease.Group + "/selftest"
	testMark      = lease.Group + "/selftest-seen"
	testNamespace = "default" // one that the webhook covers
	testFresh     = 20 * time.Second
)

// ErrUnreached: the API server does not reach the webhook.
var ErrUnreached = errors.New("the API server does not reach Berth's admission webhook")

// selfTest sends a pod through the API server as a dry run and looks whether it
// came by here. What else the API server says of that pod (a quota, a policy)
// does not matter: the webhook comes before those.
type selfTest struct {
	mu    sync.Mutex
	seen  map[string]bool // nonces on their way, true when seen here
	last  error
	at    time.Time
	doing sync.Mutex // one test at a time
}

// answer marks the pod of a running test.
func (t *selfTest) answer(pod *corev1.Pod, dryRun *bool) []byte {
	nonce := pod.Labels[testLabel]
	if nonce == "" || dryRun == nil || !*dryRun {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.seen[nonce]; !ok {
		return nil
	}
	t.seen[nonce] = true
	return []byte(`[{"op":"add","path":"/metadata/annotations","value":{"` + testMark + `":"` + nonce + `"}}]`)
}

// SelfTest makes sure that the API server trusts the webhook and calls it. A
// good outcome is remembered for some seconds unless again is set.
func (w *Webhook) SelfTest(ctx context.Context, again bool) error {
	t := &w.test
	t.doing.Lock()
	defer t.doing.Unlock()
	t.mu.Lock()
	last, at := t.last, t.at
	t.mu.Unlock()
	if !again && !at.IsZero() && last == nil && time.Since(at) < testFresh {
		return nil
	}
	err := w.ensureBundle(ctx)
	if err == nil {
		err = w.sendProbe(ctx)
	}
	t.mu.Lock()
	t.last, t.at = err, time.Now()
	t.mu.Unlock()
	return err
}

func (w *Webhook) sendProbe(ctx context.Context) error {
	t := &w.test
	nonce := rand.Text()
	t.mu.Lock()
	if t.seen == nil {
		t.seen = map[string]bool{}
	}
	t.seen[nonce] = false
	t.mu.Unlock()
	defer func() { t.mu.Lock(); delete(t.seen, nonce); t.mu.Unlock() }()

	pod, err := w.Client.CoreV1().Pods(testNamespace).Create(ctx, probePod(nonce), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	t.mu.Lock()
	seen := t.seen[nonce]
	t.mu.Unlock()
	switch {
	case err == nil && pod.Annotations[testMark] == nonce:
		return nil
	case err != nil && seen:
		return nil // refused for another reason, after it was here
	case err != nil:
		return fmt.Errorf("test the webhook: create a pod as a dry run: %w", err)
	}
	return fmt.Errorf("%w: a pod created as a dry run came back without its mark", ErrUnreached)
}

// ensureBundle writes the authority into the configuration, which the manifests
// cannot know, and again after somebody applied them anew.
func (w *Webhook) ensureBundle(ctx context.Context) error {
	configs := w.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c, err := configs.Get(ctx, configuration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("%w: read MutatingWebhookConfiguration %s: %w", ErrUnreached, configuration, err)
	}
	type op struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	var ops []op
	for i, h := range c.Webhooks {
		if !bytes.Equal(h.ClientConfig.CABundle, w.ca.pem) {
			ops = append(ops, op{"add", fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), base64.StdEncoding.EncodeToString(w.ca.pem)})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	patch, err := json.Marshal(ops)
	if err != nil {
		return fmt.Errorf("marshal patch: %w", err)
	}
	if _, err := configs.Patch(ctx, configuration, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: "berth-manager"}); err != nil {
		return fmt.Errorf("%w: write caBundle into MutatingWebhookConfiguration %s: %w", ErrUnreached, configuration, err)
	}
	return nil
}

// probePod would be accepted by Pod Security `restricted`; it is never stored.
func probePod(nonce string) *corev1.Pod {
	yes, no, user := true, false, int64(65532)
	labels := identity.Labels()
	labels[testLabel] = nonce
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "berth-selftest-", Labels: labels},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "none", Image: "none",
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}},
		},
	}
}
