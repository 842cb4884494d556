package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	coordv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	ktesting "k8s.io/client-go/testing"
)

var (
	configmaps = corev1.SchemeGroupVersion.WithResource("configmaps")
	namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")
	leases     = coordv1.SchemeGroupVersion.WithResource("leases")
)

// call sends a command as ctl.
func call[Req, Rep any](r *rig, spec command.Spec[Req, Rep], req Req) {
	r.t.Helper()
	if _, err := bus.Call(r.t.Context(), r.ctl, spec, "", req); err != nil {
		r.t.Fatal(err)
	}
}

func decode(t *testing.T, raw []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

func TestConnectAndQuit(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	c := bustest.Wait[event.Connected](t, r.ctl, "c1")
	if c.Name != "dev-shop" || c.Daemon != "berth-dev-shop" || c.ServerVersion != "v1.34.4" || c.Manager != "0.1.0-test" || c.Transport != "pods-proxy" || len(c.Subnets) != 1 {
		t.Errorf("%+v", c)
	}
	if got := r.leases(); len(got) != 1 || got[0] != "berth/berth-connection-c1" {
		t.Errorf("leases %v", got)
	}
	for _, want := range []string{"join kind", "daemon-start", "tunnel-open manager-pin"} {
		if !strings.Contains(r.run.history(), want) {
			t.Errorf("runner and vif were asked for %q, want %q", r.run.history(), want)
		}
	}

	// The same again, under whatever id, is no new connection; other flags are refused.
	for _, id := range []string{"c1", "c2"} {
		if rep, err := bus.Call(t.Context(), r.ctl, command.ConnectionOpen, "", r.openReq(id)); err != nil || !rep.Already || rep.ID != "c1" {
			t.Errorf("again as %s: %+v, %v", id, rep, err)
		}
	}
	other := r.openReq("c3")
	other.Namespace = "other"
	_, err := bus.Call(t.Context(), r.ctl, command.ConnectionOpen, "", other)
	if f := fault.From(err); f == nil || f.Code != fault.FailedPrecondition || f.Hint != "ctl quit --use dev-shop" {
		t.Errorf("with other flags: %v", err)
	}

	st, err := bus.Call(t.Context(), r.ctl, command.StateGet, "", command.None{})
	if err != nil || len(st.Connections) != 1 || st.Connections[0].Phase != "connected" || !st.Connections[0].Healthy {
		t.Errorf("%+v, %v", st, err)
	}
	w, err := bus.Call(t.Context(), r.ctl, command.WorkloadsList, "", command.ListWorkloads{Connection: "c1"})
	if err != nil || len(w.Items) != 1 || !w.Items[0].Engageable || w.Items[0].Ready != "0/1" {
		t.Errorf("%+v, %v", w, err)
	}

	if _, err := bus.Call(t.Context(), r.ctl, command.ConnectionClose, "", command.CloseConnection{ID: "c1", Cause: "quit"}); err != nil {
		t.Fatal(err)
	}
	if names, _ := r.ends(subject.Connection, "c1"); !strings.HasSuffix(names, " disconnected") {
		t.Error(names)
	}
	if got := r.leases(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if !strings.HasSuffix(r.run.history(), "daemon-stop") {
		t.Error(r.run.history())
	}
	// At once: ctl takes down with the last connection what it ran on.
	if st, err := bus.Call(t.Context(), r.ctl, command.StateGet, "", command.None{}); err != nil || len(st.Connections) > 0 {
		t.Errorf("after the terminal fact: %+v, %v", st, err)
	}
	// vif's identity is admitted no more.
	var cfg bus.Config
	r.run.mu.Lock()
	decode(t, r.run.spec.Bus, &cfg)
	r.run.mu.Unlock()
	if _, err := bus.Connect(t.Context(), cfg); fault.CodeOf(err) != fault.PermissionDenied {
		t.Errorf("vif's identity after quit: %v", err)
	}
}

func TestConnectFails(t *testing.T) {
	refused := func(ktesting.Action) error { return errors.New("dial tcp: no such thing") }
	for _, tc := range []struct {
		name     string
		sabotage func(*rig)
		stage    event.Stage
		code     fault.Code
		says     string
		hint     string
	}{
		{"no manager", func(r *rig) { _ = r.kube.Tracker().Delete(configmaps, "berth", "berth-manager-info") }, event.StageManager, fault.FailedPrecondition, "no manager in the namespace berth", "ctl install"},
		{"no right to see it", func(r *rig) { r.forbid("get", "configmaps") }, event.StageManager, fault.PermissionDenied, "you may not get configmaps berth-manager-info in the namespace berth", "kubectl auth can-i get configmaps/berth-manager-info -n berth"},
		{"no right to hold a lease", func(r *rig) { r.forbid("create", "leases") }, event.StageManager, fault.PermissionDenied, "you may not create leases.coordination.k8s.io in the namespace berth", "kubectl auth can-i"},
		{"no namespace", func(r *rig) { _ = r.kube.Tracker().Delete(namespaces, "", "shop") }, event.StageManager, fault.NotFound, "no namespace shop", "kubectl get namespaces"},
		{"no API server", func(r *rig) { r.sabotage(refused) }, event.StageAPIServer, fault.Unavailable, "no such thing", "kubectl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			tc.sabotage(r)
			if _, err := bus.Call(t.Context(), r.ctl, command.ConnectionOpen, "", r.openReq("c1")); err != nil {
				t.Fatal(err)
			}
			_, last := r.ends(subject.Connection, "c1")
			f := failure(t, last)
			if f.Stage != string(tc.stage) || f.Code != tc.code || !strings.Contains(f.Message, tc.says) || !strings.HasPrefix(f.Hint, tc.hint) {
				t.Errorf("%+v", f)
			}
			if !strings.HasSuffix(r.run.history(), "daemon-stop") {
				t.Error(r.run.history())
			}
		})
	}
}

func TestReplaceEndings(t *testing.T) {
	const up = "requested workload-prepared handler-created handler-started handler-ready active "
	for _, tc := range []struct {
		name  string
		end   func(*rig)
		facts string
		says  string
		exit  string
	}{
		{"handler exits", func(r *rig) { r.run.state("e1", event.HandlerExited{Container: "h", ExitCode: 7}) }, "handler-exited restoring handler-exited ended", `"cause":"handler exited"`, `"exitCode":7`},
		{"leave", func(r *rig) {
			call(r, command.EngagementClose, command.CloseEngagement{Name: "web", Cause: "leave"})
		}, "restoring handler-exited ended", `"cause":"leave"`, `"exitCode":143`},
		{"quit", func(r *rig) {
			call(r, command.ConnectionClose, command.CloseConnection{ID: "c1", Cause: "quit"})
		}, "restoring handler-exited ended", `"cause":"quit"`, `"exitCode":143`},
		{"client gone", nil, "restoring handler-exited ended", `"cause":"client gone"`, `"exitCode":143`},
		{"vif dies", func(r *rig) {
			r.run.state("c1", event.DaemonExited{Container: "berth-dev-shop", ExitCode: 137})
		}, "restoring handler-exited failed", "exited with code 137", `"exitCode":143`},
		{"volumes are lost", func(r *rig) {
			lost := func(connection, engagement string) { // another vif is another connection's
				r.run.mu.Lock()
				v := r.run.vifs["c1"]
				r.run.mu.Unlock()
				if connection != "c1" {
					v = r.run.conn
				}
				if err := v.State(r.t.Context(), connection, event.VolumesLost{Engagement: engagement, Cause: "was killed"}); err != nil {
					r.t.Log(err)
				}
			}
			lost("c2", "e1")
			lost("c1", "e2")
			if st, err := bus.Call(r.t.Context(), r.ctl, command.StateGet, "", command.None{}); err != nil || st.Engagements[0].Phase != "active" {
				r.t.Errorf("another's volumes: %+v, %v", st, err)
			}
			lost("c1", "e1")
		}, "restoring handler-exited failed", "the volume plugin was killed", `"exitCode":143`},
		{"the lease is taken away", func(r *rig) {
			_ = r.kube.Tracker().Delete(leases, "shop", "berth-deployment-web.app")
		}, "restoring handler-exited failed", "is gone", `"exitCode":143`},
		{"connector ends", func(r *rig) { r.stop() }, "restoring handler-exited ended", `"cause":"connector was stopped"`, `"exitCode":143`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.connect("c1")
			req := r.engageReq("e1")
			req.Holder = subject.Live(subject.Ctl, "h1")
			release, err := r.ctl.Hold(subject.Ctl, "h1")
			if err != nil {
				t.Fatal(err)
			}
			r.engage(req)
			a := bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
			if len(a.Pods) != 1 || len(a.Ports) != 1 || a.Ports[0].Handler != 8080 {
				t.Errorf("%+v", a)
			}
			st, err := bus.Call(t.Context(), r.ctl, command.StateGet, "", command.None{})
			if err != nil || len(st.Engagements) != 1 || st.Engagements[0].Phase != "active" || st.Engagements[0].Handler != "intercept-web-8080" {
				t.Errorf("%+v, %v", st.Engagements, err)
			}
			if tc.end == nil {
				release()
			} else {
				tc.end(r)
				defer release()
			}
			names, last := r.ends(subject.Engagement, "e1")
			if names != up+tc.facts {
				t.Errorf("facts\n%s, want\n%s", names, up+tc.facts)
			}
			if !strings.Contains(string(last.Data), tc.says) || !strings.Contains(string(last.Data), tc.exit) {
				t.Errorf("%s, want %s and %s", last.Data, tc.says, tc.exit)
			}
			for _, want := range []string{"handler-check intercept-web-8080, engage 127.0.0.1:8080, handler-create, handler-start", "handler-stop", "disengage"} {
				if tc.name == "vif dies" && want == "disengage" {
					continue
				}
				if !strings.Contains(r.run.history(), want) {
					t.Errorf("asked for %q, want %q", r.run.history(), want)
				}
			}
			env := string(bytes.Join(r.run.created.Env, nil))
			for _, want := range []string{"GREETING=hello", "SECRET=s3cret\nline", "BERTH_CONTAINER=app", "BERTH_MOUNTS=", "BERTH_ENGAGEMENT_ID=e1"} {
				if !strings.Contains(env, want) {
					t.Errorf("the handler's environment lacks %q", want)
				}
			}
			for _, e := range bustest.Collect(t, r.ctl, subject.Engagement, "e1", event.Terminal) {
				if strings.Contains(string(e.Data), "s3cret") {
					t.Errorf("a value of the environment is in the fact %s", e.Type)
				}
			}
			// Sent again after its end, the command does nothing.
			if tc.name == "leave" {
				if rep, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", req); err != nil || !rep.Already {
					t.Errorf("again: %+v, %v", rep, err)
				}
			}
		})
	}
}

func TestReplaceIsRefused(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	mine := r.engageReq("first")
	r.engage(mine)
	bustest.Wait[event.EngagementActive](t, r.ctl, "first")
	before := len(r.leases())
	for _, tc := range []struct {
		name   string
		change func(*command.OpenEngagement)
		code   fault.Code
		says   string
	}{
		{"engaged already", func(*command.OpenEngagement) {}, fault.AlreadyExists, "is engaged by me@here since"},
		{"no such workload", func(q *command.OpenEngagement) { q.Workload = "wep" }, fault.NotFound, "near it: web"},
		{"no such container", func(q *command.OpenEngagement) { q.Container = "x" }, fault.NotFound, "it has: app"},
		{"no such port", func(q *command.OpenEngagement) { q.Ports = []string{"80:x"} }, fault.InvalidArgument, "declares 8080/TCP (http)"},
		{"no such connection", func(q *command.OpenEngagement) { q.Connection = "c9" }, fault.FailedPrecondition, "no connection c9"},
		{"a holder that is none", func(q *command.OpenEngagement) { q.Holder = "berth.v1.cmd.runner.handler-stop" }, fault.InvalidArgument, "not a presence subject"},
		{"an address that is none", func(q *command.OpenEngagement) { q.Address = "x" }, fault.InvalidArgument, "not an IP address"},
		{"a wait for nothing known", func(q *command.OpenEngagement) { q.Wait = "ready" }, fault.InvalidArgument, "--wait is none, listening or healthy"},
		{"healthy, and no container", func(q *command.OpenEngagement) { q.Wait, q.Handler = "healthy", nil }, fault.InvalidArgument, "needs a handler in a container"},
		{"an ingest with ports", func(q *command.OpenEngagement) { q.Kind, q.Ports = "ingest", []string{"8080"} }, fault.InvalidArgument, "no traffic, so no ports"},
		{"an intercept of what is replaced", func(q *command.OpenEngagement) { q.Kind, q.Ports = "intercept", []string{"3000:web"} }, fault.AlreadyExists, "the container app of Deployment web is engaged by me@here since"},
		{"an intercept without a port", func(q *command.OpenEngagement) { q.Kind = "intercept" }, fault.InvalidArgument, "web (80/TCP) of service web"},
		{"an intercept of no port", func(q *command.OpenEngagement) { q.Kind, q.Ports = "intercept", []string{"3000:nope"} }, fault.InvalidArgument, `a port named "nope"`},
		{"a service that is none", func(q *command.OpenEngagement) { q.Kind, q.Service, q.Ports = "intercept", "x", []string{"1"} }, fault.NotFound, "these do: web"},
		{"a service for a replace", func(q *command.OpenEngagement) { q.Service = "web" }, fault.InvalidArgument, "belongs to an intercept"},
		{"no kind", func(q *command.OpenEngagement) { q.Kind = "steal" }, fault.InvalidArgument, "no kind of engagement"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := r.engageReq("e1")
			tc.change(&q)
			_, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", q)
			if f := fault.From(err); f == nil || f.Code != tc.code || !strings.Contains(f.Message, tc.says) {
				t.Errorf("%v, want %s %q", err, tc.code, tc.says)
			}
			if n := len(r.leases()); n != before {
				t.Errorf("%d leases, %d before", n, before)
			}
		})
	}
	t.Run("by runner", func(t *testing.T) {
		r.run.mu.Lock()
		r.run.refuse = fault.New(fault.NotFound, "docker pull x", "there is no image x")
		r.run.mu.Unlock()
		call(r, command.EngagementClose, command.CloseEngagement{ID: "first"})
		r.ends(subject.Engagement, "first")
		if _, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", r.engageReq("e1")); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("%v", err)
		}
		if got := r.leases(); len(got) != 1 {
			t.Errorf("left: %v", got)
		}
	})
}

// Ingests and intercepts stand side by side where they do not exclude each other.
func TestBeside(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	open := func(id, kind string, handler bool, ports ...string) error {
		q := r.engageReq(id)
		q.Kind, q.Ports = kind, ports
		if !handler {
			q.Handler = nil
		}
		_, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", q)
		return err
	}
	for id, err := range map[string]error{"i1": open("i1", "ingest", true), "i2": open("i2", "ingest", false), "t1": open("t1", "intercept", false, "3000:web"), "t2": open("t2", "intercept", false, "5353:udp")} {
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		bustest.Wait[event.EngagementActive](t, r.ctl, id)
	}
	for _, kind := range []string{"intercept", "replace"} {
		ports := map[string][]string{"intercept": {"1:80"}}[kind]
		if err := open("x", kind, false, ports...); fault.CodeOf(err) != fault.AlreadyExists || !strings.Contains(err.Error(), "of Deployment web is engaged by me@here since") {
			t.Errorf("%s beside an intercept: %v", kind, err)
		}
	}
	if got := r.run.history(); !strings.Contains(got, "handler-check ingest-web-i1") || !strings.Contains(got, "engage 127.0.0.1:3000") || !strings.Contains(got, "engage 127.0.0.1:5353") {
		t.Error(got)
	}
	w, err := bus.Call(t.Context(), r.ctl, command.WorkloadsList, "", command.ListWorkloads{Connection: "c1"})
	if err != nil || len(w.Items) != 1 || !w.Items[0].Engageable || strings.Count(w.Items[0].Holder, "me@here (ingest)") != 2 ||
		!strings.Contains(w.Items[0].Holder, "me@here (intercept 8080/TCP)") || !strings.Contains(w.Items[0].Holder, "(intercept 53/UDP)") {
		t.Errorf("%+v, %v", w, err)
	}
	// Four go by one name; each can be named by its id.
	if _, err := bus.Call(t.Context(), r.ctl, command.EngagementClose, "", command.CloseEngagement{Name: "web"}); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), "t2 (intercept web, namespace shop") {
		t.Errorf("%v", err)
	}
	for _, id := range []string{"t2", "i1", "i2", "t1"} {
		call(r, command.EngagementClose, command.CloseEngagement{Name: id})
		if _, last := r.ends(subject.Engagement, id); last.Type != event.TypeOf(event.EngagementEnded{}) {
			t.Errorf("%s: %s", id, last.Data)
		}
	}
	if got := r.leases(); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func TestReplaceFails(t *testing.T) {
	for _, tc := range []struct {
		name     string
		sabotage func(*rig)
		facts    string
		says     string
	}{
		{"the manager cannot", func(r *rig) { r.setManager("fail") }, "requested restoring failed", "the webhook is not reached"},
		{"no environment", func(r *rig) { r.link.fail(fault.New(fault.Unavailable, "", "the agent does not answer")) }, "requested workload-prepared restoring failed", "the agent does not answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.connect("c1")
			tc.sabotage(r)
			r.engage(r.engageReq("e1"))
			names, last := r.ends(subject.Engagement, "e1")
			// The scripted runner states an exit whenever it is asked to stop.
			if strings.ReplaceAll(names, " handler-exited", "") != tc.facts || !strings.Contains(failure(t, last).Message, tc.says) {
				t.Errorf("%s: %s", names, last.Data)
			}
			if got := r.leases(); len(got) != 1 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestRunnerGone(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	r.run.hold()
	_, last := r.ends(subject.Connection, "c1")
	if f := failure(t, last); !strings.Contains(f.Message, "runner is gone") {
		t.Errorf("%+v", f)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	r.link.fail(fault.New(fault.Unavailable, "ctl doctor", "the manager does not answer"))
	if h := bustest.Wait[event.HealthChanged](t, r.ctl, "c1"); h.Healthy || h.Cause == nil || !strings.Contains(h.Cause.Message, "does not answer") {
		t.Errorf("%+v", h)
	}
	r.link.fail(nil)
	seen := 0
	bustest.Collect(t, r.ctl, subject.Connection, "c1", func(e event.Envelope) bool {
		h, ok := event.Decode[event.HealthChanged](e)
		if ok {
			seen++
		}
		return ok && h.Healthy
	})
	if seen != 2 {
		t.Errorf("%d changes, want 2", seen)
	}
}

func TestOrphans(t *testing.T) {
	b := bustest.Start(t)
	conn := b.Tester()
	for id, d := range map[string]event.Data{
		"c1": event.ConnectionRequested{Name: "x"}, "e1": event.EngagementRequested{Name: "x"}, "e2": event.EngagementRequested{Name: "y"},
	} {
		if err := conn.State(t.Context(), id, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.State(t.Context(), "e2", event.EngagementEnded{Cause: "leave"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing left to do
		if err := closeOrphans(t.Context(), conn, time.Now(), slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]int{"c1": 2, "e1": 2, "e2": 2} {
		n := 0
		tail, err := conn.TailFacts(t.Context(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		for tail.Pending > 0 {
			e, err := tail.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if e.Subject == id {
				n++
			}
		}
		tail.Stop()
		if n != want {
			t.Errorf("%s has %d facts, want %d", id, n, want)
		}
	}
}

func TestExecPluginIsRefused(t *testing.T) {
	// A kubeconfig with an exec plugin is refused before anything is started.
	r := newRig(t)
	q := r.openReq("c1")
	q.Kubeconfig = []byte(strings.Replace(kubeconfig, `"token":"t"`, `"exec":{"apiVersion":"client.authentication.k8s.io/v1","command":"aws","interactiveMode":"Never"}`, 1))
	_, err := bus.Call(t.Context(), r.ctl, command.ConnectionOpen, "", q)
	if f := fault.From(err); f == nil || f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, `plugin "aws"`) {
		t.Errorf("%v", err)
	}
	if r.run.history() != "" {
		t.Error(r.run.history())
	}
}
