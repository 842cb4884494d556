package connection

import (
	"fmt"
	"slices"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// Fact is the content of what a row says, from the state after it.
func (s State) Fact(say Say) event.Data {
	switch say {
	case SayConnected:
		return event.Connected{
			Name: s.Requested.Name, Namespace: s.Requested.Namespace, Daemon: s.Daemon, Server: s.Requested.Server,
			ServerVersion: s.Server, Manager: s.Manager, Transport: s.Transport, Subnets: s.Subnets,
			Millis: s.now.Sub(s.Since).Milliseconds(),
		}
	case SayHealth:
		return event.HealthChanged{Healthy: s.Healthy, Cause: s.Ill}
	case SayEnd:
		if s.Error != nil {
			return event.ConnectionFailed{Error: *s.Error}
		}
		return event.Disconnected{Cause: s.Cause}
	}
	return nil
}

// Record is what state-get shows of s.
func (s State) Record() command.Connection {
	r := command.Connection{
		ID: s.ID, Name: s.Requested.Name, Context: s.Requested.Context, Namespace: s.Requested.Namespace,
		Server: s.Requested.Server, Phase: s.Stage.Phase(), Healthy: s.Healthy, Cause: s.Ill, Since: s.Since,
		Daemon: s.Daemon, Options: s.Options, ServerInfo: s.Server, Manager: s.Manager,
		Transport: s.Transport, Subnets: slices.Clone(s.Subnets), Virtual: slices.Clone(s.Virtual), Resolver: s.Resolver,
	}
	if s.Error != nil {
		r.Healthy, r.Cause = false, s.Error
	}
	return r
}

// InputOf reads a fact that a service stated about a connection. ok is false
// for facts that decide nothing, connector's own among them.
func InputOf(e event.Envelope) (in Input, ok bool) {
	in.At = e.Time
	if d, is := event.Decode[event.DaemonStarted](e); is {
		in.On, in.Container = DaemonStarted, d.Container
	} else if d, is := event.Decode[event.DaemonExited](e); is {
		in.On, in.Error = Broken, exited(d)
	} else if d, is := event.Decode[event.VIFStarted](e); is {
		in.On, in.Pin = VIFStarted, d.Pin
	} else if d, is := event.Decode[event.TunnelOpened](e); is {
		in.On, in.Transport = TunnelOpened, d.Transport
	} else if d, is := event.Decode[event.InterfaceReady](e); is {
		in.On, in.Subnets, in.Virtual = InterfaceReady, d.Subnets, d.Virtual
	} else if d, is := event.Decode[event.DNSReady](e); is {
		in.On, in.Resolver = DNSReady, d.Server
	} else if d, is := event.Decode[event.VIFFailed](e); is {
		in.On, in.Error = VIFFailed, fault.At(string(event.StageVIF), &d.Error)
	}
	return in, in.On != ""
}

func exited(d event.DaemonExited) *fault.Error {
	if d.Error != nil {
		return fault.At(string(event.StageDaemon), d.Error)
	}
	f := fault.New(fault.Unavailable, "ctl connect --docker", "the daemon container %s exited with code %d", d.Container, d.ExitCode)
	f.Stage = string(event.StageDaemon)
	return f
}

// Broke is the input of a cause that ends a connection from outside.
func Broke(code fault.Code, hint, format string, args ...any) Input {
	f := fault.New(code, hint, "%s", fmt.Sprintf(format, args...))
	f.Stage = string(event.StageDaemon)
	return Input{On: Broken, Error: f}
}
