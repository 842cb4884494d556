package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
	"berth.dev/tunnel/apidial"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The tests of this file need a cluster with the manager installed and the
// image frontend-v1 on its nodes: BERTH_TEST_KUBECONFIG names its kubeconfig.
// They play the connector and the vif, and send requests to the workload's
// Service from within the cluster all the while.

const testImage = "frontend-v1:latest"

type rig struct {
	t         *testing.T
	cfg       *rest.Config
	client    kubernetes.Interface
	namespace string
	conn      string
	session   *tunnel.Session
	handler   string // what the handler answers
	stop      context.CancelFunc
	stopRenew context.CancelFunc
}

func newRig(t *testing.T, security ...string) *rig {
	t.Helper()
	path := os.Getenv("BERTH_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("BERTH_TEST_KUBECONFIG is not set: no cluster to test against")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	must(t, err)
	cfg.QPS, cfg.Burst = 1000, 2000 // of looks every 10 ms
	client, err := kubernetes.NewForConfig(cfg)
	must(t, err)
	r := &rig{t: t, cfg: cfg, client: client, handler: "the handler"}
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "berth-test-",
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": append(security, "privileged")[0]}}}, metav1.CreateOptions{})
	must(t, err)
	r.namespace = ns.Name
	t.Cleanup(func() {
		_ = client.CoreV1().Namespaces().Delete(context.Background(), r.namespace, metav1.DeleteOptions{})
	})
	r.connect()
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func id() string { return strings.ToLower(rand.Text()[:10]) }

func now() *metav1.MicroTime { n := metav1.NowMicro(); return &n }

// connect does what the connector and the vif do.
func (r *rig) connect() {
	t := r.t
	key, err := tunnel.NewIdentity()
	must(t, err)
	r.conn = id()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	seconds := int32(lease.Duration / time.Second)
	leases := r.client.CoordinationV1().Leases(lease.DefaultNamespace)
	_, err = leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: lease.ConnectionName(r.conn), Labels: map[string]string{lease.LabelKind: lease.KindConnection, lease.LabelConnection: r.conn},
			Annotations: map[string]string{lease.AnnotationSpec: lease.Marshal(lease.ConnectionSpec{Name: "test", Namespace: r.namespace, Client: "test", Pins: []string{string(key.Pin())}})}},
		Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &seconds, RenewTime: now()},
	}, metav1.CreateOptions{})
	must(t, err)
	renew, stopRenew := context.WithCancel(ctx)
	r.stopRenew = stopRenew
	var wg sync.WaitGroup
	wg.Go(func() { r.renew(renew) })
	r.dial(ctx, key)
	t.Cleanup(func() {
		cancel()
		r.session.Close()
		wg.Wait()
		_ = leases.Delete(context.Background(), lease.ConnectionName(r.conn), metav1.DeleteOptions{})
	})
}

// renew renews all Leases of the connection.
func (r *rig) renew(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lease.RenewEvery / 2):
		}
		patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, now().UTC().Format(metav1.RFC3339Micro))
		_, _ = r.client.CoordinationV1().Leases(lease.DefaultNamespace).Patch(ctx, lease.ConnectionName(r.conn), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		list, err := r.client.CoordinationV1().Leases(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: lease.LabelConnection + "=" + r.conn})
		if err != nil {
			continue
		}
		for _, l := range list.Items {
			_, _ = r.client.CoordinationV1().Leases(r.namespace).Patch(ctx, l.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		}
	}
}

func (r *rig) dial(ctx context.Context, key *tunnel.Identity) {
	t := r.t
	cm, err := r.client.CoreV1().ConfigMaps(lease.DefaultNamespace).Get(ctx, lease.InfoConfigMap, metav1.GetOptions{})
	must(t, err)
	info, err := lease.Unmarshal[lease.Info](cm.Data[lease.InfoKey])
	must(t, err)
	d := &apidial.Dialer{Config: r.cfg, Namespace: lease.DefaultNamespace, Selector: lease.ManagerSelector, Port: lease.ManagerPort}
	conn, transport, err := d.Dial(ctx)
	must(t, err)
	s, w, err := tunnel.Dial(ctx, conn, key, tunnel.Pin(info.Pin), tunnel.Hello{Role: "vif", ID: r.conn, Client: "test"}, tunnel.Config{})
	must(t, err)
	t.Logf("tunnel by %s: domain %s, DNS %v, subnets %v", transport, w.ClusterDomain, w.DNS, w.Subnets)
	if w.ClusterDomain == "" || len(w.DNS) == 0 || len(w.Subnets) < 2 {
		t.Errorf("the welcome says too little: %+v", w)
	}
	r.session = s
	go func() { // ends with the session
		for {
			req, err := s.Accept(ctx)
			if err != nil {
				return
			}
			go r.serve(req)
		}
	}()
}

// serve is the handler: one answer on each connection.
func (r *rig) serve(req *tunnel.Request) {
	if req.Header.Engagement == "" || req.Header.Dst.Port() != 8080 {
		req.Refuse(tunnel.CodeRefused, "")
		return
	}
	s, err := req.Accept()
	if err != nil {
		return
	}
	defer s.Close()
	if _, err := http.ReadRequest(bufio.NewReader(s)); err != nil {
		return
	}
	fmt.Fprintf(s, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(r.handler), r.handler)
}

// get asks the Service from within the cluster, on a connection of its own.
func (r *rig) get(ctx context.Context, dst netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := r.session.Open(ctx, tunnel.Header{Kind: tunnel.KindTCP, Dst: dst})
	if err != nil {
		return "", err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// loop sends requests until the returned function is called, which says what came of them.
type tally struct {
	handler, original int
	errs              []string
}

func (r *rig) loop(dst netip.AddrPort) func() tally {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var c tally
	began := time.Now()
	wg.Go(func() {
		for ctx.Err() == nil {
			body, err := r.get(context.Background(), dst)
			switch {
			case err != nil:
				c.errs = append(c.errs, fmt.Sprintf("%v: %v", time.Since(began).Round(time.Millisecond), err))
			case strings.Contains(body, r.handler):
				c.handler++
			default:
				c.original++
			}
			time.Sleep(10 * time.Millisecond) // the rate of requests
		}
	})
	return func() tally { cancel(); wg.Wait(); return c }
}

func template(mutate ...func(*corev1.PodSpec)) corev1.PodTemplateSpec {
	grace := int64(5)
	t := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "tier": "front"}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
			Name: "web", Image: testImage, ImagePullPolicy: corev1.PullNever,
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Env: []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				{Name: "A", Value: "1\n2"}, {Name: "B", Value: "$(A)3"}},
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http")}}},
			VolumeMounts:   []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
		}}, Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}},
	}
	for _, m := range mutate {
		m(&t.Spec)
	}
	return t
}

// workload creates one with its Service, waits for it, and returns the Service's address.
func (r *rig) workload(kind string, replicas int32, mutate ...func(*corev1.PodSpec)) netip.AddrPort {
	t, ctx := r.t, r.t.Context()
	sel := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web", "tier": "front"}}
	meta := metav1.ObjectMeta{Name: "web"}
	var err error
	switch kind {
	case "Deployment":
		_, err = r.client.AppsV1().Deployments(r.namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: sel, Template: template(mutate...)}}, metav1.CreateOptions{})
	case "ReplicaSet":
		_, err = r.client.AppsV1().ReplicaSets(r.namespace).Create(ctx, &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: sel, Template: template(mutate...)}}, metav1.CreateOptions{})
	case "StatefulSet":
		_, err = r.client.AppsV1().StatefulSets(r.namespace).Create(ctx, &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &replicas, Selector: sel, ServiceName: "web", Template: template(mutate...)}}, metav1.CreateOptions{})
	}
	must(t, err)
	svc, err := r.client.CoreV1().Services(r.namespace).Create(ctx, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"},
		Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}}}, metav1.CreateOptions{})
	must(t, err)
	r.until("the workload is Ready", 30*time.Second, func() bool { return r.readyOriginals() == int(replicas) })
	dst := netip.AddrPortFrom(netip.MustParseAddr(svc.Spec.ClusterIP), 80)
	r.until("the Service answers", 10*time.Second, func() bool { _, err := r.get(ctx, dst); return err == nil })
	return dst
}

func (r *rig) pods() []corev1.Pod {
	list, err := r.client.CoreV1().Pods(r.namespace).List(context.Background(), metav1.ListOptions{})
	must(r.t, err)
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, p)
		}
	}
	return out
}

// readyOriginals counts Ready pods that run their own program in their workload.
func (r *rig) readyOriginals() int {
	n := 0
	for _, p := range r.pods() {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.Labels[lease.LabelEngagement] == "" && metav1.GetControllerOf(&p) != nil {
				n++
			}
		}
	}
	return n
}

func (r *rig) until(what string, limit time.Duration, f func() bool) time.Duration {
	r.t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > limit {
			for _, p := range r.pods() {
				r.t.Logf("pod %s labels %v conditions %v", p.Name, labels.Set(p.Labels), p.Status.Conditions)
			}
			r.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	return time.Since(began)
}

func (r *rig) engage(kind string, spec lease.EngagementSpec) string {
	spec.ID, spec.Connection, spec.Client, spec.Kind, spec.WorkloadKind, spec.Workload = id(), r.conn, "test", lease.Replace, kind, "web"
	if spec.Container == "" {
		spec.Container = "web"
	}
	seconds := int32(lease.Duration / time.Second)
	_, err := r.client.CoordinationV1().Leases(r.namespace).Create(r.t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: lease.EngagementName(kind, "web", spec.Container),
			Labels:      map[string]string{lease.LabelKind: lease.KindEngagement, lease.LabelConnection: r.conn, lease.LabelEngagement: spec.ID},
			Annotations: map[string]string{lease.AnnotationSpec: lease.Marshal(spec)}},
		Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &seconds, RenewTime: now()},
	}, metav1.CreateOptions{})
	must(r.t, err)
	return spec.ID
}

func (r *rig) leaseName(kind string) string { return lease.EngagementName(kind, "web", "web") }

func (r *rig) status(name string) (lease.EngagementStatus, bool) {
	l, err := r.client.CoordinationV1().Leases(r.namespace).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return lease.EngagementStatus{}, false
	}
	must(r.t, err)
	s := l.Annotations[lease.AnnotationState]
	if s == "" {
		return lease.EngagementStatus{}, true
	}
	st, err := lease.Unmarshal[lease.EngagementStatus](s)
	must(r.t, err)
	return st, true
}

func (r *rig) untilPhase(kind string, want lease.Phase) time.Duration {
	r.t.Helper()
	return r.until("phase "+string(want), 60*time.Second, func() bool {
		st, _ := r.status(r.leaseName(kind))
		if st.Phase == lease.Failed && want != lease.Failed {
			r.t.Fatalf("failed: %s (%s)", st.Error, st.Hint)
		}
		return st.Phase == want
	})
}

func (r *rig) annotate(kind, key, value string) {
	r.t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, key, value)
	_, err := r.client.CoordinationV1().Leases(r.namespace).Patch(r.t.Context(), r.leaseName(kind), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(r.t, err)
}

func (r *rig) untilGone(kind string) time.Duration {
	r.t.Helper()
	return r.until("the lease is gone", 60*time.Second, func() bool { _, ok := r.status(r.leaseName(kind)); return !ok })
}

// untilClean waits until nothing in the namespace carries a mark of ours.
func (r *rig) untilClean(replicas int) {
	r.t.Helper()
	r.until("the workload is as it was", 60*time.Second, func() bool {
		for _, p := range r.pods() {
			if p.Labels[lease.LabelEngagement] != "" || p.Labels[lease.LabelReleased] != "" {
				return false
			}
		}
		return r.readyOriginals() == replicas && len(r.pods()) == replicas
	})
}

func testReplace(t *testing.T, kind string, replicas int32, method string, lossless bool, mutate ...func(*corev1.PodSpec)) {
	t.Helper()
	t.Parallel()
	testReplaceIn(t, newRig(t), kind, replicas, method, lossless, mutate...)
}

func testReplaceIn(t *testing.T, r *rig, kind string, replicas int32, method string, lossless bool, mutate ...func(*corev1.PodSpec)) {
	t.Helper()
	dst := r.workload(kind, replicas, mutate...)
	stop := r.loop(dst)
	eid := r.engage(kind, lease.EngagementSpec{})
	prepared := r.untilPhase(kind, lease.Prepared)
	st, _ := r.status(r.leaseName(kind))
	if st.Method != method || len(st.Pods) != int(replicas) || len(st.Ports) != 1 || st.Ports[0].Handler != 8080 {
		t.Errorf("status %+v", st)
	}
	env, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](t.Context(), r.session, lease.MethodEnvironment, lease.EnvironmentRequest{Engagement: eid})
	must(t, err)
	joined := ""
	for _, kv := range env.Env {
		joined += string(kv) + "\x00"
	}
	if !strings.Contains(joined, "B=1\n23\x00") || !strings.Contains(joined, "POD_NAME="+st.Pods[0].Name) && replicas == 1 || strings.Contains(joined, "BERTH_AGENT") || strings.Contains(joined, "PATH=") {
		t.Errorf("environment %q", joined)
	}
	if len(env.Mounts) == 0 || env.Mounts[0] != "/data" {
		t.Errorf("mounts %q", env.Mounts)
	}
	r.annotate(kind, lease.AnnotationHandler, lease.HandlerRun)
	active := r.untilPhase(kind, lease.Active)
	first := r.until("the handler answers", 5*time.Second, func() bool { b, err := r.get(t.Context(), dst); return err == nil && strings.Contains(b, r.handler) })
	inRow := 0
	settled := r.until("only the handler answers", 5*time.Second, func() bool { // once kube-proxy knows
		if b, err := r.get(t.Context(), dst); err != nil || !strings.Contains(b, r.handler) {
			inRow = 0
		}
		inRow++
		return inRow > 30
	})
	r.annotate(kind, lease.AnnotationRelease, "true")
	gone := r.untilGone(kind)
	r.until("the original answers", 5*time.Second, func() bool { b, err := r.get(t.Context(), dst); return err == nil && !strings.Contains(b, r.handler) })
	r.untilClean(int(replicas))
	c := stop()
	t.Logf("prepared %v, then active %v, first request %v later, all %v later; restored in %v; requests: %d original, %d handler, %d lost",
		prepared.Round(time.Millisecond), active.Round(time.Millisecond), first.Round(time.Millisecond), settled.Round(time.Millisecond), gone.Round(time.Millisecond), c.original, c.handler, len(c.errs))
	if c.original < 20 || lossless && c.handler < 20 { // one that is lost takes its time
		t.Error("too few requests to say anything")
	}
	if lossless && len(c.errs) > 0 {
		t.Errorf("%d requests lost: %v", len(c.errs), c.errs[:min(len(c.errs), 10)])
	}
}

func TestClusterReplaceDeployment(t *testing.T) { testReplace(t, "Deployment", 1, "surge", true) }

func TestClusterReplaceThreeReplicas(t *testing.T) { testReplace(t, "Deployment", 3, "surge", true) }

func TestClusterReplaceReplicaSet(t *testing.T) { testReplace(t, "ReplicaSet", 2, "surge", true) }

func TestClusterReplaceStatefulSet(t *testing.T) { testReplace(t, "StatefulSet", 2, "recreate", false) }

func TestClusterReplaceHostPort(t *testing.T) {
	testReplace(t, "ReplicaSet", 1, "recreate", false, func(p *corev1.PodSpec) { p.Containers[0].Ports[0].HostPort = 18080 })
}

// The agent is accepted where Pod Security `restricted` accepted the original.
func TestClusterReplaceRestricted(t *testing.T) {
	t.Parallel()
	testReplaceIn(t, newRig(t, "restricted"), "Deployment", 1, "surge", true, func(p *corev1.PodSpec) {
		yes, no, user := true, false, int64(1234)
		p.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		p.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	})
}

// Flows into the cluster: what is closed is refused, what answers no ping is
// silent, names resolve.
func TestClusterFlows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.workload("Deployment", 1)
	pod := netip.MustParseAddr(r.pods()[0].Status.PodIP)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	open := func(kind tunnel.Kind, dst netip.AddrPort) (*tunnel.Stream, error) {
		return r.session.Open(ctx, tunnel.Header{Kind: kind, Dst: dst})
	}
	if _, err := open(tunnel.KindTCP, netip.AddrPortFrom(pod, 8081)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := open(tunnel.KindTCP, netip.MustParseAddrPort("127.0.0.1:8080")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the manager's own loopback: %v", err)
	}
	ping := func(a netip.Addr) (string, error) {
		s, err := open(tunnel.KindEcho, netip.AddrPortFrom(a, 0))
		must(t, err)
		defer s.Close()
		must(t, s.WritePacket([]byte("\x00\x07hello")))
		_ = s.SetReadDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 100)
		n, err := s.ReadPacket(buf)
		return string(buf[:n]), err
	}
	if got, err := ping(pod); err != nil || got != "\x00\x07hello" {
		t.Errorf("ping of a pod: %q, %v", got, err)
	}
	if got, err := ping(netip.MustParseAddr("10.96.255.254")); err == nil {
		t.Errorf("ping of nobody: %q", got)
	}
	dns, err := r.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	must(t, err)
	s, err := open(tunnel.KindUDP, netip.AddrPortFrom(netip.MustParseAddr(dns.Spec.ClusterIP), 53))
	must(t, err)
	defer s.Close()
	query := "\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	for _, l := range []string{"web", r.namespace, "svc", "cluster", "local"} {
		query += string(byte(len(l))) + l
	}
	must(t, s.WritePacket([]byte(query+"\x00\x00\x01\x00\x01"))) // A, IN
	_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 1500)
	n, err := s.ReadPacket(buf)
	if err != nil || n < 12 || string(buf[:2]) != "\xab\xcd" || buf[3]&15 != 0 || buf[7] != 1 {
		t.Errorf("DNS by UDP: %x, %v", buf[:n], err)
	}
}

func TestClusterGivenUpBeforeTheHandlerRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dst := r.workload("Deployment", 2)
	before := map[string]bool{}
	for _, p := range r.pods() {
		before[p.Name] = true
	}
	stop := r.loop(dst)
	r.engage("Deployment", lease.EngagementSpec{})
	r.untilPhase("Deployment", lease.Prepared)
	r.annotate("Deployment", lease.AnnotationRelease, "true")
	gone := r.untilGone("Deployment")
	r.untilClean(2)
	c := stop()
	t.Logf("taken back in %v, %d requests, %d lost", gone.Round(time.Millisecond), c.original, len(c.errs))
	for _, p := range r.pods() {
		if !before[p.Name] {
			t.Errorf("pod %s is new: the old one should have been taken back", p.Name)
		}
	}
	if len(c.errs) > 0 || c.handler > 0 {
		t.Errorf("%d lost, %d to the handler: %v", len(c.errs), c.handler, c.errs)
	}
}

func TestClusterClientGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.workload("Deployment", 1)
	r.engage("Deployment", lease.EngagementSpec{})
	r.untilPhase("Deployment", lease.Prepared)
	r.annotate("Deployment", lease.AnnotationHandler, lease.HandlerRun)
	r.untilPhase("Deployment", lease.Active)
	r.stopRenew() // as a killed client does
	r.session.Close()
	gone := r.untilGone("Deployment")
	r.untilClean(1)
	t.Logf("restored %v after the client went", gone.Round(100*time.Millisecond))
	if gone > lease.Duration+10*time.Second {
		t.Errorf("restored only after %v", gone)
	}
}

func TestClusterFailures(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dst := r.workload("Deployment", 1)
	for _, tt := range []struct {
		name, want string
		prepare    func() func()
		spec       lease.EngagementSpec
	}{
		{"no such container", `has no container "nope": it has web`, nil, lease.EngagementSpec{Container: "nope"}},
		{"quota", "exceeded quota", func() func() {
			q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resourceOne}}}
			_, err := r.client.CoreV1().ResourceQuotas(r.namespace).Create(t.Context(), q, metav1.CreateOptions{})
			must(t, err)
			r.until("the quota counts", 20*time.Second, func() bool {
				got, err := r.client.CoreV1().ResourceQuotas(r.namespace).Get(t.Context(), "q", metav1.GetOptions{})
				return err == nil && len(got.Status.Used) > 0
			})
			return func() {
				_ = r.client.CoreV1().ResourceQuotas(r.namespace).Delete(context.Background(), "q", metav1.DeleteOptions{})
			}
		}, lease.EngagementSpec{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			if tt.prepare != nil {
				defer tt.prepare()()
			}
			stop := r.loop(dst)
			r.engage("Deployment", tt.spec)
			c := tt.spec.Container
			if c == "" {
				c = "web"
			}
			name := lease.EngagementName("Deployment", "web", c)
			var st lease.EngagementStatus
			took := r.until("failed", 20*time.Second, func() bool { st, _ = r.status(name); return st.Phase == lease.Failed })
			t.Logf("after %v: %s (%s)", took.Round(time.Millisecond), st.Error, st.Hint)
			if !strings.Contains(st.Error, tt.want) || st.Hint == "" {
				t.Errorf("error %q, hint %q", st.Error, st.Hint)
			}
			r.untilClean(1)
			must(t, r.client.CoordinationV1().Leases(r.namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
			if c := stop(); len(c.errs) > 0 {
				t.Errorf("lost: %v", c.errs)
			}
		})
	}
}

var resourceOne = resource.MustParse("1")
