package engage

import (
	"slices"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// Fact is the content of what a row says, from the state after it.
func (s State) Fact(say Say) event.Data {
	switch say {
	case SayPrepared:
		return event.WorkloadPrepared{Pods: s.Pods, Ports: s.Ports, Method: s.Method, Why: s.Why, Millis: s.millis()}
	case SayReady:
		since := s.Since // of a handler that is the caller's
		if s.Started {
			since = s.StartedAt
		}
		return event.HandlerReady{By: s.By, Millis: s.now.Sub(since).Milliseconds()}
	case SayActive:
		return event.EngagementActive{Pods: s.Pods, Ports: s.Ports, Millis: s.millis()}
	case SaySwitched:
		return event.HandlerSwitched{Container: s.Handler, ContainerID: s.HandlerID, Image: s.Image, Millis: s.now.Sub(s.Asked).Milliseconds()}
	case SayVacant:
		return event.SwitchFailed{Error: *s.Vacancy, ExitCode: s.VacantExit}
	case SayPods:
		return event.PodsChanged{Pods: s.Pods}
	case SayLost:
		return event.CopiesLost{Connections: s.Lost}
	case SayNotHTTP:
		return event.NotHTTP{Ports: s.NotHTTP}
	case SayRestoring:
		return event.Restoring{Cause: s.Cause}
	case SayEnd:
		exit := s.ExitCode
		if !s.Started {
			exit = nil // a container that never ran has no exit code worth the name
		}
		if s.Error != nil {
			return event.EngagementFailed{Error: *s.Error, ExitCode: exit}
		}
		return event.EngagementEnded{Cause: s.Cause, ExitCode: exit}
	}
	return nil
}

func (s State) millis() int64 { return s.now.Sub(s.Since).Milliseconds() }

// Record is what state-get shows of s.
func (s State) Record() command.Engagement {
	return command.Engagement{
		ID: s.ID, Name: s.Requested.Name, Connection: s.Requested.Connection, Kind: s.Requested.Kind,
		Namespace: s.Requested.Namespace, WorkloadKind: s.Requested.WorkloadKind, Workload: s.Requested.Workload, Container: s.Requested.Container,
		Phase: s.Stage.Phase(), Filter: s.Requested.Filter, Handler: s.Handler, Published: s.Published,
		Ports: slices.Clone(s.Ports), Pods: slices.Clone(s.Pods), Method: s.Method, Why: s.Why, Lost: s.Lost, NotHTTP: slices.Clone(s.NotHTTP), Since: s.Since,
	}
}

// InputOf reads a fact that a service stated about an engagement. ok is false
// for facts that decide nothing, connector's own among them.
func InputOf(e event.Envelope) (in Input, ok bool) {
	in.At = e.Time
	if d, is := event.Decode[event.HandlerCreated](e); is {
		in.On, in.Container, in.ID, in.Published = HandlerCreated, d.Container, d.ContainerID, d.Published
	} else if d, is := event.Decode[event.HandlerStarted](e); is {
		in.On, in.Container, in.ID = HandlerStarted, d.Container, d.ContainerID
	} else if d, is := event.Decode[event.HandlerExited](e); is {
		in.On, in.Container, in.ID, in.ExitCode = HandlerExited, d.Container, d.ContainerID, d.ExitCode
		if d.OOMKilled {
			in.Cause = "handler exited: out of memory"
		}
	} else if d, is := event.Decode[event.HandlerFailed](e); is {
		in.On, in.Error = HandlerFailed, fault.At("handler", &d.Error)
	} else if d, is := event.Decode[event.VolumesLost](e); is {
		in.On, in.Error = VolumesLost, fault.New(fault.Unavailable, "ctl doctor",
			"the volume plugin %s while the handler used its volumes, which are lost for it: every call on them fails (ENOTCONN), so it is stopped and the workload restored; the same command again has them anew", d.Cause)
	}
	return in, in.On != ""
}
