package connection

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

func begin() State {
	return Begin("c1", event.ConnectionRequested{Name: "dev-shop", Context: "dev", Namespace: "shop", Server: "https://dev"}, "digest", t0)
}

func input(on On) Input {
	i := Input{On: on, At: t0.Add(time.Second)}
	switch on {
	case DaemonStarted:
		i.Container = "berth-dev-shop"
	case VIFStarted:
		i.Pin = "pin"
	case ClusterChecked:
		i.Server, i.Manager = "v1.34", "0.1.0"
	case TunnelOpened:
		i.Transport = "pods-proxy"
	case InterfaceReady:
		i.Subnets = []string{"10.0.0.0/8"}
	case VIFFailed, CommandFailed, Broken:
		i.Error = fault.New(fault.Unavailable, "ctl doctor", "%s: broken", on)
	case CloseAsked:
		i.Cause = "quit"
	}
	return i
}

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

func TestLives(t *testing.T) {
	up := []On{DaemonStarted, VIFStarted, ClusterChecked, TunnelOpened, InterfaceReady, DNSReady}
	upDo := []Do{CreateLease, OpenTunnel, Watch}
	for _, tc := range []struct {
		name  string
		on    []On
		said  string
		did   []Do
		stage event.Stage // of the failure; empty: quit
	}{
		{"up and quit", append(slices.Clone(up), CloseAsked, Undone), "connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"the cluster first, parts in another order", []On{ClusterChecked, DaemonStarted, VIFStarted, DNSReady, InterfaceReady, TunnelOpened, CloseAsked, Undone},
			"connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"the daemon's networks last", []On{VIFStarted, ClusterChecked, DaemonStarted, TunnelOpened, InterfaceReady, DNSReady, CloseAsked, Undone},
			"connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"the daemon's networks last, and vif before them", []On{ClusterChecked, VIFStarted, DaemonStarted, TunnelOpened, InterfaceReady, DNSReady, CloseAsked, Undone},
			"connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"parts before they were asked for", []On{TunnelOpened, InterfaceReady, DaemonStarted, VIFStarted, ClusterChecked, DNSReady, CloseAsked, Undone},
			"connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"ill and well", append(slices.Clone(up), HealthChanged, HealthChanged, CloseAsked, Undone),
			"connected health-changed health-changed disconnected", append(slices.Clone(upDo), Undo), ""},
		{"vif complains once connected", append(slices.Clone(up), VIFFailed, CloseAsked, Undone), "connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"quit while connecting", []On{DaemonStarted, CloseAsked, VIFStarted, ClusterChecked, Undone}, "disconnected", []Do{Undo}, ""},
		{"what fails after quit was asked for", append(slices.Clone(up), CloseAsked, Broken, VIFFailed, CommandFailed, Undone), "connected disconnected", append(slices.Clone(upDo), Undo), ""},
		{"no daemon in time", []On{ClusterChecked, TimeOver, Undone}, "failed", []Do{Undo}, event.StageDaemon},
		{"no vif in time", []On{DaemonStarted, TimeOver, Undone}, "failed", []Do{Undo}, event.StageDaemon},
		{"no API server in time", []On{DaemonStarted, VIFStarted, TimeOver, Undone}, "failed", []Do{Undo}, event.StageAPIServer},
		{"no networks in time", []On{VIFStarted, ClusterChecked, TimeOver, Undone}, "failed", []Do{CreateLease, Undo}, event.StageDaemon},
		{"no tunnel in time", append(slices.Clone(up[:3]), TimeOver, Undone), "failed", []Do{CreateLease, OpenTunnel, Undo}, event.StageTunnel},
		{"no VIF in time", append(slices.Clone(up[:4]), TimeOver, Undone), "failed", []Do{CreateLease, OpenTunnel, Undo}, event.StageVIF},
		{"no DNS in time", append(slices.Clone(up[:5]), TimeOver, Undone), "failed", []Do{CreateLease, OpenTunnel, Undo}, event.StageDNS},
		{"time over once connected", append(slices.Clone(up), TimeOver, CloseAsked, Undone), "connected disconnected", append(slices.Clone(upDo), Undo), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, said, did := replay(begin(), tc.on...)
			if s.Stage != Over {
				t.Fatalf("stands at %s, want over", s.Stage)
			}
			if names(said) != tc.said {
				t.Errorf("said %q, want %q", names(said), tc.said)
			}
			if !slices.Equal(did, tc.did) {
				t.Errorf("did %v, want %v", did, tc.did)
			}
			switch d := said[len(said)-1].(type) {
			case event.ConnectionFailed:
				if d.Error.Stage != string(tc.stage) || d.Error.Hint == "" {
					t.Errorf("failed with %+v, want stage %q", d.Error, tc.stage)
				}
			case event.Disconnected:
				if tc.stage != "" || d.Cause != "quit" {
					t.Errorf("%+v, want a failure at %q", d, tc.stage)
				}
			}
			for _, on := range all {
				if _, more, do := replay(s, on); len(more)+len(do) > 0 {
					t.Errorf("after the end, %s said %q and did %v", on, names(more), do)
				}
			}
		})
	}
}

// TestEachFailureAtEachStage: whatever breaks before Connected fails the
// connection with that cause, and everything is undone once.
func TestEachFailureAtEachStage(t *testing.T) {
	up := []On{DaemonStarted, VIFStarted, ClusterChecked, TunnelOpened, InterfaceReady, DNSReady}
	for n := range len(up) + 1 {
		for _, on := range []On{CommandFailed, VIFFailed, Broken} {
			if n == len(up) && on == VIFFailed {
				continue // see "vif complains once connected"
			}
			_, said, did := replay(begin(), append(slices.Clone(up[:n]), on, on, CloseAsked, Undone, Undone)...)
			d, ok := said[len(said)-1].(event.ConnectionFailed)
			if !ok || !strings.HasPrefix(d.Error.Message, string(on)) {
				t.Errorf("%s after %d steps: %#v", on, n, said)
			}
			if i := slices.Index(did, Undo); i != len(did)-1 {
				t.Errorf("%s after %d steps did %v", on, n, did)
			}
		}
	}
}

var all = []On{DaemonStarted, VIFStarted, ClusterChecked, TunnelOpened, InterfaceReady, DNSReady, VIFFailed, HealthChanged, CommandFailed, TimeOver, Broken, CloseAsked, Undone}

func TestTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	for i, r := range Table {
		if (r.Say == SayEnd) != (r.To == Over) || slices.Contains(r.From, Over) {
			t.Errorf("row %d: the terminal fact and the stage over belong together: %+v", i, r)
		}
		if (r.To == Closing) != slices.Contains(r.Do, Undo) {
			t.Errorf("row %d: closing and undoing belong together: %+v", i, r)
		}
		for _, f := range r.From {
			key := fmt.Sprint(f, r.On)
			if seen[key] {
				t.Errorf("row %d can never match: %s", i, key)
			}
			seen[key] = r.If == Always
		}
	}
}

func TestAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var ons []On
		for range r.IntN(14) {
			ons = append(ons, all[r.IntN(len(all))])
		}
		ons = append(ons, CloseAsked, Undone)
		s, said, _ := replay(begin(), ons...)
		last := names(said[len(said)-1:])
		if s.Stage != Over || last != "disconnected" && last != "failed" {
			t.Fatalf("%v: at %s, said %s", ons, s.Stage, names(said))
		}
		if n := strings.Count(names(said), "disconnected") + strings.Count(names(said), "failed"); n != 1 {
			t.Fatalf("%v: %d terminal facts", ons, n)
		}
	}
}

func TestRecord(t *testing.T) {
	s, _, _ := replay(begin(), DaemonStarted)
	if r := s.Record(); r.Phase != "connecting" || r.Healthy {
		t.Errorf("%+v", r)
	}
	s, _, _ = replay(s, VIFStarted, ClusterChecked, TunnelOpened, InterfaceReady, DNSReady)
	r := s.Record()
	if r.Phase != "connected" || !r.Healthy || r.Daemon != "berth-dev-shop" || r.ServerInfo != "v1.34" || r.Transport != "pods-proxy" || len(r.Subnets) != 1 {
		t.Errorf("%+v", r)
	}
	s, _, _ = replay(s, Broken)
	if r := s.Record(); r.Phase != "disconnecting" || r.Healthy || r.Cause == nil {
		t.Errorf("%+v", r)
	}
}

func TestInputOf(t *testing.T) {
	for _, tc := range []struct {
		d  event.Data
		on On
	}{
		{event.DaemonStarted{Container: "c"}, DaemonStarted},
		{event.DaemonExited{Container: "c", ExitCode: 1}, Broken},
		{event.DaemonExited{Container: "c", Error: fault.New(fault.NotFound, "", "no image")}, Broken},
		{event.VIFStarted{Pin: "p"}, VIFStarted},
		{event.TunnelOpened{}, TunnelOpened},
		{event.InterfaceReady{}, InterfaceReady},
		{event.DNSReady{}, DNSReady},
		{event.VIFFailed{}, VIFFailed},
		{event.TunnelLost{}, ""},
		{event.Connected{}, ""},
	} {
		_, env, err := event.New("c1", tc.d)
		if err != nil {
			t.Fatal(err)
		}
		in, ok := InputOf(env)
		if in.On != tc.on || ok != (tc.on != "") || in.On == Broken && (in.Error == nil || in.Error.Stage == "") {
			t.Errorf("%T: %+v %v, want %q", tc.d, in, ok, tc.on)
		}
	}
}
