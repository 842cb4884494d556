package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// patch changes the workload itself.
func (f forms) patch(ctx context.Context, kind, body string) error {
	apps, opts := cluster.Kube.AppsV1(), metav1.PatchOptions{}
	var err error
	switch kind {
	case "Deployment":
		_, err = apps.Deployments("default").Patch(ctx, f.name, types.StrategicMergePatchType, []byte(body), opts)
	case "StatefulSet":
		_, err = apps.StatefulSets("default").Patch(ctx, f.name, types.StrategicMergePatchType, []byte(body), opts)
	case "ReplicaSet":
		_, err = apps.ReplicaSets("default").Patch(ctx, f.name, types.StrategicMergePatchType, []byte(body), opts)
	default:
		err = fmt.Errorf("no kind %q", kind)
	}
	return err
}

// renewed waits until none of these pods is left, and as many others are Ready.
func (f forms) renewed(t *testing.T, old []corev1.Pod) {
	t.Helper()
	rig.Eventually(t, 3*time.Minute, "the pods of "+f.name+" are replaced", func(context.Context) (bool, string) {
		now := f.list(t)
		for _, p := range now {
			if slices.ContainsFunc(old, func(o corev1.Pod) bool { return o.UID == p.UID }) {
				return false, p.Name + " is still there"
			}
		}
		return true, ""
	})
}

// TestFormsScaled engages workloads of every kind while they grow from one
// replica to four and all their pods are replaced, under requests from inside
// the cluster: none is lost, none comes to the app, and when the engagement is
// left none comes to the handler, and no pod is harmed.
func TestFormsScaled(t *testing.T) {
	apply(t, "testdata/forms.yaml")
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)

	for _, c := range []struct {
		kind, name string
		verb       []string // all but the handler
		listens    []string // the handler's ports
		url        string   // that leads to any of the pods; empty without a service
		each       func(corev1.Pod) string
		udp        string // a port that the handler has by UDP too
		exchanges  bool   // begins and ends with other pods
	}{
		{
			kind: "StatefulSet", name: "forms-set",
			verb: []string{"intercept", "forms-set", "--service", "forms-set-all", "--port", "9031:web"}, listens: []string{"9031"},
			url: "http://forms-set-all", each: func(p corev1.Pod) string { return "http://" + p.Name + ".forms-set:7021" },
		},
		{
			kind: "ReplicaSet", name: "forms-rs",
			verb: []string{"intercept", "forms-rs", "--port", "9032:80"}, listens: []string{"9032"},
			url: "http://forms-rs", each: func(p corev1.Pod) string { return "http://" + p.Status.PodIP + ":7022" },
		},
		{
			kind: "Deployment", name: "forms-alone",
			verb: []string{"intercept", "forms-alone", "--port", "9033:7023", "--port", "9034:7023/UDP"}, listens: []string{"9033", "9034"},
			each: func(p corev1.Pod) string { return "http://" + p.Status.PodIP + ":7023" }, udp: "7023",
		},
		{
			kind: "Deployment", name: "forms-two",
			verb: []string{"intercept", "forms-two", "--service", "forms-two-other", "--port", "9035:80"}, listens: []string{"9035"},
			url: "http://forms-two-other", each: func(p corev1.Pod) string { return "http://" + p.Status.PodIP + ":7025" },
		},
		{
			kind: "Deployment", name: "forms-mounted", exchanges: true,
			verb: []string{"intercept", "forms-mounted", "--port", "9037:80"}, listens: []string{"9037"},
			url: "http://forms-mounted", each: func(p corev1.Pod) string { return "http://" + p.Status.PodIP + ":7026" },
		},
		{
			kind: "StatefulSet", name: "forms-set", exchanges: true,
			verb: []string{"replace", "statefulset/forms-set", "--port", "9036:7021"}, listens: []string{"9036"},
			url: "http://forms-set-all", each: func(p corev1.Pod) string { return "http://" + p.Name + ".forms-set:7021" },
		},
	} {
		t.Run(c.verb[0]+" "+c.kind+" "+c.name, func(t *testing.T) {
			one, four := forms{c.name, 1}, forms{c.name, 4}
			change := func(body string) {
				t.Helper()
				if err := one.patch(t.Context(), c.kind, body); err != nil {
					t.Fatal(err)
				}
			}
			change(`{"spec":{"replicas":1}}`)
			first := one.list(t)[0]
			url := c.url
			if url == "" {
				url = c.each(first)
			}
			says(t, "app", url)

			p := begin(t, ctl, slices.Concat(c.verb, []string{"--docker-run", "--", probeImage, "says", "handler"}, c.listens)...)
			says(t, "handler", url)
			if c.url == "" {
				url = c.each(one.list(t)[0])
			}
			thousand(t, "one replica", url, "handler", func() {})
			thousand(t, "scaled up", url, "handler", func() {
				change(`{"spec":{"replicas":4}}`)
				four.list(t)
			})
			old := four.list(t)
			replaceAll := func() {
				if c.kind != "ReplicaSet" {
					change(`{"spec":{"template":{"metadata":{"annotations":{"renewed-for":"` + c.verb[0] + `"}}}}}`)
					four.renewed(t, old)
					return
				}
				// Nobody rolls out a ReplicaSet of its own: its pods are evicted.
				for i, o := range old {
					if err := cluster.Kube.PolicyV1().Evictions("default").Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: "default"}}); err != nil {
						t.Fatal(err)
					}
					four.renewed(t, old[:i+1])
				}
			}
			if c.url != "" {
				thousand(t, "all pods replaced", url, "handler", replaceAll)
			} else { // an address ends with its pod
				replaceAll()
			}
			now := four.list(t)
			rig.Eventually(t, time.Minute, "a fact names the four pods of now", func(context.Context) (bool, string) {
				r := ctl.Run(t, "events", "--since", "10m", "--no-follow", "--output", "json")
				var last []string
				for _, e := range rig.Lines[event.Envelope](t, r.Stdout) {
					if f, ok := event.Decode[event.PodsChanged](e); ok {
						last = f.Pods
					}
				}
				for _, p := range now {
					if !slices.Contains(last, p.Name) {
						return false, fmt.Sprint(last)
					}
				}
				return len(last) == len(now), fmt.Sprint(last)
			})
			// Each of them, not only those that the service happened to choose.
			for _, p := range now {
				says(t, "handler", c.each(p))
				if c.udp != "" {
					saysUDP(t, "handler", p.Status.PodIP+":"+c.udp)
				}
			}

			if c.exchanges {
				leaves(t, ctl, p, c.name)
				says(t, "app", url)
				return
			}
			check := four.unharmed(t)
			leaves(t, ctl, p, c.name)
			if c.url == "" {
				url = c.each(now[0])
			}
			says(t, "app", url)
			thousand(t, "left", url, "app", func() {})
			for _, p := range now {
				says(t, "app", c.each(p))
				if c.udp != "" {
					saysUDP(t, "app", p.Status.PodIP+":"+c.udp)
				}
			}
			check()
		})
	}
}
