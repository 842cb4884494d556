package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// alternating asks for the frontend inside the cluster, n times, over connections
// that are kept alive, with the header x-dev alice, bob and carol in turn. It
// returns who answered whom, and how often.
func alternating(ctx context.Context, t *testing.T, n int) (string, error) {
	t.Helper()
	return alternatingAt(ctx, t, "http://frontend-v1", n)
}

// alternatingAt asks another URL.
func alternatingAt(ctx context.Context, t *testing.T, url string, n int) (string, error) {
	t.Helper()
	out, err := cluster.Exec(ctx, "default", podOf(t, "echo"), "other", "/probe", "alternate", url, fmt.Sprint(n), "alice", "bob", "carol")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, ", "), err
}

// begin starts an engagement and waits until it is active.
func begin(t *testing.T, ctl *rig.Ctl, args ...string) *rig.Proc {
	t.Helper()
	p := ctl.Start(t, args...)
	rig.Eventually(t, time.Minute, strings.Join(args, " ")+" is active", func(context.Context) (bool, string) {
		if !p.Running() {
			t.Fatalf("it ended:\n%s", p.Output())
		}
		return strings.Contains(p.Output(), "  active "), p.Output()
	})
	return p
}

// badFilters are flags by what is said of them.
var badFilters = map[string][]string{
	"header X-Dev is no regular expression":      {"--http-header", "x-dev=a("},
	"not like NAME=VALUE":                        {"--http-header", "x-dev"},
	"at most one of --http-path-prefix":          {"--http-path-prefix", "/a", "--http-path-regex", "/b"},
	`the path "api" does not begin with a slash`: {"--http-path-equal", "api"},
}

// Two developers have the requests with their header, of one port, and the app the
// rest: of a thousand that alternate on the same connections none comes to the
// wrong side. What one leaves is the app's again.
func TestFilters(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl, "--name", "first")
	ctl.Must(t, "connect", "--docker", "--name", "second")
	check := untouched(t)

	for want, args := range badFilters {
		refused(t, ctl, 2, []string{want}, append([]string{"intercept", "frontend-v1", "--use", "second", "--port", "9101:http"}, args...)...)
	}
	refused(t, ctl, 2, []string{"port 7007/UDP has none"}, "intercept", "echo", "--container", "echo", "--use", "second", "--port", "9101:udp", "--http-header", "x-dev=a")

	alice := begin(t, ctl, "intercept", "frontend-v1", "--use", "first", "--port", "9101:http", "--http-header", "x-dev=alice", "--docker-run", "--", probeImage, "says", "alice", "9101")
	bob := begin(t, ctl, "intercept", "frontend-v1", "--use", "second", "--port", "9101:http", "--http-header", "X-Dev=b.b", "--http-path-prefix", "/", "--docker-run", "--", probeImage, "says", "bob", "9101")
	settled := func(n int, want string) {
		t.Helper()
		rig.Eventually(t, time.Minute, want, func(ctx context.Context) (bool, string) {
			got, err := alternating(ctx, t, n)
			return err == nil && got == want, fmt.Sprint(got, err) + alice.Output() + bob.Output()
		})
	}
	settled(12, "alice alice: 4, bob bob: 4, carol frontend v1: 4")
	if got, err := alternating(t.Context(), t, 1200); err != nil || got != "alice alice: 400, bob bob: 400, carol frontend v1: 400" {
		t.Errorf("%s, %v", got, err)
	}
	refused(t, ctl, 1, []string{"with X-Dev=alice", "is engaged by"}, "intercept", "frontend-v1", "--use", "second", "--port", "9102:http", "--http-header", "X-DEV=alice")
	refused(t, ctl, 1, []string{"is engaged by"}, "replace", "frontend-v1", "--use", "second", "--docker-run", "--", probeImage)
	if list := ctl.Must(t, "list", "--use", "first").Stdout; !strings.Contains(list, "with X-Dev=alice") || !strings.Contains(list, "with X-Dev=b.b, path-prefix=/") {
		t.Errorf("who has which requests is to be seen:\n%s", list)
	}

	interrupt := func(p *rig.Proc) {
		t.Helper()
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
	}
	// Who has no filter has the rest, and the others theirs.
	rest := begin(t, ctl, "intercept", "frontend-v1", "--use", "second", "--port", "9103:http", "--docker-run", "--", probeImage, "says", "rest", "9103")
	settled(12, "alice alice: 4, bob bob: 4, carol rest: 4")
	interrupt(alice)
	if got, err := alternating(t.Context(), t, 300); err != nil || got != "alice rest: 100, bob bob: 100, carol rest: 100" {
		t.Errorf("after one has left: %s, %v", got, err)
	}
	interrupt(rest)
	interrupt(bob)
	if got, err := alternating(t.Context(), t, 12); err != nil || got != "alice frontend v1: 4, bob frontend v1: 4, carol frontend v1: 4" {
		t.Errorf("after all have left: %s, %v", got, err)
	}
	check()
}

// A filter on four replicas: of the requests that come to any of them, by connections
// that stay, each goes to its side; again so by new agents and by a new manager, and to
// the app alone after the end. No pod is restarted.
func TestFiltersKill(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	scale := func(ctx context.Context, replicas int) {
		t.Helper()
		if _, err := cluster.Kube.AppsV1().Deployments("default").Patch(ctx, "frontend-v1", types.StrategicMergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Settle(ctx, "default", "frontend-v1"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { scale(context.Background(), 1) })
	scale(t.Context(), 4)
	check := untouched(t)

	alice := begin(t, ctl, "intercept", "frontend-v1", "--port", "9301:http", "--http-header", "x-dev=alice", "--docker-run", "--", probeImage, "says", "alice", "9301")
	// Each pod is asked by itself: by the Service, one without an agent could go unseen.
	settled := func(after string) {
		t.Helper()
		pods, err := cluster.Kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=frontend-v1"})
		if err != nil || len(pods.Items) != 4 {
			t.Fatalf("want four pods: %v, %v", pods, err)
		}
		for _, p := range pods.Items {
			rig.Eventually(t, 2*time.Minute, after+": "+p.Name+" splits", func(ctx context.Context) (bool, string) {
				got, err := alternatingAt(ctx, t, "http://"+net.JoinHostPort(p.Status.PodIP, "8080"), 12)
				return err == nil && got == "alice alice: 4, bob frontend v1: 4, carol frontend v1: 4", fmt.Sprint(got, err) + alice.Output()
			})
		}
		rig.Eventually(t, 2*time.Minute, after+": all requests of 1,200 come to their side", func(ctx context.Context) (bool, string) {
			got, err := alternating(ctx, t, 1200)
			return err == nil && got == "alice alice: 400, bob frontend v1: 400, carol frontend v1: 400", fmt.Sprint(got, err)
		})
	}
	settled("begun")
	killInCluster(t, "default", "app=frontend-v1", "agent") // on the dev cluster all four
	settled("the agents killed")
	killInCluster(t, "berth", "app.kubernetes.io/name=berth-manager", "manager")
	settled("the manager killed")
	if !alice.Running() {
		t.Errorf("the engagement ended: %s", alice.Output())
	}
	ctl.Must(t, "leave", "frontend-v1")
	alice.Wait(t, time.Minute)
	if got, err := alternating(t.Context(), t, 120); err != nil || got != "alice frontend v1: 40, bob frontend v1: 40, carol frontend v1: 40" {
		t.Errorf("after the end: %s, %v", got, err)
	}
	check()
}

// A wiretap's handler has copies of what the service is asked, beside an intercept
// too, or with a filter of the requests that it matches; who answers is who would
// without it. One that never reads harms nobody.
func TestWiretap(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	check := untouched(t)
	refused(t, ctl, 2, []string{"port 7007/UDP has none"}, "wiretap", "echo", "--container", "echo", "--port", "9201:udp")
	for want, args := range badFilters {
		refused(t, ctl, 2, []string{want}, append([]string{"wiretap", "frontend-v1", "--port", "9201:http"}, args...)...)
	}
	tap := begin(t, ctl, "wiretap", "frontend-v1", "--port", "9201:http", "--docker-run", "--", probeImage, "heard", "9201")
	deaf := begin(t, ctl, "wiretap", "frontend-v1", "--port", "9202:http", "--docker-run", "--", probeImage, "deaf", "9202")
	absent := begin(t, ctl, "wiretap", "frontend-v1", "--port", "9204:http", "--wait", "none", "--docker-run", "--", probeImage, "deaf", "9205")
	mine := begin(t, ctl, "intercept", "frontend-v1", "--port", "9203:http", "--http-header", "x-dev=alice", "--docker-run", "--", probeImage, "says", "alice", "9203")
	rig.Eventually(t, time.Minute, "copies come, of what the app and the intercept answer", func(ctx context.Context) (bool, string) {
		got, err := alternating(ctx, t, 12)
		out := tap.Output()
		return err == nil && got == "alice alice: 4, bob frontend v1: 4, carol frontend v1: 4" && strings.Contains(out, "X-Dev: alice") && strings.Contains(out, "X-Dev: carol"), fmt.Sprint(got, err) + out + deaf.Output() + mine.Output()
	})
	if got, err := alternating(t.Context(), t, 600); err != nil || got != "alice alice: 200, bob frontend v1: 200, carol frontend v1: 200" {
		t.Errorf("%s, %v", got, err)
	}
	alice := begin(t, ctl, "wiretap", "frontend-v1", "--port", "9206:http", "--http-header", "X-Dev=alic.", "--docker-run", "--", probeImage, "requests", "9206")
	nobody := begin(t, ctl, "wiretap", "frontend-v1", "--port", "9207:http", "--http-path-prefix", "/nothing", "--docker-run", "--", probeImage, "requests", "9207")
	// Fewer than would be dropped of a handler that is slow.
	const copy = `asked GET / by "alice"`
	if got, err := alternating(t.Context(), t, 300); err != nil || got != "alice alice: 100, bob frontend v1: 100, carol frontend v1: 100" {
		t.Errorf("%s, %v", got, err)
	}
	rig.Eventually(t, time.Minute, "a wiretap with a filter has copies of the requests that it matches", func(context.Context) (bool, string) {
		return strings.Count(alice.Output(), copy) >= 100, alice.Output()
	})
	if out := alice.Output(); strings.Count(out, copy) != 100 || strings.Count(out, "asked ") != 100 {
		t.Errorf("copies of other requests: %s", out)
	}
	if out := nobody.Output(); strings.Contains(out, "asked ") {
		t.Errorf("copies that the filter does not match: %s", out)
	}
	if list := ctl.Must(t, "list").Stdout; strings.Count(list, "(wiretap 8080/TCP)") != 3 || !strings.Contains(list, "(wiretap 8080/TCP with X-Dev=alic.)") || !strings.Contains(list, "(wiretap 8080/TCP with path-prefix=/nothing/)") {
		t.Errorf("all wiretaps are to be named:\n%s", list)
	}
	rig.Eventually(t, time.Minute, "what a handler loses is counted", func(context.Context) (bool, string) {
		r := ctl.Run(t, "status")
		return strings.Count(r.Stdout, "its handler did not take all copies") == 1 && strings.Contains(absent.Output(), "copies lost"), r.String() + absent.Output()
	})
	// The filter of an intercept is asked of the same connections.
	if out, err := cluster.Exec(t.Context(), "default", podOf(t, "echo"), "other", "/probe", "get", "https://frontend-v1:80"); err == nil {
		t.Errorf("TLS on a port without is answered: %s", out)
	}
	rig.Eventually(t, time.Minute, "what has a filter says that something is not HTTP, and what has none does not", func(context.Context) (bool, string) {
		r := ctl.Run(t, "status")
		said := ""
		for _, p := range []*rig.Proc{tap, deaf, absent, alice, nobody, mine} {
			said += strconv.Itoa(strings.Count(p.Output(), "are not HTTP"))
		}
		return said == "000111" && strings.Count(r.Stdout, "are not HTTP") == 3, said + r.String()
	})
	for _, p := range []*rig.Proc{tap, deaf, absent, alice, nobody, mine} {
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
	}
	if got, err := alternating(t.Context(), t, 12); err != nil || got != "alice frontend v1: 4, bob frontend v1: 4, carol frontend v1: 4" {
		t.Errorf("after all have left: %s, %v", got, err)
	}
	check()
}
