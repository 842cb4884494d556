package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSidecar engages workloads whose running pods take no agent: it comes with
// new pods, says so and why, and is gone afterwards.
func TestSidecar(t *testing.T) {
	apply(t, "testdata/sidecar.yaml")
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)

	t.Run("intercept, a mount by subPath", func(t *testing.T) {
		f := beside{"mounted", "berth-e2e-sidecar", "surge", "subPath"}
		says(t, "app", f.url())
		p := ctl.Start(t, "intercept", f.workload, "-n", f.namespace, "--port", "9031:web", "--output", "json", "--docker-run", "--", probeImage, "says", "handler", "9031")
		says(t, "handler", f.url())
		f.prepared(t, p)
		if r := ctl.Must(t, "status"); !strings.Contains(r.Stdout, f.workload+": by surge, since ") || !strings.Contains(r.Stdout, f.why) {
			t.Errorf("the status does not say how and why: %v", r)
		}
		leaves(t, ctl, p, f.workload)
		f.restored(t)
	})
	t.Run("ingest of a StatefulSet, a mount by subPath", func(t *testing.T) {
		f := beside{"mounted-set", "berth-e2e-sidecar", "recreate", "subPath"}
		says(t, "app", f.url())
		p := ctl.Start(t, "ingest", f.workload, "-n", f.namespace, "--output", "json", "--", "sh", "-c", "echo GREETING=$GREETING >&2; exec sleep 600")
		rig.Eventually(t, time.Minute, "the command has the environment", func(context.Context) (bool, string) {
			return strings.Contains(p.Output(), "GREETING=of mounted-set"), p.Output()
		})
		f.prepared(t, p)
		says(t, "app", f.url())
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		f.restored(t)
	})
	t.Run("intercept of a named port, Pod Security restricted", func(t *testing.T) {
		f := beside{"strict", "berth-e2e-restricted", "surge", "restricted"}
		says(t, "app", f.url())
		// By its number the port cannot be given to anybody else: refused, and said.
		refused(t, ctl, 1, []string{"targetPort", "name"}, "intercept", f.workload, "-n", f.namespace, "--port", "9033:number", "--docker-run", "--", probeImage, "says", "handler", "9033")
		f.restored(t)
		p := ctl.Start(t, "intercept", f.workload, "-n", f.namespace, "--port", "9033:web", "--output", "json", "--docker-run", "--", probeImage, "says", "handler", "9033")
		says(t, "handler", f.url())
		f.prepared(t, p)
		leaves(t, ctl, p, f.workload)
		f.restored(t)
	})
}

// beside is a workload of testdata/sidecar.yaml and how its pods are exchanged.
type beside struct{ workload, namespace, method, why string }

func (f beside) url() string { return "http://" + f.workload + "." + f.namespace }

// prepared checks what the fact says.
func (f beside) prepared(t *testing.T, p *rig.Proc) {
	t.Helper()
	for line := range strings.Lines(p.Output()) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		for _, e := range rig.Lines[event.Envelope](t, line) {
			if w, ok := event.Decode[event.WorkloadPrepared](e); ok {
				if w.Method != f.method || !strings.Contains(w.Why, f.why) {
					t.Errorf("prepared by %s, because %q; want %s, because of %s", w.Method, w.Why, f.method, f.why)
				}
				return
			}
		}
	}
	t.Errorf("it is not said how the workload was prepared:\n%s", p.Output())
}

// restored probes until the app answers from pods without an agent, and no Lease
// is left.
func (f beside) restored(t *testing.T) {
	t.Helper()
	rig.Eventually(t, time.Minute, f.workload+" is as it was", func(ctx context.Context) (bool, string) {
		pods, err := cluster.Kube.CoreV1().Pods(f.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + f.workload})
		if err != nil {
			return false, err.Error()
		}
		if len(pods.Items) != 1 || !rig.Ready(&pods.Items[0]) || len(pods.Items[0].Spec.Containers) != 1 || pods.Items[0].DeletionTimestamp != nil {
			return false, "its pods are others"
		}
		leases, err := cluster.Kube.CoordinationV1().Leases(f.namespace).List(ctx, metav1.ListOptions{LabelSelector: "berth.dev/kind"})
		if err != nil {
			return false, err.Error()
		}
		return len(leases.Items) == 0, "a Lease is left"
	})
	says(t, "app", f.url())
}
