package service

import (
	"bytes"
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

func (f *fakeRunner) set(health string, deaf int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health, f.deaf = health, deaf
}

// Traffic goes to the handler when what is waited for has come true.
func TestWait(t *testing.T) {
	for _, tc := range []struct {
		name, wait, health string
		deaf               int
		by                 string
	}{
		{"by default, for the ports", "", "starting", 3, "listening"},
		{"for the ports", "listening", "unhealthy", 2, "listening"},
		{"for nothing", "none", "unhealthy", -1, "none"},
		{"for the health", "healthy", "healthy", -1, "healthy"},
		{"for the health of an image without HEALTHCHECK", "healthy", "", 2, "listening"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.connect("c1")
			r.run.set(tc.health, tc.deaf)
			req := r.engageReq("e1")
			req.Wait = tc.wait
			r.engage(req)
			bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
			if f := bustest.Wait[event.HandlerReady](t, r.ctl, "e1"); f.By != tc.by {
				t.Errorf("ready by %q, want %q", f.By, tc.by)
			}
		})
	}
}

// A handler that is the caller's own (a command of his machine, or nothing yet) is
// waited for where he says so.
func TestWaitForTheCaller(t *testing.T) {
	for _, tc := range []struct {
		wait, by string
		deaf     int
	}{{"", "none", -1}, {"listening", "listening", 3}} {
		r := newRig(t)
		r.connect("c1")
		r.run.set("", tc.deaf)
		req := r.engageReq("e1")
		req.Handler, req.Wait, req.Address = nil, tc.wait, "192.0.2.1"
		r.engage(req)
		bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
		if f := bustest.Wait[event.HandlerReady](t, r.ctl, "e1"); f.By != tc.by {
			t.Errorf("%q: ready by %q", tc.wait, f.By)
		}
		if got := r.run.history(); !strings.Contains(got, "engage 192.0.2.1:8080") || strings.Contains(got, "handler-create") {
			t.Errorf("%q: did %s", tc.wait, got)
		}
	}
}

// A handler that does not become ready has diverted nothing.
func TestWaitFails(t *testing.T) {
	for _, tc := range []struct {
		name, wait, health, says string
		millis                   int64
	}{
		{"no port in time", "listening", "", "nobody listens on 8080/TCP at 127.0.0.1", 150},
		{"no health in time", "healthy", "starting", "HEALTHCHECK has not succeeded", 150},
		{"unhealthy", "healthy", "unhealthy", "the handler is unhealthy", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.connect("c1")
			r.run.set(tc.health, -1)
			req := r.engageReq("e1")
			req.Wait, req.WaitMillis = tc.wait, tc.millis
			r.engage(req)
			names, last := r.ends(subject.Engagement, "e1")
			if f := failure(t, last); f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, tc.says) {
				t.Errorf("%+v", f)
			}
			if strings.Contains(names, "active") || strings.Contains(names, "handler-ready") {
				t.Error(names)
			}
		})
	}
	t.Run("left while it is waited for", func(t *testing.T) {
		r := newRig(t)
		r.connect("c1")
		r.run.set("", -1)
		r.engage(r.engageReq("e1"))
		bustest.Wait[event.HandlerStarted](t, r.ctl, "e1")
		call(r, command.EngagementClose, command.CloseEngagement{ID: "e1"})
		if names, _ := r.ends(subject.Engagement, "e1"); !strings.HasSuffix(names, " ended") || strings.Contains(names, "active") {
			t.Error(names)
		}
	})
}

// The environment reaches who asks for it by a reply, when there is one.
func TestEnvironmentCommand(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	ask := func(id string) (command.Environment, error) {
		return bus.Call(t.Context(), r.ctl, command.EngagementEnvironment, "", command.EngagementRef{Engagement: id})
	}
	if _, err := ask("e1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("of no engagement: %v", err)
	}
	r.setManager("idle")
	r.engage(r.engageReq("e1"))
	if _, err := ask("e1"); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("before the workload is prepared: %v", err)
	}
	r.setManager("")
	bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
	env, err := ask("e1")
	if err != nil {
		t.Fatal(err)
	}
	all := string(bytes.Join(env.Env, []byte{0}))
	for _, want := range []string{"GREETING=hello", "SECRET=s3cret\nline", "BERTH_CONTAINER=app", "BERTH_ENGAGEMENT_ID=e1"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q lacks %q", all, want)
		}
	}
	call(r, command.EngagementClose, command.CloseEngagement{ID: "e1"})
	r.ends(subject.Engagement, "e1")
	eventually(t, "it is forgotten", func() bool { _, err := ask("e1"); return fault.CodeOf(err) == fault.NotFound })
	// vif and runner are not told.
	if _, err := bus.Call(t.Context(), r.run.conn, command.EngagementEnvironment, "", command.EngagementRef{Engagement: "e1"}); fault.CodeOf(err) != fault.PermissionDenied {
		t.Errorf("asked by runner: %v", err)
	}
}
