package service

import (
	"fmt"
	"strings"
	"testing"

	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
)

// Of many connections some come up at a time. The others wait, for which they are
// not failed, and can be given up while they do.
func TestTurns(t *testing.T) {
	r := newRig(t)
	r.run.noVIF = true // nobody's turn ends by itself
	started := func() int { return strings.Count(r.run.history(), "daemon-start") }
	for i := range 7 {
		req := r.openReq(fmt.Sprint("c", i))
		req.Name = fmt.Sprint("dev-", i)
		call(r, command.ConnectionOpen, req)
		if i == 3 {
			eventually(t, "four come up", func() bool { return started() == 4 })
		}
	}
	call(r, command.ConnectionClose, command.CloseConnection{ID: "c5"})
	if d := bustest.Wait[event.Disconnected](t, r.ctl, "c5"); d.Cause != "quit" {
		t.Errorf("given up while it waited: %+v", d)
	}
	if n := started(); n != 4 {
		t.Errorf("%d have their turn, want 4", n)
	}
	call(r, command.ConnectionClose, command.CloseConnection{ID: "c0"})
	call(r, command.ConnectionClose, command.CloseConnection{ID: "c1"})
	eventually(t, "two more come up", func() bool { return started() == 6 })
}
