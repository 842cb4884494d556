package engage

import "slices"

// Row: in one of the stages From, on input On, if If holds, Say is stated, Do
// is done, and the engagement stands at To.
type Row struct {
	From []Stage
	On   On
	If   If
	Say  Say
	Do   []Do
	To   Stage
}

var (
	alone = []Stage{Requested, Prepared, Created, Started, Running, Active} // no switch is under way
	live  = append(in(Switching, Vacant), alone...)
	using = []Stage{Prepared, Created, Started, Running, Active, Switching} // there is a handler, or is to be one, with volumes
	undo  = []Do{Disengage, StopHandler, Release}
	purge = []Do{Disengage, StopHandler, Delete} // what the manager gave up, connector deletes
)

// Table is the life of every engagement. The first row that matches counts; what
// matches none is a repeat or comes too late, and is dropped.
var Table = []Row{
	// From            On                If        Say           Do                                             To
	{in(Requested), WorkloadPrepared, Attach, SayPrepared, does(Redirect, Environment, CreateHandler), Prepared},
	{in(Requested), WorkloadPrepared, Detached, SayPrepared, does(Redirect, Environment, CreateHandler), Prepared},
	{in(Requested), WorkloadPrepared, Caller, SayPrepared, does(Redirect, AwaitReady), Started},
	{in(Prepared), HandlerCreated, Attach, Nothing, nil, Created},
	{in(Prepared), HandlerCreated, Detached, Nothing, does(StartHandler), Created},
	{in(Prepared, Created), HandlerStarted, Always, Nothing, does(AwaitReady), Started},
	{in(Started), HandlerReady, Always, SayReady, does(Divert), Running},
	{in(Running), TrafficDiverted, Always, SayActive, nil, Active},
	{in(Active), PodsChanged, Always, SayPods, nil, Active},
	{in(Active), CopiesLost, Always, SayLost, nil, Active},
	{in(Active), NotHTTP, Always, SayNotHTTP, nil, Active},

	// Another handler takes the place of the one there is. New connections wait
	// meanwhile; where it fails, for somebody who asks again.
	{in(Active, Vacant), SwitchAsked, Always, Nothing, does(Pause, StopOld, Environment, CreateHandler), Switching},
	{in(Switching), HandlerCreated, Attach, Nothing, nil, Switching},
	{in(Switching), HandlerCreated, Detached, Nothing, does(StartHandler), Switching},
	{in(Switching), HandlerStarted, Always, Nothing, does(AwaitReady), Switching},
	{in(Switching), HandlerReady, Always, Nothing, does(Resume), Switching},
	{in(Switching), Resumed, Always, SaySwitched, nil, Active},
	{in(Switching), HandlerExited, Always, SayVacant, nil, Vacant},
	{in(Switching), HandlerFailed, Always, SayVacant, nil, Vacant},
	{in(Switching), SwitchFailed, Always, SayVacant, does(StopOld), Vacant},
	{in(Switching), PodsChanged, Always, SayPods, nil, Switching},
	{in(Vacant), PodsChanged, Always, SayPods, nil, Vacant},
	{in(Switching), NotHTTP, Always, SayNotHTTP, nil, Switching},
	{in(Vacant), NotHTTP, Always, SayNotHTTP, nil, Vacant},

	// The ways to end.
	{alone, HandlerExited, Always, SayRestoring, undo, Restoring},
	{live, EndAsked, Always, SayRestoring, undo, Restoring},
	{alone, HandlerFailed, Always, SayRestoring, undo, Restoring},
	{live, CommandFailed, Always, SayRestoring, undo, Restoring},
	{using, VolumesLost, Attach, SayRestoring, undo, Restoring},
	{using, VolumesLost, Detached, SayRestoring, undo, Restoring},
	{live, ManagerFailed, Always, SayRestoring, purge, Restoring},
	{live, LeaseGone, Always, SayRestoring, does(Disengage, StopHandler), Restored},

	// Undoing: two halves, in either order, or out of time.
	{in(Restoring), LeaseGone, Always, Nothing, nil, Restored},
	{in(Restoring), HandlerGone, Always, Nothing, nil, Stopped},
	{in(Restored), HandlerGone, Always, SayEnd, nil, Over},
	{in(Stopped), LeaseGone, Always, SayEnd, nil, Over},
	{in(Restoring, Restored, Stopped), TimeOver, Always, SayEnd, nil, Over},
	{in(Restoring), ManagerFailed, Always, Nothing, does(Delete), Restoring},
	{in(Stopped), ManagerFailed, Always, Nothing, does(Delete), Stopped},

	// A handler that was being made when the end came.
	{in(Restoring), HandlerCreated, Always, Nothing, does(StopHandler), Restoring},
	{in(Restored), HandlerCreated, Always, Nothing, does(StopHandler), Restored},
	{in(Stopped), HandlerCreated, Always, Nothing, does(StopHandler), Stopped},
	{in(Over), HandlerCreated, Always, Nothing, does(StopHandler), Over},
	{in(Restoring), HandlerStarted, Always, Nothing, does(StopHandler), Restoring},
	{in(Restored), HandlerStarted, Always, Nothing, does(StopHandler), Restored},
	{in(Stopped), HandlerStarted, Always, Nothing, does(StopHandler), Stopped},
	{in(Over), HandlerStarted, Always, Nothing, does(StopHandler), Over},
}

func in(s ...Stage) []Stage { return s }
func does(d ...Do) []Do     { return d }

func (r Row) matches(s State, on On) bool {
	return r.On == on && slices.Contains(r.From, s.Stage) && (r.If == Always || r.If == s.Mode)
}

// Undoes reports whether d belongs to the undoing.
func (d Do) Undoes() bool {
	return d == Disengage || d == StopHandler || d == Release || d == Delete
}
