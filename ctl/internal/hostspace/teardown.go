package hostspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
)

// Interface is the VIF's name.
const Interface = "berth0"

// How long processes get to end by themselves. Runner has vif undo the network
// meanwhile; without a bus they have nobody to tell anything, and vif undoes it when
// runner is gone as well.
const (
	graceOf     = 8 * time.Second
	orphanGrace = time.Second
)

// vifEndsWithin is how long a vif whose runner has ended may take to undo its own.
const vifEndsWithin = 10 * time.Second

// order is that in which they end: last what tells the others what to do.
var order = []subject.Service{subject.Builder, subject.Runner, subject.Connector}

// Names are the processes that live, and the directory if nobody does.
func (s *Space) Names(ctx context.Context) ([]string, error) {
	var names []string
	for _, c := range order {
		p, lives, err := proclock.Holder(s.lockOf(c))
		if err != nil {
			return nil, err
		}
		if lives {
			names = append(names, fmt.Sprintf("process/%s (%d)", c, p.PID))
		}
	}
	if ws, err := s.containers(ctx); err != nil {
		return nil, err
	} else if ws != nil {
		more, err := ws.Names(ctx)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	if s.Exists() {
		names = append(names, "directory"+s.dir)
	}
	return names, nil
}

// Teardown ends everything of the workspace, whatever of it is still alive, and
// returns when nothing is left: no process, no VIF, no file, and the resolver's
// configuration as it was. It is idempotent.
func (s *Space) Teardown(ctx context.Context) error {
	if !s.Exists() {
		return s.restore(ctx) // a machine that lost its power keeps that alone
	}
	mine, err := s.exclusive(ctx)
	if err != nil {
		return err
	}
	defer mine.Release()
	if err := s.clear(ctx); err != nil {
		return fault.New(fault.Unavailable, "ctl quit --all", "%v", err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fault.New(fault.Unavailable, "rm -r "+s.dir, "%v", err)
	}
	_ = os.Remove(base()) // not if it holds another workspace
	return nil
}

// TeardownConnection removes what belongs to one connection: a machine has one.
func (s *Space) TeardownConnection(ctx context.Context, _ string) error { return s.Teardown(ctx) }

// Orphans are none: a process whose connection is over has ended, since the stream
// that holds it is gone.
func (s *Space) Orphans(ctx context.Context, _ map[string]bool) ([]string, error) {
	return nil, nil
}

// clear ends the processes, waits for vif to have undone its own, and does that in
// its place if it was killed. The directory stays, with its locks.
func (s *Space) clear(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // half of it is worse than either
	grace := graceOf
	if _, lives, _ := proclock.Holder(s.lockOf(subject.Connector)); !lives {
		grace = orphanGrace
	}
	for _, c := range order {
		if err := s.end(ctx, c, grace); err != nil {
			return err
		}
	}
	// The machine's network first: an engine that is away is no reason to leave that.
	return errors.Join(s.clearVIF(ctx), s.clearEngine(ctx))
}

func (s *Space) clearVIF(ctx context.Context) error {
	if !s.hasVIF() {
		return nil
	}
	if err := awaitNoVIF(ctx); err != nil {
		return err
	}
	if err := s.restore(ctx); err != nil {
		return err
	}
	return s.forget(vifFile)
}

func (s *Space) clearEngine(ctx context.Context) error {
	ws, err := s.containers(ctx)
	if err != nil || ws == nil {
		return err
	}
	if err := ws.Teardown(ctx); err != nil {
		return err
	}
	return s.forget(engineFile)
}

// awaitNoVIF waits until the interface is gone, which is the last that vif undoes.
func awaitNoVIF(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, vifEndsWithin)
	defer cancel()
	for {
		if _, err := net.InterfaceByName(Interface); err != nil {
			return nil
		}
		if pause(ctx) != nil {
			return fault.New(fault.Unavailable, "sudo ip link delete "+Interface, "the interface %s is still there %v after its connection's end: its vif hangs, or another user's connection has it", Interface, vifEndsWithin)
		}
	}
}

// vifFile says that this workspace has started a vif.
const vifFile = "vif"

func (s *Space) hasVIF() bool {
	_, err := os.Stat(s.path(vifFile))
	return err == nil
}

// forget removes what says that there is something to undo.
func (s *Space) forget(file string) error {
	if err := os.Remove(s.path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
