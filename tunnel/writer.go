package tunnel

import (
	"net"
	"sync"
)

const (
	// inlineMax is the largest payload that its own writer's goroutine may
	// put on the wire: beyond it the copy into the queue costs less than
	// the lost overlap of reading and encrypting.
	inlineMax = 16 << 10
	// copyMax is the largest frame copied next to others instead of being
	// gathered by reference.
	copyMax = 4 << 10
	// batchMax ends a batch: what is in a batch can no longer be overtaken.
	batchMax = 128 << 10
	// freshMax is what streams that were idle may take of a batch before
	// the bulk streams get their turn.
	freshMax = 64 << 10
	// freshQuantum is what a stream may send as a fresh one before it counts
	// as bulk.
	freshQuantum = 8 << 10
	// sendQueue bounds what a stream queues; when the session as a whole has
	// queuedMax, a stream may queue one chunk only.
	sendQueue = 128 << 10
	queuedMax = 16 << 20
	// grantsMax bounds the window grants in a batch, 12 bytes each.
	grantsMax = 2048
	// packetQueue bounds the datagrams a stream queues; more are dropped. It is
	// what 50 Mbit/s need while a busy machine lets nobody run for 160 ms.
	packetQueue = 1 << 20
	// controlMax bounds the control frames that a peer can provoke while it
	// does not read.
	controlMax = 4 << 20
)

// writer owns the sending half of a session: what is queued, in which order
// it leaves, and the one goroutine that may be in conn.Write at any time.
//
// Order within a batch: control frames, window grants, fresh streams (that had
// nothing queued a moment ago and have sent less than freshQuantum since), then
// bulk streams, a frame each in turn.
//
// Lock order: writer.mu before Session.mu; Stream.mu is never held together
// with either.
type writer struct {
	sess     *Session
	conn     net.Conn
	gather   func(*net.Buffers) error
	writable func() bool // nil: never write inline

	mu       sync.Mutex
	wake     sync.Cond // for the goroutine: work, or the end
	busy     bool      // someone is in conn.Write, with out and frees
	draining bool      // send what is queued, say goodbye, stop
	stopped  bool      // stop now
	control  []byte    // encoded frames
	spare    []byte    // the previous control buffer
	goodbye  []byte    // GOAWAY, last of all
	pong     [8]byte
	pongDue  bool
	grants   []*Stream
	fresh    streamList
	bulk     streamList
	queued   int // payload bytes in all streams' queues

	// Owned by whoever is busy.
	out     net.Buffers
	scratch []byte
	frees   []*chunk
	spent   int // bytes in out
}

// buffersWriter is a connection that sends several buffers at the price of one
// write; see internal/cork.
type buffersWriter interface {
	WriteBuffers(bufs net.Buffers) error
}

func newWriter(s *Session, conn net.Conn) *writer {
	w := &writer{sess: s, conn: conn, writable: writableProbe(conn)}
	w.wake.L = &w.mu
	w.scratch = make([]byte, 0, 2*freshMax)
	switch c := conn.(type) {
	case buffersWriter:
		w.gather = func(b *net.Buffers) error { return c.WriteBuffers(*b) }
	case *net.TCPConn, *net.UnixConn: // writev
		w.gather = func(b *net.Buffers) error { _, err := b.WriteTo(conn); return err }
	default: // one write per batch: a copy costs less than a frame of theirs
		var flat []byte
		w.gather = func(b *net.Buffers) error {
			flat = flat[:0]
			for _, p := range *b {
				flat = append(flat, p...)
			}
			_, err := conn.Write(flat)
			return err
		}
	}
	return w
}

// run is the writer goroutine. It returns the error of conn.Write, or nil
// after stop or drain.
func (w *writer) run() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.stopped:
			return nil
		case w.busy:
			w.wake.Wait()
		case w.pending():
			if err := w.flush(); err != nil {
				return err
			}
		case w.goodbye != nil:
			w.control, w.goodbye = append(w.control, w.goodbye...), nil
		case w.draining:
			return nil
		default:
			w.wake.Wait()
		}
	}
}

func (w *writer) pending() bool {
	return len(w.control) > 0 || w.pongDue || len(w.grants) > 0 || !w.fresh.empty() || !w.bulk.empty()
}

// flush sends one batch. w.mu is held on entry and return, not in between.
func (w *writer) flush() error {
	w.build()
	w.busy = true
	w.mu.Unlock()
	err := w.send()
	w.mu.Lock()
	w.busy = false
	return err
}

func (w *writer) send() error {
	var err error
	switch len(w.out) {
	case 0:
	case 1:
		_, err = w.conn.Write(w.out[0])
	default:
		bufs := w.out // WriteTo consumes its receiver
		err = w.gather(&bufs)
	}
	for i, c := range w.frees {
		w.sess.pool.put(c)
		w.frees[i] = nil
	}
	w.frees = w.frees[:0]
	clear(w.out)
	w.out = w.out[:0]
	return err
}

// kick gets what was queued on its way: in this goroutine when the session is
// idle, the caller allows it and the socket has room, else by the writer's.
// w.mu is held on entry and released.
func (w *writer) kick(inline bool) {
	if w.busy || w.stopped {
		w.mu.Unlock() // whoever is busy looks again when done
		return
	}
	if !inline || w.draining || w.writable == nil || !w.writable() {
		w.wake.Signal()
		w.mu.Unlock()
		return
	}
	err := w.flush()
	if w.pending() || w.stopped || w.draining {
		w.wake.Signal()
	}
	w.mu.Unlock()
	if err != nil {
		w.sess.writeFailed(err)
	}
}

// build fills out with the next batch. w.mu is held and nobody is busy.
func (w *writer) build() {
	w.scratch = w.scratch[:0]
	w.spent = 0
	start := 0 // of the part of scratch that is not in out yet
	cut := func() {
		if len(w.scratch) > start {
			w.out = append(w.out, w.scratch[start:len(w.scratch):len(w.scratch)])
			start = len(w.scratch)
		}
	}
	if n := len(w.control); n > 0 {
		if n <= copyMax {
			w.scratch = append(w.scratch, w.control...)
			w.control = w.control[:0]
		} else {
			w.out = append(w.out, w.control)
			w.control, w.spare = w.spare[:0], w.control
			if cap(w.spare) > 64<<10 {
				w.spare = nil
			}
		}
		w.spent += n
	}
	if w.pongDue {
		w.scratch = appendFrame(w.scratch, framePong, false, 0, w.pong[:]...)
		w.pongDue = false
	}
	due := min(len(w.grants), grantsMax)
	for _, s := range w.grants[:due] {
		w.scratch = appendFrameUint32(w.scratch, frameWindow, s.id, uint32(s.grant))
		s.grant = 0
	}
	left := copy(w.grants, w.grants[due:])
	clear(w.grants[left:])
	w.grants = w.grants[:left]
	emit := func(s *Stream) int {
		defer func() {
			if s.resetDue && len(s.sendq) == 0 {
				s.resetDue = false
				w.scratch = appendFrame(w.scratch, frameReset, false, s.id, byte(s.resetCode))
			}
		}()
		c, fin := w.take(s)
		if c == nil {
			if fin {
				w.scratch = appendFrame(w.scratch, frameData, true, s.id)
			}
			return 0
		}
		typ := frameData
		if c.packet {
			typ = framePacket
		}
		n := c.len()
		frame := c.buf[c.r-frameHeaderSize : c.w]
		putFrameHeader(frame, typ, fin, n, s.id)
		if len(frame) <= copyMax && len(w.scratch)+len(frame) <= cap(w.scratch) {
			w.scratch = append(w.scratch, frame...)
			w.sess.pool.put(c)
		} else {
			cut()
			w.out = append(w.out, frame)
			w.frees = append(w.frees, c)
		}
		w.spent += len(frame)
		return len(frame)
	}
	for fresh := 0; fresh < freshMax && len(w.scratch) < cap(w.scratch)-copyMax; {
		s := w.fresh.pop()
		if s == nil {
			break
		}
		for s.deficit > 0 && s.sendable() {
			if s.headLen() > s.deficit {
				break
			}
			n := emit(s)
			s.deficit -= n + frameHeaderSize
			fresh += n
		}
		if s.sendable() {
			w.bulk.push(s)
		} else {
			s.listed = false
		}
	}
	for !w.bulk.empty() && w.spent < batchMax && len(w.scratch) < cap(w.scratch)-copyMax {
		s := w.bulk.pop()
		if s.sendable() {
			emit(s)
		}
		if s.sendable() {
			w.bulk.push(s)
		} else {
			s.listed = false
		}
	}
	cut()
}

// take removes the head of s's queue; fin says that it is the stream's last.
func (w *writer) take(s *Stream) (c *chunk, fin bool) {
	if len(s.sendq) > 0 {
		c = s.sendq[0]
		n := copy(s.sendq, s.sendq[1:])
		s.sendq[n] = nil
		s.sendq = s.sendq[:n]
		s.queued -= c.len()
		w.queued -= c.len()
		s.sendCond.Broadcast()
	}
	// FIN rides on the last bytes, but goes alone after a datagram.
	if len(s.sendq) == 0 && s.finQueued && !s.finSent && (c == nil || !c.packet) {
		s.finSent = true
		fin = true
		s.ended(sendEnded)
	}
	return c, fin
}

// enlist makes s known to the scheduler. w.mu is held.
func (w *writer) enlist(s *Stream) {
	if !s.listed {
		s.listed = true
		s.deficit = freshQuantum
		w.fresh.push(s)
	}
}

// addControl queues an encoded frame and gets it on its way. It must not be
// called by the session's reader with inline, which may block.
func (w *writer) addControl(inline bool, frame ...byte) {
	w.mu.Lock()
	w.control = append(w.control, frame...)
	w.kick(inline)
}

// grant tells the peer that it may send n more bytes on s.
func (w *writer) grant(s *Stream, n int) {
	w.mu.Lock()
	if s.grant == 0 {
		w.grants = append(w.grants, s)
	}
	s.grant += n
	w.kick(false)
}

// stop makes run return at once; for when the connection is lost.
func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	w.wake.Broadcast()
	w.mu.Unlock()
}

// drain makes run return when all that is queued is sent, then goodbye.
func (w *writer) drain(goodbye []byte) {
	w.mu.Lock()
	w.draining = true
	w.goodbye = goodbye
	w.wake.Broadcast()
	w.mu.Unlock()
}

// overfull says that the peer provokes control frames but does not read them.
func (w *writer) overfull() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.control) > controlMax
}

// streamList is a FIFO of streams that have something to send.
type streamList struct{ head, tail *Stream }

func (l *streamList) empty() bool { return l.head == nil }

func (l *streamList) push(s *Stream) {
	s.next = nil
	if l.tail == nil {
		l.head = s
	} else {
		l.tail.next = s
	}
	l.tail = s
}

func (l *streamList) pop() *Stream {
	s := l.head
	if s != nil {
		l.head = s.next
		if l.head == nil {
			l.tail = nil
		}
		s.next = nil
	}
	return s
}
