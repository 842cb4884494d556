package engaged

import (
	"context"
	"net"
	"time"

	"berth.dev/tunnel"

	"golang.org/x/sys/unix"
)

// busyWithin: a connection on which something was sent or received that short a
// time ago is busy.
const busyWithin = 50 * time.Millisecond

// Pause makes new flows of an engagement wait until Resume, for limit at most,
// and counts those that are under way: open ones, and among them busy ones, on
// which the handler owes an answer or which have just been used. It may be
// repeated to watch them end. ok is false for no such engagement.
func (t *Table) Pause(id string, limit time.Duration) (open, busy int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.by[id]
	if e == nil {
		return 0, 0, false
	}
	if e.gate == nil {
		gate := make(chan struct{})
		e.gate = gate
		e.timer = time.AfterFunc(limit, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if e.gate == gate { // not another pause's
				e.open()
			}
		})
	}
	for c := range e.conns {
		if isBusy(c) {
			busy++
		}
	}
	return len(e.conns) + e.pending, busy + e.pending, true
}

// Resume ends a pause. It reports whether there was one.
func (t *Table) Resume(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.by[id]
	if e == nil || e.gate == nil {
		return false
	}
	e.open()
	return true
}

// open lets those that wait go on; Table.mu is held.
func (e *entry) open() {
	if e.gate != nil {
		e.timer.Stop()
		close(e.gate)
		e.gate = nil
	}
}

// pass lets a flow through the gate. One that has to wait is accepted first:
// whoever opened it has a limit of his own for the answer. stream is nil where
// it did not have to. Whoever passed must say so to connected.
func (t *Table) pass(ctx context.Context, e *entry, r *tunnel.Request) (stream *tunnel.Stream, ok bool) {
	for {
		t.mu.Lock()
		gate := e.gate
		if gate == nil {
			e.pending++
			t.mu.Unlock()
			return stream, true
		}
		t.mu.Unlock()
		if stream == nil {
			var err error
			if stream, err = r.Accept(); err != nil {
				return nil, false
			}
		}
		select {
		case <-gate:
		case <-ctx.Done():
			stream.Reset(tunnel.CodeReset)
			return nil, false
		}
	}
}

// connected notes what became of a flow that passed; forget is for its end.
func (t *Table) connected(e *entry, conn net.Conn) (forget func()) {
	tcp, is := conn.(*net.TCPConn)
	t.mu.Lock()
	defer t.mu.Unlock()
	e.pending--
	if !is {
		return func() {}
	}
	e.conns[tcp] = struct{}{}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(e.conns, tcp)
	}
}

// isBusy asks the kernel (TCP_INFO, tcp(7)): what was sent to the handler later
// than anything came from it is not answered yet.
func isBusy(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var info *unix.TCPInfo
	var ierr error
	if err := raw.Control(func(fd uintptr) {
		info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || ierr != nil {
		return false // closed meanwhile
	}
	sent := time.Duration(info.Last_data_sent) * time.Millisecond
	received := time.Duration(info.Last_data_recv) * time.Millisecond
	// The kernel's clock here ticks in 4 ms: a question right behind the handshake
	// is told by the bytes. The SYN counts as one.
	unanswered := sent < received || info.Bytes_received == 0 && info.Bytes_acked > 1
	return unanswered || min(sent, received) < busyWithin || info.Unacked > 0
}
