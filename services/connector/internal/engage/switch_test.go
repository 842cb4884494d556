package engage

import (
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// feed is replay with inputs that say which container they are about.
func feed(s State, ins ...Input) (State, []event.Data, []Do) {
	var said []event.Data
	var did []Do
	for _, in := range ins {
		if in.At.IsZero() {
			in.At = t0
		}
		if in.Generation == 0 {
			in.Generation = s.Generation
		}
		next, say, do, _ := s.Next(in)
		s = next
		if d := s.Fact(say); d != nil {
			said = append(said, d)
		}
		did = append(did, do...)
	}
	return s, said, did
}

// active is an engagement whose handler is the container "one".
func active(t *testing.T) State {
	t.Helper()
	s, _, _ := feed(begin(Attach), input(WorkloadPrepared), Input{On: HandlerCreated, Container: "h", ID: "one"},
		Input{On: HandlerStarted, ID: "one"}, input(HandlerReady), input(TrafficDiverted))
	if s.Stage != Active {
		t.Fatalf("at %s", s.Stage)
	}
	return s
}

const switchDo = "vif: engage-pause, runner: handler-stop, await, manager: environment, runner: handler-create"

func TestSwitch(t *testing.T) {
	asked := Input{On: SwitchAsked, Image: "sha256:2", Mode: Attach}
	oldEnds := Input{On: HandlerExited, ID: "one", ExitCode: 143}
	comes := []Input{{On: HandlerCreated, Container: "h", ID: "two"}, {On: HandlerStarted, ID: "two"}, {On: HandlerReady, By: "listening"}, {On: Resumed}}
	for _, c := range []struct {
		name      string
		in        []Input
		said, did string
		stage     Stage
	}{
		{"it takes the place", append([]Input{asked, oldEnds}, comes...), "handler-switched", switchDo + ", await: handler ready, vif: engage-resume", Active},
		{"the old one's end is told late", append(append([]Input{asked}, comes...), oldEnds), "handler-switched", switchDo + ", await: handler ready, vif: engage-resume", Active},
		{"connector starts it", []Input{{On: SwitchAsked, Mode: Detached}, oldEnds, comes[0]}, "", switchDo + ", runner: handler-start", Switching},
		{"it exits before it is ready", []Input{asked, oldEnds, comes[0], comes[1], {On: HandlerExited, ID: "two", ExitCode: 3}}, "switch-failed", switchDo + ", await: handler ready", Vacant},
		{"it cannot be created", []Input{asked, oldEnds, input(HandlerFailed)}, "switch-failed", switchDo, Vacant},
		{"it is not ready in time", []Input{asked, oldEnds, comes[0], comes[1], input(SwitchFailed), {On: HandlerExited, ID: "two"}}, "switch-failed", switchDo + ", await: handler ready, runner: handler-stop, await", Vacant},
		{"asked twice", []Input{asked, asked}, "", switchDo, Switching},
		{"tried again", append([]Input{asked, oldEnds, input(HandlerFailed), asked}, comes...), "switch-failed handler-switched", switchDo + ", " + switchDo + ", await: handler ready, vif: engage-resume", Active},
		{"what belongs to the one before comes late", []Input{asked, oldEnds, comes[0], comes[1], input(HandlerFailed), asked,
			{On: HandlerReady, Generation: 1}, {On: Resumed, Generation: 1}, {On: SwitchFailed, Generation: 1}}, "switch-failed", switchDo + ", await: handler ready, " + switchDo, Switching},
		{"pods move meanwhile", []Input{asked, input(PodsChanged), input(HandlerFailed), input(PodsChanged)}, "pods-changed switch-failed pods-changed", switchDo, Vacant},
		{"left meanwhile", []Input{asked, oldEnds, input(EndAsked), comes[0], input(HandlerGone), input(LeaseGone)}, "restoring ended", switchDo + ", " + undoDo + ", runner: handler-stop", Over},
		{"left when there is no handler", []Input{asked, oldEnds, input(SwitchFailed), input(EndAsked), input(HandlerGone), input(LeaseGone)}, "switch-failed restoring ended", switchDo + ", runner: handler-stop, await, " + undoDo, Over},
		{"the new one ends later", append(append([]Input{asked, oldEnds}, comes...), Input{On: HandlerExited, ID: "two", ExitCode: 4}, input(HandlerGone), input(LeaseGone)), "handler-switched restoring ended", switchDo + ", await: handler ready, vif: engage-resume, " + undoDo, Over},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, said, did := feed(active(t), c.in...)
			if s.Stage != c.stage || names(said) != c.said || dos(did) != c.did {
				t.Errorf("at %s, said %q, did\n%s, want %s, %q,\n%s", s.Stage, names(said), dos(did), c.stage, c.said, c.did)
			}
			if s.Error != nil {
				t.Errorf("the engagement holds the error %v", s.Error)
			}
			if end, ok := said[max(len(said)-1, 0):], c.name == "the new one ends later"; ok {
				if e := end[0].(event.EngagementEnded); e.ExitCode == nil || *e.ExitCode != 4 || e.Cause != "handler exited" {
					t.Errorf("%+v", e)
				}
			}
		})
	}
	t.Run("what is told of it", func(t *testing.T) {
		_, said, _ := feed(active(t), append([]Input{asked, oldEnds}, comes...)...)
		if f := said[0].(event.HandlerSwitched); f.ContainerID != "two" || f.Image != "sha256:2" {
			t.Errorf("%+v", f)
		}
		s, said, _ := feed(active(t), asked, comes[0], comes[1], Input{On: HandlerExited, ID: "two", ExitCode: 3})
		if f := said[0].(event.SwitchFailed); f.Error.Code != fault.FailedPrecondition || f.ExitCode == nil || *f.ExitCode != 3 {
			t.Errorf("%+v", f)
		}
		if r := s.Record(); r.Handler != "" || r.Phase != "active" {
			t.Errorf("%+v", r)
		}
	})
}
