package connection

import "slices"

// Row: in one of the stages From, on input On, if If holds, Say is stated, Do
// is done, and the connection stands at To.
type Row struct {
	From []Stage
	On   On
	If   If
	Say  Say
	Do   []Do
	To   Stage
}

var (
	live   = []Stage{Starting, VIFUp, Checked, Joining, Opening, Connected}
	coming = []Stage{Starting, VIFUp, Checked, Joining, Opening}
)

// Table is the life of every connection. The first row that matches counts; what
// matches none is a repeat or comes too late, and is dropped.
var Table = []Row{
	// From        On              If      Say           Do                             To
	{in(Starting), VIFStarted, Always, Nothing, nil, VIFUp},
	{in(Starting), ClusterChecked, Always, Nothing, nil, Checked},
	{in(VIFUp), ClusterChecked, Joined, Nothing, does(CreateLease, OpenTunnel), Opening},
	{in(VIFUp), ClusterChecked, Always, Nothing, does(CreateLease), Joining},
	{in(Checked), VIFStarted, Joined, Nothing, does(CreateLease, OpenTunnel), Opening},
	{in(Checked), VIFStarted, Always, Nothing, does(CreateLease), Joining},
	{in(Joining), DaemonStarted, Always, Nothing, does(OpenTunnel), Opening},
	{in(Opening), TunnelOpened, Last, SayConnected, does(Watch), Connected},
	{in(Opening), InterfaceReady, Last, SayConnected, does(Watch), Connected},
	{in(Opening), DNSReady, Last, SayConnected, does(Watch), Connected},
	{in(Connected), HealthChanged, Always, SayHealth, nil, Connected},

	{coming, VIFFailed, Always, Nothing, does(Undo), Closing},
	{coming, TimeOver, Always, Nothing, does(Undo), Closing},
	{live, CommandFailed, Always, Nothing, does(Undo), Closing},
	{live, Broken, Always, Nothing, does(Undo), Closing},
	{live, CloseAsked, Always, Nothing, does(Undo), Closing},
	{in(Closing), Undone, Always, SayEnd, nil, Over},
}

func in(s ...Stage) []Stage { return s }
func does(d ...Do) []Do     { return d }

// matches looks at the stage before the input and at what is known after it.
func (r Row) matches(from Stage, next State, on On) bool {
	if r.On != on || !slices.Contains(r.From, from) {
		return false
	}
	switch r.If {
	case Joined:
		return next.Daemon != ""
	case Last:
		return next.tunnel && next.iface && next.dns
	}
	return true
}
