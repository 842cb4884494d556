package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// beside is an engagement that leaves the workload's containers running.
type beside struct {
	*rig
	id, lease string
}

// engageBeside makes one. With run, nobody waits for a handler.
func (r *rig) engageBeside(spec lease.EngagementSpec, run bool) beside {
	r.t.Helper()
	spec.ID, spec.Connection, spec.Client = id(), r.conn, "test"
	if spec.Workload == "" {
		spec.Workload = "web"
	}
	if spec.Container == "" {
		spec.Container = "web"
	}
	seconds := int32(lease.Duration / time.Second)
	l := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: spec.LeaseName(),
			Labels:      map[string]string{lease.LabelKind: lease.KindEngagement, lease.LabelConnection: r.conn, lease.LabelEngagement: spec.ID},
			Annotations: map[string]string{lease.AnnotationSpec: lease.Marshal(spec)}},
		Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &seconds, RenewTime: now()},
	}
	if run {
		l.Annotations[lease.AnnotationHandler] = lease.HandlerRun
	}
	_, err := r.client.CoordinationV1().Leases(r.namespace).Create(r.t.Context(), l, metav1.CreateOptions{})
	must(r.t, err)
	return beside{r, spec.ID, spec.LeaseName()}
}

func (b beside) until(want lease.Phase) (lease.EngagementStatus, time.Duration) {
	b.t.Helper()
	var st lease.EngagementStatus
	took := b.rig.until("phase "+string(want)+" of "+b.lease, 60*time.Second, func() bool {
		st, _ = b.status(b.lease)
		if st.Phase == lease.Failed && want != lease.Failed {
			b.t.Fatalf("failed: %s (%s)", st.Error, st.Hint)
		}
		return st.Phase == want
	})
	return st, took
}

func (b beside) leave() time.Duration {
	b.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"true"}}}`, lease.AnnotationRelease)
	began := time.Now()
	_, err := b.client.CoordinationV1().Leases(b.namespace).Patch(b.t.Context(), b.lease, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(b.t, err)
	b.rig.until("the lease is gone", 60*time.Second, func() bool { _, ok := b.status(b.lease); return !ok })
	return time.Since(began)
}

func (b beside) environment() string {
	b.t.Helper()
	env, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](b.t.Context(), b.session, lease.MethodEnvironment, lease.EnvironmentRequest{Engagement: b.id})
	must(b.t, err)
	all := "mounts " + strings.Join(env.Mounts, ":") + "\x00"
	for _, kv := range env.Env {
		all += string(kv) + "\x00"
	}
	return all
}

// restarts tells the pods apart from such as are new or were restarted.
func (r *rig) restarts() string {
	var all []string
	for _, p := range r.pods() {
		n := int32(0)
		for _, s := range p.Status.ContainerStatuses {
			n += s.RestartCount
		}
		all = append(all, fmt.Sprintf("%s %s %d", p.Name, p.UID, n))
	}
	return strings.Join(all, "\n")
}

// Several ingests at once, the first of which brings the agent, while the app
// goes on and nothing is restarted.
func TestClusterIngest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dst := r.workload("Deployment", 2)
	before := r.restarts()
	stop := r.loop(dst)
	one := r.engageBeside(lease.EngagementSpec{Kind: lease.Ingest, WorkloadKind: "Deployment", ToPod: []lease.Port{{Container: 8080, Protocol: "TCP"}, {Container: 9, Protocol: "TCP"}}}, true)
	st, first := one.until(lease.Active)
	if st.Method != lease.Ephemeral || len(st.Pods) != 2 || !st.Pods[0].Agent {
		t.Errorf("status %+v", st)
	}
	env := one.environment()
	for _, want := range []string{"B=1\n23\x00", "A=1\n2\x00", "POD_NAME=web-", "mounts /data"} {
		if !strings.Contains(env, want) {
			t.Errorf("no %q in the environment %q", want, env)
		}
	}
	if strings.Contains(env, "BERTH_AGENT") || strings.Contains(env, "PATH=") {
		t.Errorf("too much in the environment %q", env)
	}
	for port, want := range map[uint16]error{8080: nil, 9: syscall.ECONNREFUSED, 8081: syscall.EACCES} { // of the pod, at its loopback address
		s, err := r.session.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Engagement: one.id, Dst: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)})
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("port %d of the pod: %v, want %v", port, err, want)
		}
		if err == nil {
			_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if b, err := io.ReadAll(s); err != nil || !strings.Contains(string(b), "frontend v1") {
				t.Errorf("port %d of the pod: %q, %v", port, b, err)
			}
		}
	}
	two := r.engageBeside(lease.EngagementSpec{Kind: lease.Ingest, WorkloadKind: "Deployment"}, true)
	_, second := two.until(lease.Active)
	if two.environment() != env && !strings.Contains(two.environment(), "B=1\n23") {
		t.Error("the second has another environment")
	}
	left := one.leave()
	if _, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](t.Context(), r.session, lease.MethodEnvironment, lease.EnvironmentRequest{Engagement: one.id}); err == nil {
		t.Error("an ended engagement still gets its environment")
	}
	two.environment()
	two.leave()
	three := r.engageBeside(lease.EngagementSpec{Kind: lease.Ingest, WorkloadKind: "Deployment"}, true)
	_, third := three.until(lease.Active) // with the idle agents
	three.leave()
	c := stop()
	t.Logf("active in %v, the second in %v, with idle agents in %v, left in %v; %d requests, %d lost", first, second, third, left, c.original, len(c.errs))
	if len(c.errs) > 0 || c.handler > 0 || c.original < 20 {
		t.Errorf("%d requests, %d to the handler, lost: %v", c.original, c.handler, c.errs)
	}
	if after := r.restarts(); after != before {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
}

// An ingest is accepted where Pod Security `restricted` accepted the app.
func TestClusterIngestRestricted(t *testing.T) {
	t.Parallel()
	r := newRig(t, "restricted")
	r.workload("Deployment", 1, restricted)
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Ingest, WorkloadKind: "Deployment"}, true)
	if st, _ := b.until(lease.Active); st.Method != lease.Ephemeral {
		t.Errorf("status %+v", st)
	}
	b.environment()
	b.leave()
}

func restricted(p *corev1.PodSpec) {
	yes, no, user := true, false, int64(1234)
	p.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	p.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
}

func testIntercept(t *testing.T, kind string, replicas int32, mutate ...func(*corev1.PodSpec)) {
	t.Helper()
	t.Parallel()
	r := newRig(t)
	dst := r.workload(kind, replicas, mutate...)
	before := r.restarts()
	stop := r.loop(dst)
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: kind, Ports: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, true)
	st, first := b.until(lease.Active)
	if st.Method != lease.Ephemeral || len(st.Pods) != int(replicas) {
		t.Errorf("status %+v", st)
	}
	for range 50 { // at once, and all
		if got, err := r.get(t.Context(), dst); err != nil || !strings.Contains(got, r.handler) {
			t.Fatalf("active, but %q, %v", got, err)
		}
	}
	for _, p := range r.pods() { // by the pod's own address, as of a headless service or of none
		if got, err := r.get(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIP), 8080)); err != nil || !strings.Contains(got, r.handler) {
			t.Errorf("pod %s itself: %q, %v", p.Name, got, err)
		}
	}
	// Another one on the same port is refused, and named its holder.
	o := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: kind, Ports: []lease.Port{{Container: 8080, Protocol: "TCP"}}}, true)
	if st, _ := o.until(lease.Failed); !strings.Contains(st.Error, "8080/TCP") || !strings.Contains(st.Error, "intercepted by test") {
		t.Errorf("conflict: %s", st.Error)
	}
	o.leave()
	time.Sleep(3 * time.Second) // several of kubelet's probes
	left := b.leave()
	for range 50 {
		if got, err := r.get(t.Context(), dst); err != nil || strings.Contains(got, r.handler) {
			t.Fatalf("left, but %q, %v", got, err)
		}
	}
	again := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: kind, Ports: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, true)
	_, second := again.until(lease.Active)
	again.leave()
	c := stop()
	t.Logf("active in %v, again in %v, left in %v; %d requests to the app, %d to the handler, %d lost", first, second, left, c.original, c.handler, len(c.errs))
	if len(c.errs) > 0 || c.handler < 20 || c.original < 10 {
		t.Errorf("%d requests, %d to the handler, lost: %v", c.original, c.handler, c.errs)
	}
	if after := r.restarts(); after != before {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
}

func TestClusterIntercept(t *testing.T)             { testIntercept(t, "Deployment", 1) }
func TestClusterInterceptFourReplicas(t *testing.T) { testIntercept(t, "Deployment", 4) }
func TestClusterInterceptStatefulSet(t *testing.T)  { testIntercept(t, "StatefulSet", 2) }

// The app runs as a user of its own, is probed by HTTP, and its agent becomes that user.
func TestClusterInterceptProbedByHTTP(t *testing.T) {
	testIntercept(t, "ReplicaSet", 2, func(p *corev1.PodSpec) {
		user := int64(1234)
		p.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user}
		probe := &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http")}}}
		p.Containers[0].ReadinessProbe, p.Containers[0].LivenessProbe = probe, probe
	})
}

// Where a running pod takes no agent, it comes with new pods, by itself.
func testFallBack(t *testing.T, r *rig, spec lease.EngagementSpec, why string, mutate ...func(*corev1.PodSpec)) {
	t.Helper()
	dst := r.workload("Deployment", 2, mutate...)
	stop := r.loop(dst)
	spec.WorkloadKind = "Deployment"
	one := r.engageBeside(spec, true)
	st, first := one.until(lease.Active)
	if st.Method != "surge" || !strings.Contains(st.Why, why) || len(st.Pods) != 2 || !st.Pods[0].Agent || !st.Pods[1].Agent {
		t.Errorf("status %+v", st)
	}
	one.environment()
	inRow := 0
	r.until("one side answers", 5*time.Second, func() bool { // once kube-proxy knows of the new pods
		if got, err := r.get(t.Context(), dst); err != nil || strings.Contains(got, r.handler) != (spec.Kind == lease.Intercept) {
			inRow = 0
		}
		inRow++
		return inRow > 50
	})
	two := r.engageBeside(lease.EngagementSpec{Kind: lease.Ingest, WorkloadKind: "Deployment"}, true)
	st, second := two.until(lease.Active) // with the sidecars that are there
	two.environment()
	two.leave()
	left := one.leave()
	r.untilClean(2)
	c := stop()
	t.Logf("active in %v, a second in %v (%s), left in %v; %d requests to the app, %d to the handler, %d lost", first, second, st.Method, left, c.original, c.handler, len(c.errs))
	if len(c.errs) > 0 || c.original < 20 || spec.Kind == lease.Ingest && c.handler > 0 {
		t.Errorf("%d to the app, %d to the handler, lost: %v", c.original, c.handler, c.errs)
	}
}

func subPath(p *corev1.PodSpec) {
	p.Containers[0].VolumeMounts = append(p.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/sub", SubPath: "sub"})
}

func TestClusterIngestSubPath(t *testing.T) {
	t.Parallel()
	testFallBack(t, newRig(t), lease.EngagementSpec{Kind: lease.Ingest}, "/sub is mounted by subPath", subPath)
}

func TestClusterInterceptSubPath(t *testing.T) {
	t.Parallel()
	testFallBack(t, newRig(t), lease.EngagementSpec{Kind: lease.Intercept, Ports: []lease.Port{{Container: 8080, Protocol: "TCP"}}}, "/sub is mounted by subPath", subPath)
}

// Pod Security forbids NET_ADMIN: the port's name is given to the agent.
func TestClusterInterceptRestricted(t *testing.T) {
	t.Parallel()
	testFallBack(t, newRig(t, "restricted"), lease.EngagementSpec{Kind: lease.Intercept, Ports: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, "violates PodSecurity", restricted)
}

// Without a name there is nothing to give, and nothing is touched.
func TestClusterInterceptRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, "baseline")
	r.workload("Deployment", 1)
	before := r.restarts()
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: []lease.Port{{Container: 8080, Protocol: "TCP"}}}, true)
	st, _ := b.until(lease.Failed)
	if !strings.Contains(st.Error, "violates PodSecurity") || !strings.Contains(st.Error, "8080/TCP is not reached by a name") || !strings.Contains(st.Hint, "ctl replace web") {
		t.Errorf("%q, hint %q", st.Error, st.Hint)
	}
	if after := r.restarts(); after != before {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
}

// A node's network is nobody's to divert.
func TestClusterInterceptHostNetwork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.workload("Deployment", 1, func(p *corev1.PodSpec) {
		p.HostNetwork = true
		p.Containers[0].Ports[0].ContainerPort, p.Containers[0].Ports[0].HostPort = 8080, 8080
	})
	before := r.restarts()
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, true)
	if st, _ := b.until(lease.Failed); !strings.Contains(st.Error, "uses its node's network") || st.Hint != "ctl replace web" {
		t.Errorf("%q, hint %q", st.Error, st.Hint)
	}
	if after := r.restarts(); after != before {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
}

// Nothing is lost, and nothing comes to the app, while the workload is rolled out
// and scaled under an intercept; the new pods are intercepted too.
func TestClusterInterceptRolloutAndScale(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dst := r.workload("Deployment", 2)
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, true)
	b.until(lease.Active)
	stop := r.loop(dst)
	before := r.pods()
	patch := `{"spec":{"template":{"metadata":{"annotations":{"restarted":"now"}}}}}`
	_, err := r.client.AppsV1().Deployments(r.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	must(t, err)
	rollout := r.rolledOut(before, 2)
	_, err = r.client.AppsV1().Deployments(r.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{})
	must(t, err)
	up := r.until("four replicas are Ready", 60*time.Second, func() bool { return r.readyOriginals() == 4 })
	st, _ := r.status(b.lease)
	_, err = r.client.AppsV1().Deployments(r.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{})
	must(t, err)
	r.until("one replica is left", 60*time.Second, func() bool { return r.readyOriginals() == 1 && len(r.pods()) == 1 })
	time.Sleep(5 * time.Second) // until the last of the others has gone
	c := stop()
	if len(st.Pods) < 4 || !st.Pods[3].Agent {
		t.Errorf("status %+v", st)
	}
	b.leave()
	r.until("the app answers", 5*time.Second, func() bool {
		got, err := r.get(t.Context(), dst)
		return err == nil && !strings.Contains(got, r.handler)
	})
	t.Logf("rollout in %v, scaled up in %v; %d requests to the handler, %d to the app, %d lost", rollout, up, c.handler, c.original, len(c.errs))
	if c.handler < 100 || c.original > 0 || len(c.errs) > 0 {
		t.Errorf("%d to the app, lost: %v", c.original, c.errs)
	}
	// A pod that comes after the end is Ready without us.
	must(t, r.client.CoreV1().Pods(r.namespace).Delete(t.Context(), r.pods()[0].Name, metav1.DeleteOptions{}))
	r.until("a new pod is Ready", 30*time.Second, func() bool { return r.readyOriginals() == 1 })
}

// rolledOut waits until none of the pods is left and n others are Ready.
func (r *rig) rolledOut(before []corev1.Pod, n int) time.Duration {
	r.t.Helper()
	return r.until("the rollout is complete", 90*time.Second, func() bool {
		now := r.pods()
		for _, p := range now {
			for _, q := range before {
				if p.UID == q.UID {
					return false
				}
			}
		}
		return len(now) == n && r.readyOriginals() == n
	})
}

// The client's tunnel is cut, and then the client is gone for good: each time the
// app answers again.
func TestClusterInterceptClientGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dst := r.workload("Deployment", 2)
	before := r.restarts()
	b := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: []lease.Port{{Container: 8080, Protocol: "TCP"}}}, true)
	b.until(lease.Active)
	other := *r // somebody else, who asks
	other.connect()
	answers := func(want string) func() bool {
		return func() bool { got, err := other.get(t.Context(), dst); return err == nil && strings.Contains(got, want) }
	}
	r.until("the handler answers", 5*time.Second, answers(r.handler))
	r.session.Close()
	cut := r.until("the app answers although the lease is held", 10*time.Second, answers("frontend v1"))
	if st, _ := r.status(b.lease); st.Phase != lease.Active {
		t.Errorf("status %+v", st)
	}
	r.stopRenew()
	gone := r.until("the lease is gone", 40*time.Second, func() bool { _, ok := r.status(b.lease); return !ok })
	if !answers("frontend v1")() {
		t.Error("the app does not answer")
	}
	t.Logf("the app answers %v after the tunnel was cut, the lease is gone after another %v", cut.Round(100*time.Millisecond), gone.Round(100*time.Millisecond))
	if after := r.restarts(); after != before {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
}

// How long the ways take, side by side in one run: for the ADR, and for whoever
// doubts it. It asserts nothing of time.
func TestClusterEngageTimes(t *testing.T) {
	r := newRig(t)
	r.workload("Deployment", 1)
	row := func(what string, d time.Duration) { t.Logf("%-55s %6d ms", what, d.Milliseconds()) }
	restart := func() {
		before := r.pods()
		patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"restarted":%q}}}}}`, id())
		began := time.Now()
		_, err := r.client.AppsV1().Deployments(r.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
		r.rolledOut(before, 1)
		row("kubectl rollout restart, until Ready and the old one ends", time.Since(began))
	}
	port := []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}
	for i := range 4 {
		restart()
		what := "intercept of a pod without an agent, just started"
		if i > 0 { // kubelet has an update of a pod wait while it is busy with the pod
			time.Sleep(5 * time.Second)
			what = "intercept of a pod without an agent"
		}
		one := r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: port}, true)
		_, d := one.until(lease.Active)
		row(what, d)
		row("leave", one.leave())
		for range 3 {
			one = r.engageBeside(lease.EngagementSpec{Kind: lease.Intercept, WorkloadKind: "Deployment", Ports: port}, true)
			_, d = one.until(lease.Active)
			row("intercept of a pod with an agent", d)
			row("leave", one.leave())
		}
		began := time.Now()
		r.engage("Deployment", lease.EngagementSpec{})
		r.untilPhase("Deployment", lease.Prepared)
		row("replace, until prepared (surge)", time.Since(began))
		r.annotate("Deployment", lease.AnnotationRelease, "true")
		r.untilGone("Deployment")
	}
}
