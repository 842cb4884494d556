// Package engage decides what becomes of an engagement.
//
// It is pure: [State.Next] takes an engagement's state and what has just been
// learnt about it, and returns the new state, the fact to state and the
// commands to send. The whole decision is one table, [Table]; nothing outside
// of it decides. The state is the fold of what was learnt, and everything that
// the rest of the world sees of an engagement (its facts, its record) is
// derived from it.
//
// What it promises, and what its tests replay:
//
//   - Exactly one terminal fact: rows that lead to Over state it, no other row
//     does, and nothing leads out of Over.
//   - Whatever arrives twice or late changes nothing: an input without a row is
//     dropped.
//   - A handler that comes to be after its engagement began to end is stopped.
//   - The terminal fact comes when both the handler is gone and the Lease is
//     (which the manager deletes when it has restored the workload), or when
//     the time for that is over; then it says what is left to the lease.
//
// Who carries out the commands and feeds the inputs is package engagements.
package engage

import (
	"slices"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

// Stage is where an engagement stands.
type Stage string

// The stages. Started: the handler runs, and is waited for. Running: traffic may
// come to it, and does not yet.
// Restoring has two halves, which end in either order: the workload's (Restored:
// the Lease is gone) and the handler's (Stopped: the handler is).
const (
	Requested Stage = "requested"
	Prepared  Stage = "prepared"
	Created   Stage = "created"
	Started   Stage = "started"
	Running   Stage = "running"
	Active    Stage = "active"
	Switching Stage = "switching" // another handler takes the place of the one there was
	Vacant    Stage = "vacant"    // that one did not come about
	Restoring Stage = "restoring"
	Restored  Stage = "restored"
	Stopped   Stage = "stopped"
	Over      Stage = "over"
)

// Phase is the stage as records show it (command.Engagement.Phase).
func (s Stage) Phase() string {
	switch s {
	case Started, Running:
		return "created"
	case Switching, Vacant:
		return "active"
	case Restored, Stopped, Over:
		return "restoring"
	}
	return string(s)
}

// Ending reports whether the engagement is being undone, or is over.
func (s Stage) Ending() bool {
	return s == Restoring || s == Restored || s == Stopped || s == Over
}

// On is what can be learnt about an engagement.
type On string

// The inputs. In parentheses: who says so.
const (
	WorkloadPrepared On = "workload prepared" // the Lease's status (manager)
	TrafficDiverted  On = "traffic diverted"  // the Lease's status (manager)
	PodsChanged      On = "pods changed"      // the Lease's status (manager)
	CopiesLost       On = "copies lost"       // the Lease's status (manager)
	NotHTTP          On = "not HTTP"          // the Lease's status (manager)
	ManagerFailed    On = "manager failed"    // the Lease's status (manager)
	LeaseGone        On = "lease gone"        // the Lease is deleted
	HandlerCreated   On = "handler created"   // fact (runner)
	HandlerStarted   On = "handler started"   // fact (runner)
	HandlerReady     On = "handler ready"     // AwaitReady is done
	HandlerFailed    On = "handler failed"    // fact (runner)
	HandlerExited    On = "handler exited"    // fact (runner)
	VolumesLost      On = "volumes lost"      // fact (vif)
	SwitchAsked      On = "switch asked"      // another handler is to take its place (command)
	Resumed          On = "resumed"           // the new one has the traffic
	SwitchFailed     On = "switch failed"     // what leads to that could not be done
	EndAsked         On = "end asked"         // leave, quit, interrupted, client gone (command, presence)
	CommandFailed    On = "command failed"    // one of Do could not be done; the connection broke
	HandlerGone      On = "handler gone"      // the local half of the undoing is done
	TimeOver         On = "time over"         // the undoing took longer than it may
)

// Do is a command that a row asks for.
type Do string

// The commands. Those of a row that goes forward are sent one after another;
// those that undo all at once, and only after what goes forward has been given up.
const (
	Redirect      Do = "vif: engage"
	Environment   Do = "manager: environment"
	CreateHandler Do = "runner: handler-create"
	StartHandler  Do = "runner: handler-start"
	AwaitReady    Do = "await: handler ready"
	Pause         Do = "vif: engage-pause"
	StopOld       Do = "runner: handler-stop, await"
	Resume        Do = "vif: engage-resume"
	Divert        Do = "lease: handler=run"
	Disengage     Do = "vif: disengage"
	StopHandler   Do = "runner: handler-stop"
	Release       Do = "lease: release"
	Delete        Do = "lease: delete"
)

// Say is a fact that a row states. End is EngagementEnded, or EngagementFailed
// where the state holds an error.
type Say string

// The facts.
const (
	Nothing      Say = ""
	SayPrepared  Say = "workload-prepared"
	SayReady     Say = "handler-ready"
	SayActive    Say = "active"
	SayPods      Say = "pods-changed"
	SayLost      Say = "copies-lost"
	SayNotHTTP   Say = "not-http"
	SaySwitched  Say = "handler-switched"
	SayVacant    Say = "switch-failed"
	SayRestoring Say = "restoring"
	SayEnd       Say = "ended|failed"
)

// If narrows a row to engagements of one kind.
type If string

// The conditions.
const (
	Always   If = ""
	Attach   If = "client attaches" // the client starts the handler, once attached
	Detached If = "detached"        // connector starts it
	Caller   If = "caller's"        // no container: the caller is the handler
)

// Input is something learnt, with what is known of it.
type Input struct {
	On        On
	At        time.Time
	Pods      []string
	Lost      int64 // connections, of CopiesLost
	Ports     []event.Port
	Method    string
	Why       string // see event.WorkloadPrepared
	Container string
	ID        string // of the container
	Published []event.Published
	Image     string // of a SwitchAsked
	Mode      If     // of a SwitchAsked
	By        string // what HandlerReady was told by
	// Generation is whose HandlerReady, Resumed or SwitchFailed it is: see State.
	Generation int
	ExitCode   int
	Cause      string
	Error      *fault.Error
}

// State is the fold of an engagement's inputs. It is a value: Next returns a
// new one.
type State struct {
	Stage     Stage
	Requested event.EngagementRequested
	ID        string
	Since     time.Time
	Mode      If // Attach, Detached or Caller
	Ports     []event.Port
	Pods      []string
	Lost      int64        // connections of which a wiretap's copies were lost
	NotHTTP   []event.Port // see event.NotHTTP
	Method    string
	Why       string // see event.WorkloadPrepared
	Handler   string // container's name
	Started   bool   // the handler's process ran
	StartedAt time.Time
	By        string // what was waited for
	HandlerID string // of the handler's container; empty: none is there
	Published []event.Published
	Old       string // that whose place was taken last
	Image     string // after a switch
	Asked     time.Time
	// Generation counts switches, also those that failed: what belongs to
	// another one is not done any more.
	Generation int
	Vacancy    *fault.Error // why a switch failed
	VacantExit *int
	ExitCode   *int
	Cause      string
	Error      *fault.Error // makes the end a failure
	now        time.Time
}

// Begin is the state of an engagement that has just been accepted.
func Begin(id string, r event.EngagementRequested, mode If, ports []event.Port, at time.Time) State {
	return State{Stage: Requested, ID: id, Requested: r, Since: at, Mode: mode, Ports: ports, now: at}
}

const handlerExited = "handler exited" // by itself

// Next is the decision: the state after in, the fact to state (Nothing for
// none) and the commands. An input for which the table has no row returns s
// and known false; still, what it tells of the handler's end is kept.
func (s State) Next(in Input) (next State, say Say, do []Do, known bool) {
	if in.On == HandlerExited && in.ID != "" && in.ID == s.Old {
		return s, Nothing, nil, false // it had to, for another to take its place
	}
	if (in.On == HandlerReady || in.On == Resumed || in.On == SwitchFailed) && in.Generation != s.Generation {
		return s, Nothing, nil, false // of a handler that another has the place of since it was asked for
	}
	next = s.learn(in)
	for _, r := range Table {
		if r.matches(s, in.On) {
			next.Stage = r.To
			return next, r.Say, r.Do, true
		}
	}
	return next, Nothing, nil, false
}

// learn folds what in tells into s.
func (s State) learn(in Input) State {
	if s.Stage == Over {
		return s
	}
	s.now = in.At
	switch in.On {
	case WorkloadPrepared, TrafficDiverted, PodsChanged:
		s.Pods = in.Pods
		if len(in.Ports) > 0 {
			s.Ports = in.Ports
		}
		if in.Method != "" {
			s.Method, s.Why = in.Method, in.Why
		}
	case CopiesLost:
		s.Lost = in.Lost
	case NotHTTP:
		s.NotHTTP = in.Ports
	case HandlerCreated:
		s.Handler, s.HandlerID, s.Published = in.Container, in.ID, in.Published
	case SwitchAsked:
		if s.Stage != Active && s.Stage != Vacant {
			return s
		}
		s.Old, s.HandlerID, s.Handler, s.Started = s.HandlerID, "", "", false
		s.Image, s.Mode, s.Generation = in.Image, in.Mode, s.Generation+1
		if s.Stage == Active { // who tries again has had them wait since
			s.Asked = in.At
		}
	case HandlerStarted:
		s.Started, s.StartedAt = true, in.At
	case HandlerReady:
		s.By = in.By
	case HandlerExited, HandlerFailed, SwitchFailed:
		if s.Stage == Switching {
			return s.vacate(in)
		}
		if s.Stage == Vacant || in.On == SwitchFailed {
			return s // of a handler that has been given up
		}
		if in.On == HandlerFailed {
			break
		}
		if s.ExitCode == nil {
			code := in.ExitCode
			s.ExitCode = &code
		}
		if s.Cause == "" {
			s.Cause = handlerExited
		}
	case VolumesLost:
		// A handler that has failed by itself has done so of this, most likely.
		failed := s.Stage.Ending() && s.Cause == handlerExited && s.ExitCode != nil && *s.ExitCode != 0
		if s.Mode == Caller || !failed && !slices.Contains(using, s.Stage) {
			return s
		}
	case LeaseGone:
		// While it lives, the Lease is taken away by nobody but by hand or by
		// the manager, for want of a renewal.
		if !s.Stage.Ending() {
			in.Error = fault.New(fault.FailedPrecondition, "kubectl get leases -n "+s.Requested.Namespace,
				"the lease %s in namespace %s is gone: the manager did not see it renewed for %v, or someone deleted it; the workload is restored",
				s.leaseName(), s.Requested.Namespace, lease.Duration)
		}
	case TimeOver:
		in.Error = s.left()
	}
	if s.Cause == "" {
		s.Cause = in.Cause
	}
	if s.Error == nil && in.Error != nil && !in.onlyEcho(s) {
		s.Error = in.Error
		if s.Cause == "" {
			s.Cause = in.Error.Message
		}
	}
	return s
}

// vacate folds in what makes a switch fail: it is not the engagement's end.
func (s State) vacate(in Input) State {
	s.Generation++
	s.Vacancy, s.VacantExit = in.Error, nil
	if in.On == HandlerExited {
		code := in.ExitCode
		s.VacantExit = &code
		s.Vacancy = fault.New(fault.FailedPrecondition, "", "the handler exited with %d before it was ready", code)
	}
	if in.On != SwitchFailed {
		s.Handler, s.HandlerID = "", ""
	}
	return s
}

func (s State) leaseName() string {
	r := s.Requested
	return lease.EngagementSpec{ID: s.ID, Kind: lease.Kind(r.Kind), WorkloadKind: r.WorkloadKind, Workload: r.Workload, Container: r.Container}.LeaseName()
}

// onlyEcho: while it is being undone, a failure of what went forward is a
// consequence of the undoing, not a cause of the end.
func (in Input) onlyEcho(s State) bool {
	return s.Stage.Ending() && in.On != ManagerFailed && in.On != TimeOver && in.On != VolumesLost
}

// left says what is not undone when the time is over.
func (s State) left() *fault.Error {
	switch s.Stage {
	case Restoring:
		return fault.New(fault.Unavailable, "ctl gc", "neither the handler nor the workload %s is confirmed to be undone; the manager restores the workload when its lease ends, %v after the last renewal", s.Requested.Workload, lease.Duration)
	case Restored:
		return fault.New(fault.Unavailable, "ctl gc", "the workload %s is restored, but the handler is not confirmed to be gone", s.Requested.Workload)
	default:
		return fault.New(fault.Unavailable, "ctl list", "the handler is gone, but the workload %s is not confirmed to be restored; the manager restores it when its lease ends, %v after the last renewal", s.Requested.Workload, lease.Duration)
	}
}
