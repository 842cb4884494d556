package tunnel

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is one flow of a session. It is a net.Conn: any number of goroutines
// may use it, Writes are atomic, deadlines interrupt a blocked call and may be
// set again.
//
// A stream is over when both directions are: each ends by FIN (CloseWrite,
// Close) or both at once by Reset. Data that arrived before a reset can still
// be read.
type Stream struct {
	sess    *Session
	id      uint32
	header  Header
	opener  bool
	early   int          // bytes that rode in OPEN
	dropped atomic.Int64 // datagrams
	opened  chan struct{}

	ends   atomic.Uint32 // sendEnded, recvEnded
	broken atomic.Bool   // reset by either end, or the session has ended
	growth atomic.Int64  // window beyond cfg.Window

	// The receiving half.
	mu         sync.Mutex
	readable   sync.Cond
	recv       chunkQueue
	direct     *direct // while writeTo waits
	window     int     // what the peer may have in flight at most
	allowed    int     // what it may still send
	consumed   int     // read since the last grant
	granted    time.Time
	answered   bool // opened is closed
	openErr    error
	eof        bool  // FIN came in
	readClosed error // what Read returns after CloseRead or Close
	readErr    error // reset or session end
	readLimit  deadline
	dead       bool
	endErr     error
	onEnd      map[*func(error)]struct{}

	// The sending half, guarded by writer.mu.
	sendCond   sync.Cond
	sendq      []*chunk
	queued     int // payload bytes in sendq
	credit     int
	grant      int // window credit to be sent
	deficit    int
	listed     bool
	next       *Stream
	writing    bool // a Write owns the right to queue
	finQueued  bool
	finSent    bool
	resetDue   bool // RESET with resetCode follows what is queued
	resetCode  Code
	sendErr    error // reset, STOP or session end
	sendClosed error // what Write returns after CloseWrite or Close
	writeLimit deadline
}

const (
	sendEnded = 1 << iota
	recvEnded
)

func newStream(s *Session, h Header, opener bool) *Stream {
	st := &Stream{sess: s, header: h, opener: opener, window: s.cfg.Window, granted: time.Now()}
	st.readable.L = &st.mu
	st.sendCond.L = &s.w.mu
	return st
}

// Header returns what the opener asked for.
func (s *Stream) Header() Header { return s.header }

// Session returns the session that carries the stream.
func (s *Stream) Session() *Session { return s.sess }

// Close ends both directions: what was written is still sent, then FIN; what
// arrives from now on is dropped, and the far side is told to stop sending
// (its Write then fails with ECONNRESET). It does not wait.
func (s *Stream) Close() error {
	s.closeWrite(net.ErrClosed)
	s.closeRead(net.ErrClosed)
	return nil
}

// Reset ends both directions at once and drops what is queued. The far side's
// Read and Write fail with a *ResetError.
func (s *Stream) Reset(code Code) {
	if s.end(net.ErrClosed, true, false) {
		s.sess.w.addControl(true, appendFrame(nil, frameReset, false, s.id, byte(code))...)
	}
}

// resetAfterQueued is Reset, but what Write has taken still leaves first, as what
// TCP has acknowledged before an RST does. It needs no credit for that, so nobody
// can hold it up.
func (s *Stream) resetAfterQueued(code Code) {
	if !s.end(net.ErrClosed, true, true) {
		return
	}
	w := s.sess.w
	w.mu.Lock()
	s.resetDue, s.resetCode = true, code
	w.enlist(s)
	w.kick(true)
}

// resetByPeer handles RESET.
func (s *Stream) resetByPeer(code Code) { s.end(&ResetError{Code: code}, false, false) }

// sessionEnded fails all calls; what is queued may still leave, see
// Session.Close.
func (s *Stream) sessionEnded(err error) {
	s.broken.Store(true)
	s.sess.w.mu.Lock()
	if s.sendErr == nil {
		s.sendErr = err
	}
	s.sendCond.Broadcast()
	s.sess.w.mu.Unlock()
	s.ends.Or(sendEnded | recvEnded)
	s.sess.remove(s)
	s.endRead(err, false)
}

// end makes both directions fail with err; what is queued is dropped or kept. It
// returns false when both had ended before, in which case nothing is to be sent to
// the peer.
func (s *Stream) end(err error, local, keep bool) bool {
	const both = sendEnded | recvEnded
	s.broken.Store(true)
	live := s.ends.Or(both) != both
	w := s.sess.w
	w.mu.Lock()
	if s.sendErr == nil {
		s.sendErr = err
	}
	if live && !keep {
		for i, c := range s.sendq {
			w.queued -= c.len()
			w.sess.pool.put(c)
			s.sendq[i] = nil
		}
		s.sendq = nil
		s.queued = 0
	}
	s.finQueued, s.finSent = true, true
	s.sendCond.Broadcast()
	w.mu.Unlock()
	if live {
		s.sess.remove(s) // before anyone learns of it
	}
	s.endRead(err, local)
	return live
}

// endRead fails Read with err once what has arrived is read; drop says that
// nobody will.
func (s *Stream) endRead(err error, drop bool) {
	s.mu.Lock()
	if s.readErr == nil {
		s.readErr = err
	}
	if drop {
		s.recv.clear(&s.sess.pool)
		if s.readClosed == nil {
			s.readClosed = err
		}
	}
	if s.opened != nil && !s.answered {
		s.answered = true
		s.openErr = err
		close(s.opened)
	}
	var calls map[*func(error)]struct{}
	if !s.dead {
		s.dead, s.endErr = true, err
		calls, s.onEnd = s.onEnd, nil
	}
	s.readable.Broadcast()
	s.mu.Unlock()
	for f := range calls {
		go (*f)(err)
	}
}

// afterEnd calls f in its own goroutine when the stream is reset by either end
// or its session ends, not after an orderly close. stop forgets f, and returns
// false if f was called or is about to be.
func (s *Stream) afterEnd(f func(error)) (stop func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		err := s.endErr
		go f(err)
		return func() bool { return false }
	}
	if s.onEnd == nil {
		s.onEnd = make(map[*func(error)]struct{}, 1)
	}
	s.onEnd[&f] = struct{}{}
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, ok := s.onEnd[&f]
		delete(s.onEnd, &f)
		return ok
	}
}

// ended notes the orderly end of a direction.
func (s *Stream) ended(bit uint32) {
	if old := s.ends.Or(bit); old != sendEnded|recvEnded && old|bit == sendEnded|recvEnded {
		s.sess.remove(s)
	}
}

// waitOpened waits for the far side's answer to what begin has asked.
func (s *Stream) waitOpened(ctx context.Context) error {
	select {
	case <-s.opened:
	case <-ctx.Done():
		select {
		case <-s.opened:
		default:
			s.Reset(CodeCanceled)
			return context.Cause(ctx)
		}
	}
	return s.openErr
}

// accepted handles ACCEPT.
func (s *Stream) accepted(window int) error {
	w := s.sess.w
	w.mu.Lock()
	s.credit += window - s.early
	w.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened == nil || s.answered || window < s.early {
		if s.readErr != nil {
			return nil // the session is ending
		}
		return protocolErrorf("ACCEPT of stream %d, which does not wait for one", s.id)
	}
	s.answered = true
	s.allowed = s.window
	close(s.opened)
	return nil
}

// refused handles REFUSE.
func (s *Stream) refused(code Code, msg string) error {
	s.mu.Lock()
	waits := s.opened != nil && !s.answered
	s.mu.Unlock()
	if !waits {
		return protocolErrorf("REFUSE of stream %d, which does not wait for an answer", s.id)
	}
	s.end(&RefusedError{Code: code, Message: msg}, false, false)
	return nil
}

// acceptOpen answers the opener, and lets it send.
func (s *Stream) acceptOpen() error {
	s.mu.Lock()
	if s.readErr != nil {
		defer s.mu.Unlock()
		return s.readErr
	}
	s.allowed = s.window - s.early
	s.mu.Unlock()
	s.sess.w.addControl(true, appendFrameUint32(nil, frameAccept, s.id, uint32(s.window))...)
	return nil
}

// LocalAddr returns this end of the flow as the header has it, or the
// connection's address.
func (s *Stream) LocalAddr() net.Addr {
	if s.opener {
		return s.addr(s.header.Src, s.sess.conn.LocalAddr())
	}
	return s.addr(s.header.Dst, s.sess.conn.LocalAddr())
}

// RemoteAddr returns the other end of the flow as the header has it, or the
// connection's address.
func (s *Stream) RemoteAddr() net.Addr {
	if s.opener {
		return s.addr(s.header.Dst, s.sess.conn.RemoteAddr())
	}
	return s.addr(s.header.Src, s.sess.conn.RemoteAddr())
}

func (s *Stream) addr(a netip.AddrPort, otherwise net.Addr) net.Addr {
	switch {
	case !a.Addr().IsValid():
		return otherwise
	case s.header.Kind == KindUDP:
		return net.UDPAddrFromAddrPort(a)
	case s.header.Kind == KindEcho:
		return &net.IPAddr{IP: a.Addr().AsSlice()}
	}
	return net.TCPAddrFromAddrPort(a)
}

var (
	_ net.Conn      = (*Stream)(nil)
	_ io.WriterTo   = (*Stream)(nil)
	_ io.ReaderFrom = (*Stream)(nil)
)
