package service

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/connections"
	"berth.dev/services/connector/internal/presence"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authv1 "k8s.io/api/authorization/v1"
	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

// rig is connector's service on a real bus, with a scripted runner and vif, and
// a fake cluster whose faults the test chooses. That it works with the real ones
// is for e2e to show; here it is made to fail.
type rig struct {
	t    *testing.T
	b    *bustest.Bus
	ctl  *bus.Conn
	kube *fake.Clientset
	link *fakeLink
	run  *fakeRunner
	stop func() // ends the service and waits

	mu      sync.Mutex
	manager string // what the fake manager does to engagements: "", fail, idle, stuck
	fault   func(ktesting.Action) error
}

const kubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"u","user":{"token":"t"}}]}`

func newRig(t *testing.T) *rig {
	r := &rig{t: t, b: bustest.Start(t), link: &fakeLink{}}
	r.kube = fakeCluster()
	r.kube.PrependReactor("*", "*", r.react)
	r.ctl = r.b.Connect(subject.Ctl)
	r.run = startRunner(t, r.b)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	conn := r.b.Connect(subject.Connector)
	go func() {
		ended <- Run(ctx, r.options(conn))
	}()
	// The manager outlives the service, whose last engagements it restores.
	managing, endManager := context.WithCancel(context.Background())
	t.Cleanup(endManager)
	go r.beManager(managing)
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the service ended with %v", err)
			}
		case <-time.After(bustest.Patience):
			t.Error("the service did not end")
		}
	})
	t.Cleanup(r.stop)
	eventually(t, "the service answers", func() bool {
		_, err := bus.Call(t.Context(), r.ctl, command.StateGet, "", command.None{})
		return err == nil
	})
	return r
}

func (r *rig) options(conn *bus.Conn) Options {
	level := slog.LevelError + 4
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return Options{
		Bus: conn, Admission: r.b.Server(), BusURL: r.b.Server().URL(), Version: "0.1.0-test", Image: "berth-cluster:test",
		Log: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: level})),
		Open: func(kc []byte, server string) (*cluster.Cluster, error) {
			c, err := cluster.Open(kc, server, "test")
			if err != nil {
				return nil, err
			}
			c.Kube = r.kube
			return c, nil
		},
		Link: func(string, string) (connections.Link, error) { return r.link, nil },
	}
}

// fakeCluster has a manager, the namespace shop and the Deployment web.
func fakeCluster() *fake.Clientset {
	info := lease.Marshal(lease.Info{Version: "0.1.0-test", Pin: "manager-pin", Webhook: "ok"})
	k := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: lease.InfoConfigMap, Namespace: "berth"}, Data: map[string]string{lease.InfoKey: info}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: cluster.TunnelAccount, Namespace: "berth"}},
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{
				{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}},
			}}}},
		},
	)
	_ = k.Tracker().Add(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"},
		Ports: []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "udp", Port: 53, Protocol: "UDP"}}}})
	k.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.34.4"}
	k.PrependReactor("create", "selfsubjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview).Spec.ResourceAttributes
		locked := r.Resource == "secrets" && r.Name == "locked"
		return true, &authv1.SelfSubjectAccessReview{Status: authv1.SubjectAccessReviewStatus{Allowed: !locked}}, nil
	})
	k.PrependReactor("create", "serviceaccounts", func(a ktesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: "short-lived", ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour)),
		}}, nil
	})
	return k
}

// vault is a Deployment with two Secrets, of which the user may read one.
func vault() *appsv1.Deployment {
	key := func(secret string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: "k"}}
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "vault", Namespace: "shop"},
		Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "app", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}, Env: []corev1.EnvVar{{Name: "GREETING", ValueFrom: key("open")}, {Name: "SECRET", ValueFrom: key("locked")}}},
		}}}},
	}
}

// forbid makes the cluster refuse a verb on a resource.
func (r *rig) forbid(verb, resource string) {
	r.sabotage(func(a ktesting.Action) error {
		if a.Matches(verb, resource) {
			return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", fmt.Errorf("RBAC"))
		}
		return nil
	})
}

// sabotage makes every call to the cluster fail that f has an error for. The
// reactor is there from the start: the chain must not change while it is used.
func (r *rig) sabotage(f func(ktesting.Action) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *rig) react(a ktesting.Action) (bool, runtime.Object, error) {
	r.mu.Lock()
	f := r.fault
	r.mu.Unlock()
	if f == nil {
		return false, nil, nil
	}
	err := f(a)
	return err != nil, nil, err
}

// beManager does to engagement Leases what the manager does, again and again
// until it shows: a fake cluster's watch replays nothing.
func (r *rig) beManager(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(20 * time.Millisecond)
		l, err := r.kube.CoordinationV1().Leases("").List(ctx, metav1.ListOptions{LabelSelector: lease.LabelKind + "=" + lease.KindEngagement})
		if err != nil {
			continue
		}
		r.mu.Lock()
		mode := r.manager
		r.mu.Unlock()
		for i := range l.Items {
			r.reconcile(ctx, &l.Items[i], mode, n)
		}
	}
}

func (r *rig) reconcile(ctx context.Context, l *coordv1.Lease, mode string, n int) {
	api := r.kube.CoordinationV1().Leases(l.Namespace)
	st := lease.EngagementStatus{Phase: lease.Prepared, Method: "surge", Ports: []lease.Port{{Container: 8080, Protocol: "TCP"}}, Pods: []lease.PodStatus{{Name: "web-1", Agent: true}}}
	if spec, err := lease.Unmarshal[lease.EngagementSpec](l.Annotations[lease.AnnotationSpec]); err == nil && spec.Beside() {
		st.Ports, st.Method = spec.Ports, lease.Ephemeral
	}
	switch {
	case mode == "idle":
		return
	case l.Annotations[lease.AnnotationRelease] != "":
		if mode != "stuck" {
			_ = api.Delete(ctx, l.Name, metav1.DeleteOptions{})
		}
		return
	case mode == "fail":
		st = lease.EngagementStatus{Phase: lease.Failed, Error: "the webhook is not reached", Hint: "ctl doctor"}
	case l.Annotations[lease.AnnotationHandler] == lease.HandlerRun:
		st.Phase = lease.Active
	}
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{lease.AnnotationState: lease.Marshal(st), "n": fmt.Sprint(n)}}})
	_, _ = api.Patch(ctx, l.Name, "application/merge-patch+json", patch, metav1.PatchOptions{})
}

func (r *rig) setManager(mode string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manager = mode
}

// fakeLink is a tunnel that gives an environment or fails.
type fakeLink struct {
	mu  sync.Mutex
	err error
}

func (l *fakeLink) fail(err error) { l.mu.Lock(); defer l.mu.Unlock(); l.err = err }
func (l *fakeLink) error() error   { l.mu.Lock(); defer l.mu.Unlock(); return l.err }

func (l *fakeLink) Pin() string                { return "link-pin" }
func (l *fakeLink) Use(command.Access, string) {}
func (l *fakeLink) Close()                     {}
func (l *fakeLink) Ping(context.Context) error { return l.error() }
func (l *fakeLink) Environment(context.Context, string) (lease.Environment, error) {
	return lease.Environment{Env: [][]byte{[]byte("GREETING=hello"), []byte("SECRET=s3cret\nline")}, Mounts: []string{"/a", "/b", "/etc/one"},
		Volumes: []lease.Volume{{Path: "/a"}, {Path: "/b", ReadOnly: true}, {Path: "/etc/one", File: true}}}, l.error()
}

func (l *fakeLink) File(_ context.Context, _, _, path string) (command.File, error) {
	return command.File{Path: path, Mode: 0o640, UID: 1, Content: []byte("one")}, l.error()
}

// fakeRunner answers runner's commands by the facts that runner would state, and
// starts a vif for each daemon container, with the identity it was given.
type fakeRunner struct {
	t    *testing.T
	conn *bus.Conn
	hold func()

	mu      sync.Mutex
	refuse  error // of handler-check
	noVIF   bool
	deaf    int                   // how many times yet nobody is told to listen; negative: always
	health  string                // of the handler
	volumes *command.VolumePlugin // what handler-check says of it
	engaged command.EngageHandler // what vif was told last
	made    int                   // handlers created
	there   map[string]bool       // engagements that have one
	fails   bool                  // the next one exits instead of starting
	calls   []string
	created command.CreateHandler
	spec    command.StartDaemon
	vifs    map[string]*bus.Conn
}

func startRunner(t *testing.T, b *bustest.Bus) *fakeRunner {
	f := &fakeRunner{t: t, conn: b.Connect(subject.Runner), vifs: map[string]*bus.Conn{}, there: map[string]bool{}}
	svc, err := f.conn.Serve(subject.Runner, "0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(svc.Stop)
	if f.hold, err = f.conn.Hold(subject.Runner, presence.ID); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		bus.Handle(svc, command.NetworkJoin, "", func(_ context.Context, q command.JoinNetwork) (command.Accepted, error) {
			f.called("join " + q.Network)
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.DaemonStart, "", f.startDaemon),
		bus.Handle(svc, command.DaemonStop, "", func(_ context.Context, q command.StopDaemon) (command.Accepted, error) {
			f.called("daemon-stop")
			f.mu.Lock()
			v := f.vifs[q.Connection]
			delete(f.vifs, q.Connection)
			f.mu.Unlock()
			if v != nil {
				v.Close()
			}
			f.state(q.Connection, event.DaemonExited{})
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.HandlerCheck, "", func(_ context.Context, q command.CheckHandler) (command.CheckedHandler, error) {
			f.called("handler-check " + q.Name)
			f.mu.Lock()
			defer f.mu.Unlock()
			c := command.CheckedHandler{Name: q.Name, Image: "sha256:1"}
			if q.Volumes {
				c.Volumes = f.volumes
			}
			return c, f.refuse
		}),
		bus.Handle(svc, command.HandlerCreate, "", func(_ context.Context, q command.CreateHandler) (command.Accepted, error) {
			f.called("handler-create")
			f.mu.Lock()
			f.created = q
			f.made++
			f.there[q.Engagement] = true
			id := f.id()
			f.mu.Unlock()
			f.state(q.Engagement, event.HandlerCreated{Container: q.Name, ContainerID: id})
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.HandlerStart, "", func(_ context.Context, q command.EngagementRef) (command.Accepted, error) {
			f.called("handler-start")
			f.mu.Lock()
			id, fails := f.id(), f.fails
			if fails {
				f.fails = false
				delete(f.there, q.Engagement)
			}
			f.mu.Unlock()
			f.state(q.Engagement, event.HandlerStarted{Container: "h", ContainerID: id})
			if fails {
				f.state(q.Engagement, event.HandlerExited{Container: "h", ContainerID: id, ExitCode: 3})
			}
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.HandlerHealth, "", func(_ context.Context, q command.EngagementRef) (command.Health, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return command.Health{Running: true, Health: f.health}, nil
		}),
		bus.Handle(svc, command.HandlerStop, "", func(_ context.Context, q command.EngagementRef) (command.Accepted, error) {
			f.called("handler-stop")
			f.mu.Lock()
			id, there := f.id(), f.there[q.Engagement]
			delete(f.there, q.Engagement)
			f.mu.Unlock()
			if there {
				f.state(q.Engagement, event.HandlerExited{Container: "h", ContainerID: id, ExitCode: 143})
			}
			return command.Accepted{Already: !there}, nil
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fakeRunner) id() string { return fmt.Sprintf("h%d", f.made) }

func (f *fakeRunner) called(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, s)
}

func (f *fakeRunner) history() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, ", ")
}

func (f *fakeRunner) state(id string, d event.Data) {
	if err := f.conn.State(context.Background(), id, d); err != nil {
		f.t.Log(err)
	}
}

// startDaemon is a daemon container and the vif in it.
func (f *fakeRunner) startDaemon(_ context.Context, q command.StartDaemon) (command.Accepted, error) {
	f.called("daemon-start")
	f.state(q.Connection, event.DaemonStarted{Container: "berth-" + q.Name})
	f.mu.Lock()
	f.spec = q
	no := f.noVIF
	f.mu.Unlock()
	if no {
		return command.Accepted{}, nil
	}
	var cfg bus.Config
	if err := json.Unmarshal(q.Bus, &cfg); err != nil {
		return command.Accepted{}, err
	}
	v, err := bus.Connect(context.Background(), cfg)
	if err != nil {
		return command.Accepted{}, err
	}
	f.mu.Lock()
	f.vifs[q.Connection] = v
	f.mu.Unlock()
	svc, err := v.Serve(subject.VIF, "0.1.0")
	if err != nil {
		return command.Accepted{}, err
	}
	say := func(d event.Data) {
		if err := v.State(context.Background(), q.Connection, d); err != nil {
			f.t.Log(err)
		}
	}
	for _, err := range []error{
		bus.Handle(svc, command.TunnelOpen, q.Connection, func(_ context.Context, o command.OpenTunnel) (command.Accepted, error) {
			f.called("tunnel-open " + o.Pin)
			say(event.TunnelOpened{Transport: "pods-proxy"})
			say(event.InterfaceReady{Interface: "berth0", Subnets: []string{"10.0.0.0/8"}})
			say(event.DNSReady{})
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.VIFState, q.Connection, func(context.Context, command.None) (command.VIFStatus, error) {
			return command.VIFStatus{TunnelUp: true, Door: "172.18.0.4:40000", DoorPin: "door-pin"}, nil
		}),
		bus.Handle(svc, command.Engage, q.Connection, func(_ context.Context, e command.EngageHandler) (command.Accepted, error) {
			at := "engage " + e.Address
			if len(e.Ports) > 0 { // an ingest has none
				at += fmt.Sprintf(":%d", e.Ports[0].Handler)
			}
			f.called(at)
			f.mu.Lock()
			f.engaged = e
			f.mu.Unlock()
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.Listening, q.Connection, func(_ context.Context, a command.AskListening) (command.ListeningPorts, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.deaf != 0 {
				f.deaf--
				return command.ListeningPorts{Missing: a.Ports}, nil
			}
			return command.ListeningPorts{Missing: []event.Port{}}, nil
		}),
		bus.Handle(svc, command.EngagePause, q.Connection, func(_ context.Context, p command.PauseEngagement) (command.PausedEngagement, error) {
			f.called("pause")
			return command.PausedEngagement{}, nil
		}),
		bus.Handle(svc, command.EngageResume, q.Connection, func(context.Context, command.EngagementRef) (command.Accepted, error) {
			f.called("resume")
			return command.Accepted{}, nil
		}),
		bus.Handle(svc, command.Disengage, q.Connection, func(context.Context, command.EngagementRef) (command.Accepted, error) {
			f.called("disengage")
			return command.Accepted{}, nil
		}),
	} {
		if err != nil {
			return command.Accepted{}, err
		}
	}
	say(event.VIFStarted{Version: "0.1.0", Pin: "vif-pin"})
	return command.Accepted{}, nil
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(bustest.Patience)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ends reads the facts about id up to the terminal one: their names, and the
// last one's data.
func (r *rig) ends(scope subject.Scope, id string) (names string, last event.Envelope) {
	r.t.Helper()
	var n []string
	for _, e := range bustest.Collect(r.t, r.ctl, scope, id, event.Terminal) {
		t := strings.Split(e.Type, ".")
		n = append(n, t[4])
		last = e
	}
	return strings.Join(n, " "), last
}

func failure(t *testing.T, e event.Envelope) fault.Error {
	t.Helper()
	var d struct{ Error fault.Error }
	if err := json.Unmarshal(e.Data, &d); err != nil || d.Error.Code == "" {
		t.Fatalf("%s %s: no failure", e.Type, e.Data)
	}
	return d.Error
}

func (r *rig) openReq(id string) command.OpenConnection {
	return command.OpenConnection{ID: id, Name: "dev-shop", Context: "dev", Namespace: "shop", Server: "https://dev", Kubeconfig: []byte(kubeconfig), Networks: []string{"kind"}, Client: "me@here"}
}

func (r *rig) connect(id string) {
	r.t.Helper()
	if _, err := bus.Call(r.t.Context(), r.ctl, command.ConnectionOpen, "", r.openReq(id)); err != nil {
		r.t.Fatal(err)
	}
	facts := bustest.Collect(r.t, r.ctl, subject.Connection, id, func(e event.Envelope) bool {
		return event.Terminal(e) || e.Type == event.TypeOf(event.Connected{})
	})
	if last := facts[len(facts)-1]; event.Terminal(last) {
		r.t.Fatalf("not connected: %s", last.Data)
	}
}

func (r *rig) engageReq(id string) command.OpenEngagement {
	return command.OpenEngagement{ID: id, Connection: "c1", Kind: "replace", Workload: "web", Handler: &command.Handler{Config: []byte(`{}`), HostConfig: []byte(`{}`)}}
}

func (r *rig) engage(req command.OpenEngagement) {
	r.t.Helper()
	if _, err := bus.Call(r.t.Context(), r.ctl, command.EngagementOpen, "", req); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) leases() (names []string) {
	l, err := r.kube.CoordinationV1().Leases("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, i := range l.Items {
		names = append(names, i.Namespace+"/"+i.Name)
	}
	return names
}
