// Package connection decides what becomes of a connection.
//
// Like package engage it is pure and one table: [State.Next] takes what has just
// been learnt and returns the new state, the fact to state and the commands to
// send; [Table] holds every decision.
//
// A connection comes up on two tracks at once. One is the daemon's: its
// container starts, vif in it makes a key and says so (VIFUp), while the container
// joins the networks that the API server is reached by (DaemonStarted). The other
// is the cluster's: the API server answers, the manager is there, the user has the
// rights (Checked). When vif and the cluster are there the connection's Lease can be
// created, which names the keys; once the networks are joined too, vif is told to
// open the tunnel, for whose Lease the manager waits. Its three parts then stand in
// any order.
//
// What it promises: exactly one terminal fact; whatever breaks before Connected
// fails the connection with the stage that it broke at; whatever ends it, all is
// undone before the terminal fact; health alone never ends it.
//
// Who carries out the commands and feeds the inputs is package connections.
package connection

import (
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// Stage is where a connection stands.
type Stage string

// The stages.
const (
	Starting  Stage = "starting"  // neither track is through
	VIFUp     Stage = "vif up"    // vif waits for the cluster
	Checked   Stage = "checked"   // the cluster waits for vif
	Joining   Stage = "joining"   // both wait for the daemon container's networks
	Opening   Stage = "opening"   // vif was told to open the tunnel
	Connected Stage = "connected" //
	Closing   Stage = "closing"   // being undone
	Over      Stage = "over"
)

// Phase is the stage as records show it (command.Connection.Phase).
func (s Stage) Phase() string {
	switch s {
	case Connected:
		return "connected"
	case Closing, Over:
		return "disconnecting"
	}
	return "connecting"
}

// Ending reports whether the connection is being undone, or is over.
func (s Stage) Ending() bool { return s == Closing || s == Over }

// On is what can be learnt about a connection.
type On string

// The inputs. In parentheses: who says so.
const (
	DaemonStarted  On = "daemon started"  // fact (runner): it runs, on all its networks
	VIFStarted     On = "vif started"     // fact (vif)
	ClusterChecked On = "cluster checked" // API server, manager and rights are there
	TunnelOpened   On = "tunnel opened"   // fact (vif)
	InterfaceReady On = "interface ready" // fact (vif)
	DNSReady       On = "dns ready"       // fact (vif)
	VIFFailed      On = "vif failed"      // fact (vif)
	HealthChanged  On = "health changed"  // the probe
	CommandFailed  On = "command failed"  // one of Do, or a check, could not be done
	TimeOver       On = "time over"       // the whole of connecting took too long
	Broken         On = "broken"          // the daemon exited, the runner is gone
	CloseAsked     On = "close asked"     // quit
	Undone         On = "undone"          // all that Undo asked for is done
)

// Do is a command that a row asks for.
type Do string

// The commands.
const (
	CreateLease Do = "lease: create"
	OpenTunnel  Do = "vif: tunnel-open"
	Watch       Do = "probe health"
	Undo        Do = "end engagements; runner: daemon-stop, lease: delete, identity: remove"
)

// Say is a fact that a row states. End is Disconnected, or ConnectionFailed
// where the state holds an error.
type Say string

// The facts.
const (
	Nothing      Say = ""
	SayConnected Say = "connected"
	SayHealth    Say = "health-changed"
	SayEnd       Say = "disconnected|failed"
)

// If narrows a row.
type If string

// The conditions.
const (
	Always If = ""
	Joined If = "the daemon container is on its networks"
	Last   If = "all three parts stand"
)

// Input is something learnt, with what is known of it.
type Input struct {
	On        On
	At        time.Time
	Container string                // DaemonStarted
	Pin       string                // VIFStarted
	Server    string                // ClusterChecked: the API server's version
	Manager   string                // ClusterChecked: the manager's version
	Transport string                // TunnelOpened
	Subnets   []string              // InterfaceReady
	Virtual   []event.VirtualSubnet // InterfaceReady
	Resolver  string                // DNSReady: the server's address
	Healthy   bool                  // HealthChanged
	Cause     string                // CloseAsked
	Error     *fault.Error
}

// State is the fold of a connection's inputs. It is a value.
type State struct {
	Stage     Stage
	ID        string
	Requested event.ConnectionRequested
	Options   string // digest of the request
	Since     time.Time

	Daemon    string
	Pin       string // vif's
	Server    string
	Manager   string
	Transport string
	Subnets   []string
	Virtual   []event.VirtualSubnet
	Resolver  string
	tunnel    bool
	iface     bool
	dns       bool

	Healthy bool
	Ill     *fault.Error // why not healthy
	Cause   string       // of the end
	Error   *fault.Error // makes the end a failure
	now     time.Time
}

// Begin is the state of a connection that has just been accepted.
func Begin(id string, r event.ConnectionRequested, options string, at time.Time) State {
	return State{Stage: Starting, ID: id, Requested: r, Options: options, Since: at, now: at}
}

// Next is the decision: the state after in, the fact to state (Nothing for
// none) and the commands. An input without a row is dropped, but for what it
// tells.
func (s State) Next(in Input) (next State, say Say, do []Do, known bool) {
	next = s.learn(in)
	for _, r := range Table {
		if r.matches(s.Stage, next, in.On) {
			next.Stage = r.To
			if r.To == Connected && s.Stage == Opening {
				next.Healthy = true
			}
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
	case DaemonStarted:
		s.Daemon = in.Container
	case VIFStarted:
		s.Pin = in.Pin
	case ClusterChecked:
		s.Server, s.Manager = in.Server, in.Manager
	case TunnelOpened:
		s.tunnel, s.Transport = true, in.Transport
	case InterfaceReady:
		s.iface, s.Subnets, s.Virtual = true, in.Subnets, in.Virtual
	case DNSReady:
		s.dns, s.Resolver = true, in.Resolver
	case HealthChanged:
		s.Healthy, s.Ill = in.Healthy, in.Error
		return s
	case VIFFailed:
		if s.Stage == Connected { // the probe tells what it does to the connection
			return s
		}
	case TimeOver:
		if s.Stage == Connected { // it was in time
			return s
		}
		in.Error = s.waitsFor()
	}
	// What fails once the undoing has begun is a consequence of it.
	if !s.Stage.Ending() {
		if s.Error == nil && in.Error != nil {
			s.Error = in.Error
		}
		if s.Cause == "" {
			s.Cause = in.Cause
		}
	}
	return s
}

// waitsFor says what a connection that takes too long waits for.
func (s State) waitsFor() *fault.Error {
	stage, what := event.StageDNS, "the cluster's DNS did not answer through the tunnel"
	switch {
	case s.Stage == Starting && s.Daemon == "", s.Stage == Checked && s.Daemon == "":
		stage, what = event.StageDaemon, "runner did not start the daemon container"
	case s.Stage == Starting, s.Stage == Checked:
		stage, what = event.StageDaemon, "vif in the container "+s.Daemon+" did not report: see docker logs "+s.Daemon
	case s.Stage == VIFUp && s.Server == "":
		stage, what = event.StageAPIServer, "the API server "+s.Requested.Server+" did not answer"
	case s.Stage == VIFUp:
		stage, what = event.StageManager, "the manager could not be checked"
	case s.Stage == Joining:
		stage, what = event.StageDaemon, "the daemon container did not join its networks"
	case !s.tunnel:
		stage, what = event.StageTunnel, "the manager did not answer through the API server"
	case !s.iface:
		stage, what = event.StageVIF, "the VIF and its routes did not come up"
	}
	f := fault.New(fault.Unavailable, "ctl doctor", "%s in time", what)
	f.Stage = string(stage)
	return f
}
