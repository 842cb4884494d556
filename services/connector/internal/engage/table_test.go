package engage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func begin(mode If) State {
	return Begin("e1", event.EngagementRequested{Name: "web", Kind: "replace", Namespace: "shop", WorkloadKind: "Deployment", Workload: "web", Container: "web"}, mode, nil, t0)
}

// input gives each kind of input some content.
func input(on On) Input {
	i := Input{On: on, At: t0.Add(time.Second)}
	switch on {
	case CopiesLost:
		i.Lost = 3
	case NotHTTP:
		i.Ports = []event.Port{{Container: 8443, Handler: 3000, Protocol: "TCP"}}
	case WorkloadPrepared, TrafficDiverted, PodsChanged:
		i.Pods, i.Method = []string{"web-1"}, "surge"
	case HandlerCreated, HandlerStarted:
		i.Container = "intercept-web-8080"
	case HandlerReady:
		i.By = "listening"
	case HandlerExited:
		i.ExitCode = 7
	case EndAsked:
		i.Cause = "leave"
	case ManagerFailed, CommandFailed, HandlerFailed, SwitchFailed, VolumesLost:
		i.Error = fault.New(fault.Unavailable, "ctl doctor", "%s: broken", on)
	}
	return i
}

// replay feeds inputs and returns what was said and done, and the last state.
func replay(s State, ons ...On) (State, []event.Data, []Do) {
	var said []event.Data
	var did []Do
	for _, on := range ons {
		next, say, do, _ := s.Next(input(on))
		s = next
		if d := s.Fact(say); d != nil {
			said = append(said, d)
		}
		did = append(did, do...)
	}
	return s, said, did
}

func names(said []event.Data) string {
	var n []string
	for _, d := range said {
		_, _, f := d.Fact()
		n = append(n, f)
	}
	return strings.Join(n, " ")
}

func dos(did []Do) string {
	var n []string
	for _, d := range did {
		n = append(n, string(d))
	}
	return strings.Join(n, ", ")
}

const (
	upDo   = "vif: engage, manager: environment, runner: handler-create"
	undoDo = "vif: disengage, runner: handler-stop, lease: release"
)

func up(mode If) []On {
	if mode == Caller {
		return []On{WorkloadPrepared, HandlerReady, TrafficDiverted}
	}
	return []On{WorkloadPrepared, HandlerCreated, HandlerStarted, HandlerReady, TrafficDiverted}
}

func TestLives(t *testing.T) {
	for _, tc := range []struct {
		name  string
		mode  If
		on    []On
		said  string
		did   string
		cause string // of EngagementEnded; empty: failed
		exit  any
	}{
		{"handler exits", Attach, append(up(Attach), HandlerExited, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "handler exited", 7},
		{"left, the handler stops first", Attach, append(up(Attach), EndAsked, HandlerExited, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", 7},
		{"left, the workload is restored first", Detached, append(up(Detached), EndAsked, LeaseGone, HandlerExited, HandlerGone),
			"workload-prepared handler-ready active restoring ended", upDo + ", runner: handler-start, await: handler ready, lease: handler=run, " + undoDo, "leave", 7},
		{"without a container", Caller, append(up(Caller), EndAsked, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring ended", "vif: engage, await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"interrupted before the workload is prepared", Attach, []On{EndAsked, HandlerGone, LeaseGone},
			"restoring ended", undoDo, "leave", nil},
		{"interrupted before the handler is created", Attach, []On{WorkloadPrepared, EndAsked, HandlerGone, LeaseGone},
			"workload-prepared restoring ended", upDo + ", " + undoDo, "leave", nil},
		{"interrupted while the handler is being created", Attach, []On{WorkloadPrepared, EndAsked, HandlerCreated, HandlerGone, LeaseGone},
			"workload-prepared restoring ended", upDo + ", " + undoDo + ", runner: handler-stop", "leave", nil},
		{"the handler exits before traffic comes", Attach, []On{WorkloadPrepared, HandlerCreated, HandlerStarted, HandlerExited, TrafficDiverted, HandlerGone, LeaseGone},
			"workload-prepared restoring ended", upDo + ", await: handler ready, " + undoDo, "handler exited", 7},
		{"ready before its start is told", Attach, []On{WorkloadPrepared, HandlerCreated, HandlerReady, EndAsked, HandlerGone, LeaseGone},
			"workload-prepared restoring ended", upDo + ", " + undoDo, "leave", nil},
		{"it never gets ready", Attach, []On{WorkloadPrepared, HandlerCreated, HandlerStarted, CommandFailed, HandlerExited, HandlerGone, LeaseGone},
			"workload-prepared restoring failed", upDo + ", await: handler ready, " + undoDo, "", 7},
		{"started overtakes created", Attach, []On{WorkloadPrepared, HandlerStarted, HandlerCreated, HandlerReady, TrafficDiverted, EndAsked, HandlerGone, LeaseGone},
			"workload-prepared handler-ready active restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"copies are lost", Attach, append(up(Attach), CopiesLost, EndAsked, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active copies-lost restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"what comes is not HTTP", Attach, append(up(Attach), NotHTTP, EndAsked, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active not-http restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"volumes are lost", Attach, append(up(Attach), VolumesLost, HandlerExited, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring failed", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "", 7},
		{"the handler fails of lost volumes before anybody tells", Detached, append(up(Detached), HandlerExited, VolumesLost, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring failed", upDo + ", runner: handler-start, await: handler ready, lease: handler=run, " + undoDo, "", 7},
		{"volumes of a caller, whose they are", Caller, append(up(Caller), VolumesLost, EndAsked, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring ended", "vif: engage, await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"volumes are lost as the engagement is left", Attach, append(up(Attach), EndAsked, VolumesLost, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"pods move", Attach, append(up(Attach), PodsChanged, EndAsked, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active pods-changed restoring ended", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "leave", nil},
		{"a command fails", Attach, []On{WorkloadPrepared, CommandFailed, HandlerGone, LeaseGone},
			"workload-prepared restoring failed", upDo + ", " + undoDo, "", nil},
		{"the container cannot be created", Attach, []On{WorkloadPrepared, HandlerFailed, HandlerGone, LeaseGone},
			"workload-prepared restoring failed", upDo + ", " + undoDo, "", nil},
		{"the container cannot be started", Detached, []On{WorkloadPrepared, HandlerCreated, HandlerFailed, HandlerGone, LeaseGone},
			"workload-prepared restoring failed", upDo + ", runner: handler-start, " + undoDo, "", nil},
		{"the manager fails at once", Attach, []On{ManagerFailed, HandlerGone, LeaseGone},
			"restoring failed", "vif: disengage, runner: handler-stop, lease: delete", "", nil},
		{"the manager fails while restoring", Attach, append(up(Attach), EndAsked, ManagerFailed, HandlerGone, LeaseGone),
			"workload-prepared handler-ready active restoring failed", upDo + ", await: handler ready, lease: handler=run, " + undoDo + ", lease: delete", "", nil},
		{"the lease is taken away", Attach, append(up(Attach), LeaseGone, HandlerExited, HandlerGone),
			"workload-prepared handler-ready active restoring failed", upDo + ", await: handler ready, lease: handler=run, vif: disengage, runner: handler-stop", "", 7},
		{"the cluster does not answer at the end", Attach, append(up(Attach), EndAsked, HandlerExited, HandlerGone, TimeOver),
			"workload-prepared handler-ready active restoring failed", upDo + ", await: handler ready, lease: handler=run, " + undoDo, "", 7},
		{"a command that fails because of the end", Attach, []On{WorkloadPrepared, EndAsked, CommandFailed, HandlerGone, LeaseGone},
			"workload-prepared restoring ended", upDo + ", " + undoDo, "leave", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, said, did := replay(begin(tc.mode), tc.on...)
			if s.Stage != Over {
				t.Fatalf("stands at %s, want over", s.Stage)
			}
			if names(said) != tc.said {
				t.Errorf("said %q, want %q", names(said), tc.said)
			}
			if dos(did) != tc.did {
				t.Errorf("did\n%s, want\n%s", dos(did), tc.did)
			}
			var exit *int
			switch d := said[len(said)-1].(type) {
			case event.EngagementEnded:
				exit = d.ExitCode
				if d.Cause != tc.cause {
					t.Errorf("cause %q, want %q", d.Cause, tc.cause)
				}
			case event.EngagementFailed:
				exit = d.ExitCode
				if tc.cause != "" || d.Error.Message == "" {
					t.Errorf("failed with %+v, want ended by %q", d.Error, tc.cause)
				}
			}
			var got any
			if exit != nil {
				got = *exit
			}
			if got != tc.exit {
				t.Errorf("exit code %v, want %v", got, tc.exit)
			}

			// The same with everything told twice.
			var twice []On
			for _, on := range tc.on {
				twice = append(twice, on, on)
			}
			if _, again, _ := replay(begin(tc.mode), twice...); names(again) != tc.said && !slices.Contains(tc.on, PodsChanged) && !slices.Contains(tc.on, CopiesLost) && !slices.Contains(tc.on, NotHTTP) {
				t.Errorf("told twice, said %q, want %q", names(again), tc.said)
			}
			// And whatever comes late says nothing more.
			for _, on := range all {
				if _, more, _ := replay(s, on); len(more) > 0 {
					t.Errorf("after the end, %s said %q", on, names(more))
				}
			}
		})
	}
}

var all = []On{SwitchAsked, SwitchFailed, Resumed, WorkloadPrepared, TrafficDiverted, PodsChanged, CopiesLost, NotHTTP, ManagerFailed, LeaseGone, HandlerCreated, HandlerStarted, HandlerReady, HandlerFailed, HandlerExited, VolumesLost, EndAsked, CommandFailed, HandlerGone, TimeOver}

func TestTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	for i, r := range Table {
		if (r.Say == SayEnd) != (r.To == Over && !slices.Contains(r.From, Over)) {
			t.Errorf("row %d: the terminal fact and the stage over belong together: %+v", i, r)
		}
		for _, f := range r.From {
			if f == Over && r.To != Over {
				t.Errorf("row %d leads out of over", i)
			}
			if f.Ending() && !r.To.Ending() {
				t.Errorf("row %d leads back from %s to %s", i, f, r.To)
			}
			if (r.Say == SayRestoring) != (r.To.Ending() && !f.Ending()) {
				t.Errorf("row %d: restoring is stated when the undoing begins, and then only: %+v", i, r)
			}
			key := fmt.Sprint(f, r.On, r.If)
			if seen[key] {
				t.Errorf("row %d can never match: %s", i, key)
			}
			seen[key] = true
		}
		if !slices.Contains(all, r.On) {
			t.Errorf("row %d: the test does not know %q", i, r.On)
		}
	}
	// Every live stage can end by each cause; while handlers are switched, their
	// own end is none.
	for _, from := range live {
		for _, on := range []On{EndAsked, CommandFailed, ManagerFailed, HandlerFailed, HandlerExited, LeaseGone} {
			if !slices.Contains(alone, from) && (on == HandlerFailed || on == HandlerExited) {
				continue
			}
			s := begin(Attach)
			s.Stage = from
			if next, _, _, _ := s.Next(input(on)); !next.Stage.Ending() {
				t.Errorf("%s at %s leads to %s", on, from, next.Stage)
			}
		}
	}
}

// TestAnyOrder feeds whatever, in whatever order: never two terminal facts,
// never a fact after it, always an end once both halves are undone.
func TestAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		s := begin([]If{Attach, Detached, Caller}[r.IntN(3)])
		var ons []On
		for range r.IntN(12) {
			ons = append(ons, all[r.IntN(len(all))])
		}
		ons = append(ons, EndAsked, HandlerGone, LeaseGone, TimeOver)
		end, said, _ := replay(s, ons...)
		terminal := 0
		for _, d := range said {
			if event.Terminal(event.Envelope{Type: event.TypeOf(d)}) {
				terminal++
			}
		}
		if terminal != 1 || end.Stage != Over {
			t.Fatalf("%v: %d terminal facts, at %s: %s", ons, terminal, end.Stage, names(said))
		}
		if last := names(said[len(said)-1:]); last != "ended" && last != "failed" {
			t.Fatalf("%v: the last fact is %s", ons, last)
		}
	}
}

func TestRecord(t *testing.T) {
	s, _, _ := replay(begin(Attach), WorkloadPrepared, HandlerCreated, HandlerStarted)
	if r := s.Record(); r.Phase != "created" || r.Handler != "intercept-web-8080" || r.Name != "web" || len(r.Pods) != 1 {
		t.Errorf("%+v", r)
	}
	s, _, _ = replay(s, HandlerReady, TrafficDiverted)
	if r := s.Record(); r.Phase != "active" {
		t.Errorf("%+v", r)
	}
	s, _, _ = replay(s, EndAsked, HandlerGone)
	if r := s.Record(); r.Phase != "restoring" {
		t.Errorf("%+v", r)
	}
}

func TestInputOf(t *testing.T) {
	for _, tc := range []struct {
		d  event.Data
		on On
	}{
		{event.HandlerCreated{Container: "c"}, HandlerCreated},
		{event.HandlerStarted{Container: "c"}, HandlerStarted},
		{event.HandlerExited{Container: "c", ExitCode: 3}, HandlerExited},
		{event.HandlerFailed{Error: *fault.New(fault.NotFound, "", "no image")}, HandlerFailed},
		{event.VolumesLost{Engagement: "e1", Cause: "was killed"}, VolumesLost},
		{event.EngagementActive{}, ""},
		{event.Restoring{}, ""},
	} {
		_, env, err := event.New("e1", tc.d)
		if err != nil {
			t.Fatal(err)
		}
		in, ok := InputOf(env)
		if in.On != tc.on || ok != (tc.on != "") {
			t.Errorf("%T: %q %v, want %q", tc.d, in.On, ok, tc.on)
		}
	}
}
