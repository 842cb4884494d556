package hub

import (
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
)

// pair is a session and its far end.
func pair(t *testing.T) (near, far *tunnel.Session) {
	t.Helper()
	// A real connection: a pipe's end fails in writing before it has read why.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, far = tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestNewestVIFWins(t *testing.T) {
	var changes []string
	h := New(func(c Change) { changes = append(changes, c.Connection+c.Engagement) })
	if _, ok := h.VIFAway("c"); ok || h.VIF("c") != nil {
		t.Error("a session before any came")
	}
	one, _ := pair(t)
	two, _ := pair(t)
	control, _ := pair(t)
	removeOne := h.AddClient("c", RoleVIF, one)
	removeTwo := h.AddClient("c", RoleVIF, two)
	defer h.AddClient("c", RoleConnector, control)()
	if h.VIF("c") != two {
		t.Error("not the newest")
	}
	removeTwo()
	if h.VIF("c") != one {
		t.Error("the older one does not take over")
	}
	removeOne()
	if away, ok := h.VIFAway("c"); h.VIF("c") != nil || !ok || away > time.Minute {
		t.Errorf("a connector's session is taken for a vif's; away %v, %v", away, ok)
	}
	if len(changes) != 5 {
		t.Errorf("told of %d changes: %v", len(changes), changes)
	}
}

func TestCutSaysWhy(t *testing.T) {
	h := New(func(Change) {})
	s, far := pair(t)
	defer h.AddClient("c", RoleVIF, s)()
	other, _ := pair(t)
	defer h.AddClient("d", RoleVIF, other)()
	h.Cut("c")
	<-far.Done()
	if err := far.Err(); !errors.Is(err, tunnel.ErrClosedByPeer) {
		t.Errorf("%v", err)
	}
	if other.Err() != nil {
		t.Error("another connection was cut as well")
	}
}

func TestAgentOfOnePodReplacesItself(t *testing.T) {
	h := New(func(Change) {})
	old, _ := pair(t)
	fresh, _ := pair(t)
	removeOld := h.AddAgent("e", &Agent{Session: old, Pod: "p", UID: "u"})
	a := &Agent{Session: fresh, Pod: "p", UID: "u"}
	removeFresh := h.AddAgent("e", a)
	<-old.Done()
	removeOld() // late: must not take the new one with it
	if got := h.Agents("e"); len(got) != 1 || got["u"] != a {
		t.Fatalf("%v", got)
	}
	if _, ok := a.Told(); ok {
		t.Error("told before it was")
	}
	a.SetTold(lease.AgentRun{Run: true})
	if q, ok := a.Told(); !q.Run || !ok {
		t.Error("forgotten")
	}
	removeFresh()
	if len(h.Agents("e")) != 0 || slices.Contains(h.Connections(), "e") {
		t.Error("something is left")
	}
}

// An agent beside a container is found under what it serves, and is idle without.
func TestBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(func(Change) {})
		a := &Agent{UID: "u", Pod: "p", Name: "berth-agent-app-1"}
		remove := h.AddBeside(a)
		if len(h.Agents("e")) != 0 || len(h.Beside()["u"]) != 1 {
			t.Error("serves before it was told")
		}
		time.Sleep(time.Minute)
		if a.Idle() != time.Minute {
			t.Errorf("idle for %v", a.Idle())
		}
		a.Assign(map[string]string{"e": "c"})
		a.AlsoAssign(map[string]string{"f": "d"})
		if c, ok := a.Connection("e"); !ok || c != "c" || h.Agents("f")["u"] != a || h.FilesAgent("e") != a || a.Idle() != 0 {
			t.Error("not found under what it serves")
		}
		a.Assign(map[string]string{"f": "d"})
		if _, ok := a.Connection("e"); ok || h.FilesAgent("e") != nil {
			t.Error("found under what it no longer serves")
		}
		remove()
		if len(h.Beside()) != 0 || len(h.Agents("f")) != 0 {
			t.Error("found after it has gone")
		}
	})
}
