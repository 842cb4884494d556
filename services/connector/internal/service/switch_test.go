package service

import (
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// switchReq is the next handler of an engagement; connector starts it.
func switchReq(id string) command.SwitchHandler {
	return command.SwitchHandler{Engagement: id, Handler: command.Handler{Config: []byte(`{}`), HostConfig: []byte(`{}`)}}
}

func TestSwitch(t *testing.T) {
	r := newRig(t)
	r.connect("c1")
	ask := func(req command.SwitchHandler) error {
		_, err := bus.Call(t.Context(), r.ctl, command.EngagementSwitch, "", req)
		return err
	}
	if err := ask(switchReq("e1")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("of no engagement: %v", err)
	}
	r.run.set("", -1)
	r.engage(r.engageReq("e1"))
	bustest.Wait[event.HandlerStarted](t, r.ctl, "e1")
	if err := ask(switchReq("e1")); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("before it is active: %v", err)
	}
	r.run.set("", 0)
	bustest.Wait[event.EngagementActive](t, r.ctl, "e1")

	// Refused by runner, nothing happens to the one there is.
	r.run.mu.Lock()
	r.run.refuse = fault.New(fault.NotFound, "", "no such image")
	r.run.mu.Unlock()
	if err := ask(switchReq("e1")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("without an image: %v", err)
	}
	r.run.mu.Lock()
	r.run.refuse = nil
	r.run.mu.Unlock()
	if strings.Contains(r.run.history(), "pause") {
		t.Errorf("a refused switch did %s", r.run.history())
	}

	// One that fails leaves the engagement, for another.
	r.run.set("", -1) // it never listens
	r.run.mu.Lock()
	r.run.fails = true
	r.run.mu.Unlock()
	if err := ask(switchReq("e1")); err != nil {
		t.Fatal(err)
	}
	if f := bustest.Wait[event.SwitchFailed](t, r.ctl, "e1"); f.ExitCode == nil || *f.ExitCode != 3 {
		t.Errorf("%+v", f)
	}
	r.run.set("", 0)
	eventually(t, "another may take its place", func() bool { return ask(switchReq("e1")) == nil })
	if f := bustest.Wait[event.HandlerSwitched](t, r.ctl, "e1"); f.ContainerID != "h3" {
		t.Errorf("%+v", f)
	}
	history := strings.ReplaceAll(r.run.history(), "handler-check intercept-web-8080, ", "")
	if want := "pause, handler-stop, handler-stop, handler-create, handler-start, pause, handler-stop, handler-create, handler-start, resume"; !strings.HasSuffix(history, want) {
		t.Errorf("did %s, want %s", history, want)
	}
	if !r.run.created.Again {
		t.Error("runner is not told that it is another handler")
	}

	call(r, command.EngagementClose, command.CloseEngagement{ID: "e1"})
	names, last := r.ends(subject.Engagement, "e1")
	if f, ok := event.Decode[event.EngagementEnded](last); !ok || f.Cause != "leave" || f.ExitCode == nil || *f.ExitCode != 143 {
		t.Errorf("%s: %s", names, last.Data)
	}
}
