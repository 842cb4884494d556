package e2e

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// connect connects, and quits when the test ends, after which nothing that is
// labelled Berth's may be left on the engine.
func connect(t *testing.T, ctl *rig.Ctl, args ...string) {
	t.Helper()
	quitAtEnd(t, ctl)
	ctl.Must(t, append([]string{"connect", "--docker"}, args...)...)
}

// apply makes what a file of manifests says, until the test ends.
func apply(t *testing.T, path string) {
	t.Helper()
	if err := cluster.Apply(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Delete(context.Background(), path); err != nil {
			t.Error(err)
		}
	})
}

// quitAtEnd ends what there is when the test ends, and checks that nothing is left.
func quitAtEnd(t *testing.T, ctl *rig.Ctl) {
	t.Helper()
	t.Cleanup(func() {
		r := (&rig.Ctl{Path: ctl.Path, Kubeconfig: ctl.Kubeconfig, Env: ctl.Env, Credential: ctl.Credential}).Run(t, "quit", "--all")
		if r.Code != 0 {
			t.Errorf("%v", r)
		}
		if left := rig.Leftovers(t); len(left) > 0 {
			t.Errorf("left after quit: %v", left)
		}
	})
}

// answers probes until the frontend's answer, asked for inside the cluster,
// begins with the line want.
func answers(t *testing.T, limit time.Duration, want string) string {
	t.Helper()
	var body string
	rig.Eventually(t, limit, "the service answers "+want, func(ctx context.Context) (bool, string) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		got, err := cluster.Get(ctx, "http://frontend-v1")
		if err != nil {
			return false, err.Error()
		}
		body = got
		return strings.HasPrefix(got, want+"\n"), got
	})
	return body
}

// answeredBy asks for the frontend once, inside the cluster: what has been said to be
// so is so, however long it takes to look.
func answeredBy(t *testing.T, want string) {
	t.Helper()
	got, err := cluster.Get(t.Context(), "http://frontend-v1")
	if err != nil || !strings.HasPrefix(got, want+"\n") {
		t.Errorf("want an answer of %s: %q, %v", want, got, err)
	}
}

// restored checks that the workload is as it was: its own container, no agent,
// no label, no Lease.
func restored(t *testing.T) {
	t.Helper()
	answers(t, time.Minute, "frontend v1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cluster.Settle(ctx, "default", "frontend-v1"); err != nil {
		t.Fatal(err)
	}
	// Where nobody waited for the end, the Lease goes last.
	rig.Eventually(t, time.Minute, "nothing of an engagement is left", func(ctx context.Context) (bool, string) {
		left, err := traces(ctx)
		if err != nil {
			return false, err.Error()
		}
		return len(left) == 0, strings.Join(left, ", ")
	})
}

// traces are what the frontend's pods and the namespace have of engagements.
func traces(ctx context.Context) (all []string, err error) {
	pods, err := cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=frontend-v1"})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		for k := range p.Labels {
			if strings.HasPrefix(k, "berth.dev/") {
				all = append(all, "pod "+p.Name+" has the label "+k)
			}
		}
		for _, c := range p.Spec.Containers {
			if !strings.HasPrefix(c.Image, "frontend-v1") {
				all = append(all, "pod "+p.Name+" runs "+c.Image)
			}
		}
	}
	leases, err := cluster.Kube.CoordinationV1().Leases("default").List(ctx, metav1.ListOptions{LabelSelector: "berth.dev/kind"})
	if err != nil {
		return nil, err
	}
	for _, l := range leases.Items {
		all = append(all, "lease "+l.Name)
	}
	return all, nil
}

func TestReplaceEndings(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)

	t.Run("handler exits", func(t *testing.T) {
		p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
		body := answers(t, time.Minute, "frontend v2")
		for _, want := range []string{"backend: hello from the backend in the cluster", "GREETING=hello from the cluster's config map", "POD_NAME=frontend-v1-"} {
			if !strings.Contains(body, want) {
				t.Errorf("the handler's answer lacks %q:\n%s", want, body)
			}
		}
		rig.Docker(t, "kill", "--signal", "KILL", handlerOf(t, "frontend-v1"))
		if r := p.Wait(t, time.Minute); r.Code != 137 {
			t.Errorf("want the handler's exit code 137: %v", r)
		}
		restored(t)
	})
	t.Run("its exit code", func(t *testing.T) {
		r := ctl.Run(t, "replace", "frontend-v1", "--docker-run", "--", probeImage, "exit", "7")
		if r.Code != 7 {
			t.Errorf("want exit code 7: %v", r)
		}
		restored(t)
	})
	t.Run("interrupt", func(t *testing.T) {
		p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", probeImage, "stubborn")
		answers(t, time.Minute, "probe")
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		noHandler(t)
		restored(t)
	})
	t.Run("leave", func(t *testing.T) {
		p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
		answers(t, time.Minute, "frontend v2")
		ctl.Must(t, "leave", "frontend-v1")
		p.Wait(t, time.Minute)
		noHandler(t)
		restored(t)
	})
	t.Run("quit", func(t *testing.T) {
		p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
		answers(t, time.Minute, "frontend v2")
		ctl.Must(t, "quit")
		p.Wait(t, time.Minute)
		noHandler(t)
		restored(t)
	})
}

// handlerOf is the ID of the container that runs as the handler of a workload.
func handlerOf(t *testing.T, workload string) string {
	t.Helper()
	ids := rig.Docker(t, "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=handler", "--filter", "name=intercept-"+workload)
	if len(ids) != 1 {
		t.Fatalf("want one handler of %s, have %v", workload, ids)
	}
	return ids[0]
}

func noHandler(t *testing.T) {
	t.Helper()
	if ids := rig.Docker(t, "ps", "-aq", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=handler"); len(ids) > 0 {
		t.Errorf("handlers left: %v", ids)
	}
}

// No request is lost while the handler takes over: the old pod answers until
// the handler is ready. Once the engagement is active nothing comes to it.
func TestReplaceLosesNothingOnTheWayIn(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	stop := make(chan struct{})
	type tally struct {
		v1, v2 int
		late   int // asked for when it was active, and answered by the old pod
		errs   []string
	}
	var active atomic.Bool
	var since atomic.Int32 // answers to what was asked when it was active
	done := make(chan tally)
	go func() {
		var n tally
		for {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			now := active.Load()
			got, err := cluster.Get(context.Background(), "http://frontend-v1")
			switch {
			case err != nil:
				n.errs = append(n.errs, err.Error())
			case strings.HasPrefix(got, "frontend v2"):
				n.v2++
			case now:
				n.late++
			default:
				n.v1++
			}
			if now {
				since.Add(1)
			}
		}
	}()
	p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
	for end := time.Now().Add(time.Minute); !strings.Contains(p.Output(), "\n  active "); {
		if time.Now().After(end) || !p.Running() {
			t.Fatalf("not active:\n%s", p.Output())
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	active.Store(true)
	rig.Eventually(t, time.Minute, "some answers since", func(context.Context) (bool, string) { return since.Load() >= 30, "" })
	rig.Eventually(t, time.Minute, "the old pod is gone", func(ctx context.Context) (bool, string) {
		d, err := cluster.Kube.AppsV1().Deployments("default").Get(ctx, "frontend-v1", metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		pods, err := cluster.Pods(ctx, "default", d)
		if err != nil {
			return false, err.Error()
		}
		return len(pods) == 1, ""
	})
	close(stop)
	n := <-done
	t.Logf("%d answers of v1, %d of v2, %d errors", n.v1, n.v2, len(n.errs))
	if n.late > 0 {
		t.Errorf("%d answers of the old pod to what was asked when the engagement was active", n.late)
	}
	if len(n.errs) > 0 {
		t.Errorf("requests lost: %v", n.errs)
	}
	if n.v2 == 0 {
		t.Error("no request reached v2")
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Wait(t, time.Minute)
	restored(t)
}

// A workload that cannot run is replaced like any other, and is then what it was:
// nothing waits for it to become Ready, and no agent stays.
func TestReplaceOfWhatCannotRun(t *testing.T) {
	apply(t, "testdata/broken.yaml")
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	for name, replicas := range map[string]int{"broken": 1, "broken-set": 3} {
		t.Run(name, func(t *testing.T) {
			pods := func(ctx context.Context) ([]corev1.Pod, error) {
				l, err := cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
				return l.Items, err
			}
			p := begin(t, ctl, "replace", name, "--docker-run", "--", probeImage, "says", "handler", "7041")
			says(t, "handler", "http://"+name)
			if l, err := pods(t.Context()); err != nil || len(l) != replicas {
				t.Errorf("%d pods, %v; want %d", len(l), err, replicas)
			}
			ctl.Must(t, "leave", name)
			p.Wait(t, time.Minute)
			rig.Eventually(t, time.Minute, "its own pod is all that there is", func(ctx context.Context) (bool, string) {
				l, err := pods(ctx)
				if err != nil {
					return false, err.Error()
				}
				saw := ""
				for _, pod := range l {
					saw += pod.Name + " " + pod.Spec.Containers[0].Image + "\n"
				}
				return len(l) == 1 && l[0].Spec.Containers[0].Image == "berth-e2e-nowhere:latest", saw
			})
		})
	}
	leases, err := cluster.Kube.CoordinationV1().Leases("default").List(t.Context(), metav1.ListOptions{LabelSelector: "berth.dev/kind"})
	if err != nil {
		t.Fatal(err)
	}
	if len(leases.Items) > 0 {
		t.Errorf("%d leases are left", len(leases.Items))
	}
}
