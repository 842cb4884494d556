package e2e

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/e2e/rig"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// untouched returns a check that the example's pods are those of now: none is
// new, and none was restarted.
func untouched(t *testing.T) func() {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cluster.Settle(ctx, "default", "frontend-v1"); err != nil { // an earlier test's rollout
		t.Fatal(err)
	}
	before := podNames(t)
	return func() {
		t.Helper()
		if now := podNames(t); now != before {
			t.Errorf("pods %s, before %s", now, before)
		}
		restored(t)
	}
}

func TestIngest(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	check := untouched(t)

	// The environment, to a local command; the second time the agent is there.
	for range 2 {
		r := ctl.Must(t, "ingest", "frontend-v1", "--env-json", "-", "--", "true")
		var env map[string]string
		if err := json.Unmarshal([]byte(r.Stdout), &env); err != nil {
			t.Fatalf("%v: %v", err, r)
		}
		for k, want := range map[string]string{"GREETING": "hello from the cluster's config map", "API_TOKEN": "not-so-secret-canary", "BACKEND_URL": "http://backend", "MULTI_LINE": "first\nsecond\nthird"} {
			if env[k] != want {
				t.Errorf("%s=%q, want %q", k, env[k], want)
			}
		}
		if !strings.HasPrefix(env["POD_NAME"], "frontend-v1-") {
			t.Errorf("POD_NAME=%q", env["POD_NAME"])
		}
	}
	// Several at once, in containers, while the workload answers as ever.
	one := ctl.Start(t, "ingest", "frontend-v1", "--docker-run", "--", probeImage, "serve", ":9001")
	two := ctl.Start(t, "ingest", "frontend-v1", "--docker-run", "--", probeImage, "serve", ":9002")
	rig.Eventually(t, time.Minute, "both ingests are active", func(context.Context) (bool, string) {
		r := ctl.Run(t, "status", "--output", "json")
		return strings.Count(strings.ReplaceAll(r.Stdout, " ", ""), `"phase":"active"`) == 2, r.String() + one.Output() + two.Output()
	})
	answeredBy(t, "frontend v1")
	list := ctl.Must(t, "list")
	if strings.Count(list.Stdout, "(ingest)") != 2 {
		t.Errorf("both holders are to be named: %v", list)
	}
	for _, p := range []*rig.Proc{one, two} {
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
	}
	// A port of another container of the pod, at the handler's loopback address.
	r := ctl.Must(t, "ingest", "echo", "--container", "echo", "--to-pod", "7008", "--docker-run", "--", probeImage, "get", "http://127.0.0.1:7008")
	if !strings.HasPrefix(r.Stdout, "probe\n") {
		t.Errorf("--to-pod: %v", r)
	}
	refused(t, ctl, 2, []string{"--to-pod x: not a port like 6379"}, "ingest", "echo", "--container", "echo", "--to-pod", "x")
	check()
}

func TestIntercept(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	check := untouched(t)

	t.Run("leave", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "frontend-v1", "--port", "8080:http", "--docker-run", "--", "frontend-v2")
		body := answers(t, time.Minute, "frontend v2")
		if !strings.Contains(body, "backend: hello from the backend in the cluster") || !strings.Contains(body, "GREETING=hello from the cluster's config map") {
			t.Errorf("the handler has not all of it:\n%s", body)
		}
		// The port is taken; an ingest is welcome all the same.
		refused(t, ctl, 1, []string{"port 8080/TCP of Deployment frontend-v1 is engaged by", "ctl leave frontend-v1"}, "intercept", "frontend-v1", "--port", "9090:http")
		ctl.Must(t, "ingest", "frontend-v1", "--env-json", "-", "--", "true")
		ctl.Must(t, "leave", "frontend-v1")
		answeredBy(t, "frontend v1")
		if r := p.Wait(t, time.Minute); r.Code != 143 && r.Code != 2 {
			t.Logf("the handler's end: %v", r)
		}
		check()
	})
	t.Run("handler exits", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "frontend-v1", "--port", "8080:http", "--docker-run", "--", "frontend-v2")
		answers(t, time.Minute, "frontend v2")
		rig.Docker(t, "kill", "--signal", "KILL", handlerOf(t, "frontend-v1"))
		if r := p.Wait(t, time.Minute); r.Code != 137 {
			t.Errorf("want the handler's exit code 137: %v", r)
		}
		check()
	})
	t.Run("another port and protocol are untouched", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "echo", "--port", "9999:tcp", "--service", "echo", "--docker-run", "--", probeImage, "serve", ":9999")
		rig.Eventually(t, time.Minute, "the handler answers for the echo service", func(ctx context.Context) (bool, string) {
			got, err := cluster.Get(ctx, "http://echo:7007")
			if err != nil {
				return false, err.Error()
			}
			return strings.HasPrefix(got, "probe\n"), got
		})
		if out, err := probe(t, daemonOf(t), "udp", "echo:7007", "hello"); err != nil {
			t.Errorf("UDP on the same number: %v: %s", err, out)
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		if out, err := probe(t, daemonOf(t), "halfclose", "echo:7007"); err != nil {
			t.Errorf("after the end: %v: %s", err, out)
		}
	})
	t.Run("UDP, and TCP stays", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "echo", "--port", "9998:udp", "--docker-run", "--", probeImage, "shout", "9998")
		rig.Eventually(t, time.Minute, "datagrams come to the handler", func(context.Context) (bool, string) {
			out, err := probe(t, daemonOf(t), "udp", "echo:7007", "hello", "HELLO")
			return err == nil, out + p.Output()
		})
		if out, err := probe(t, daemonOf(t), "halfclose", "echo:7007"); err != nil {
			t.Errorf("TCP on the same number: %v: %s", err, out)
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		if out, err := probe(t, daemonOf(t), "udp", "echo:7007", "hello"); err != nil {
			t.Errorf("after the end: %v: %s", err, out)
		}
	})
	t.Run("headless, by number", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "echo", "--port", "9997:7007", "--service", "echo-headless", "--docker-run", "--", probeImage, "serve", ":9997")
		rig.Eventually(t, time.Minute, "the pod's own address leads to the handler", func(ctx context.Context) (bool, string) {
			got, err := cluster.Get(ctx, "http://echo-headless:7007")
			if err != nil {
				return false, err.Error()
			}
			return strings.HasPrefix(got, "probe\n"), got
		})
		ctl.Must(t, "leave", "echo/echo")
		p.Wait(t, time.Minute)
	})
	t.Run("killed client", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "frontend-v1", "--port", "8080:http", "--docker-run", "--", "frontend-v2")
		answers(t, time.Minute, "frontend v2")
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		answers(t, 20*time.Second, "frontend v1")
		// The traffic need not wait for the handler's end.
		rig.Eventually(t, time.Minute, "the handler is gone", func(context.Context) (bool, string) {
			ids := rig.Docker(t, "ps", "-aq", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=handler")
			return len(ids) == 0, strings.Join(ids, " ")
		})
		check()
	})
}

// A rollout, a scaling and an eviction under an intercept, with a thousand
// requests and more in each: nothing is lost, nothing comes to the app, and a
// fact tells that the pods have changed. What ends it restarts nothing.
func TestInterceptRollout(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	deployments := cluster.Kube.AppsV1().Deployments("default")
	patch := func(ctx context.Context, body string) {
		t.Helper()
		if _, err := deployments.Patch(ctx, "frontend-v1", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	settled := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := cluster.Settle(ctx, "default", "frontend-v1"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		patch(context.Background(), `{"spec":{"replicas":1,"template":{"metadata":{"annotations":{"restarted":null}}}}}`)
	})
	p := ctl.Start(t, "intercept", "frontend-v1", "--port", "8080:http", "--docker-run", "--", "frontend-v2")
	answers(t, time.Minute, "frontend v2")

	thousand(t, "one replica", "http://frontend-v1", "frontend v2", func() {})
	thousand(t, "scaled up and rolled out", "http://frontend-v1", "frontend v2", func() {
		patch(t.Context(), `{"spec":{"replicas":4,"template":{"metadata":{"annotations":{"restarted":"now"}}}}}`)
		settled()
	})
	rig.Eventually(t, time.Minute, "the engagement goes by all four", func(context.Context) (bool, string) {
		r := ctl.Run(t, "events", "--since", "10m", "--no-follow", "--output", "json")
		for _, e := range rig.Lines[event.Envelope](t, r.Stdout) {
			if f, ok := event.Decode[event.PodsChanged](e); ok && len(f.Pods) == 4 {
				return true, ""
			}
		}
		return false, r.String()
	})
	thousand(t, "one of four evicted", "http://frontend-v1", "frontend v2", func() {
		l, err := cluster.Kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=frontend-v1"})
		if err != nil {
			t.Fatal(err)
		}
		evicted := l.Items[0].Name
		if err := cluster.Kube.PolicyV1().Evictions("default").Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: evicted, Namespace: "default"}}); err != nil {
			t.Fatal(err)
		}
		rig.Eventually(t, time.Minute, evicted+" is gone", func(context.Context) (bool, string) {
			now := podNames(t)
			return !strings.Contains(now, evicted), now
		})
		settled()
	})
	check := untouched(t)
	ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	thousand(t, "left", "http://frontend-v1", "frontend v1", func() {})
	check()
}

// thousand asks at a URL from inside the cluster while something
// happens, a thousand times at least, and checks who answered.
func thousand(t *testing.T, while, url, want string, happens func()) {
	t.Helper()
	stop, all := make(chan struct{}), make(chan string)
	go func() { all <- requests(t.Context(), t, url, stop, 1000) }()
	happens()
	close(stop)
	counts := map[string]int{}
	for line := range strings.Lines(<-all) {
		_, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
		counts[answer]++
	}
	t.Logf("%s: %v", while, counts)
	if len(counts) != 1 || counts[want] < 1000 {
		t.Errorf("%s: want at least 1000 answers of %q and no others: %v", while, want, counts)
	}
}

// What dies in the cluster comes back, and in between the app answers: never
// nobody for longer than it takes to notice.
func TestInterceptKill(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	check := untouched(t)
	p := ctl.Start(t, "intercept", "frontend-v1", "--port", "8080:http", "--docker-run", "--", "frontend-v2")
	answers(t, time.Minute, "frontend v2")

	killInCluster(t, "default", "app=frontend-v1", "agent")
	answers(t, time.Minute, "frontend v2") // by another agent
	// Asked all the while: how soon the manager is back is the cluster's to say.
	stop, all := make(chan struct{}), make(chan string)
	go func() { all <- requests(t.Context(), t, "http://frontend-v1", stop, 1) }()
	killInCluster(t, "berth", "app.kubernetes.io/name=berth-manager", "manager")
	answers(t, time.Minute, "frontend v2")
	close(stop)
	if out := <-all; !strings.Contains(out, " frontend v1\n") { // the agent knows of nothing that it should divert
		t.Errorf("the app did not answer while there was no manager:\n%s", out)
	}
	if !p.Running() {
		t.Fatal("the engagement ended")
	}
	ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	check()
}
