package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

var (
	errNotPackets = errors.New("not a packet stream")
	errTooLong    = &net.OpError{Op: "write", Net: "tunnel", Err: syscall.EMSGSIZE}
)

// sendable says whether the scheduler would find something. writer.mu is held,
// as in all that follows here.
func (s *Stream) sendable() bool { return len(s.sendq) > 0 || s.finQueued && !s.finSent || s.resetDue }

func (s *Stream) headLen() int {
	if len(s.sendq) == 0 {
		return 0
	}
	return s.sendq[0].len()
}

// sendState returns why nothing can be queued any more, or nil.
func (s *Stream) sendState() error {
	switch {
	case s.sendClosed != nil:
		return s.sendClosed
	case s.sendErr != nil:
		return s.sendErr
	case s.writeLimit.expired:
		return os.ErrDeadlineExceeded
	case s.finQueued:
		return syscall.EPIPE
	}
	return nil
}

// beginWrite makes the caller the stream's only writer.
func (s *Stream) beginWrite() error {
	for {
		if err := s.sendState(); err != nil {
			return err
		}
		if !s.writing {
			s.writing = true
			return nil
		}
		s.sendCond.Wait()
	}
}

func (s *Stream) endWrite() {
	s.writing = false
	s.sendCond.Broadcast()
}

// waitRoom waits for credit and for room in the queue.
func (s *Stream) waitRoom() error {
	for {
		if err := s.sendState(); err != nil {
			return err
		}
		limit := sendQueue
		if s.sess.w.queued >= queuedMax {
			limit = 1
		}
		if s.credit > 0 && s.queued < limit {
			return nil
		}
		s.sendCond.Wait()
	}
}

// push queues c, which waitRoom allowed.
func (s *Stream) push(c *chunk) {
	s.sendq = append(s.sendq, c)
	s.queued += c.len()
	s.sess.w.queued += c.len()
	s.sess.w.enlist(s)
}

// Write queues p and returns when all of it is queued, which waits for the far
// side's reader once its window and the queue are full. On a packet stream it
// is WritePacket.
func (s *Stream) Write(p []byte) (n int, err error) {
	if s.header.Kind.Packets() {
		if err := s.WritePacket(p); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	w := s.sess.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := s.beginWrite(); err != nil {
		return 0, err
	}
	defer s.endWrite()
	for n < len(p) {
		if err := s.waitRoom(); err != nil {
			return n, err
		}
		k := min(len(p)-n, s.credit, maxPayload)
		// Small writes that wait share a frame.
		if t := len(s.sendq) - 1; t >= 0 && k <= copyMax && len(s.sendq[t].buf)-s.sendq[t].w >= k {
			c := s.sendq[t]
			c.w += copy(c.buf[c.w:], p[n:n+k])
			s.queued += k
			w.queued += k
			s.credit -= k
			n += k
			continue
		}
		w.mu.Unlock()
		c := w.sess.pool.getSend(k)
		c.w += copy(c.buf[c.w:], p[n:n+k])
		w.mu.Lock()
		if err := s.sendState(); err != nil {
			w.sess.pool.put(c)
			return n, err
		}
		s.credit -= k
		n += k
		s.push(c)
		w.kick(k <= inlineMax && n == len(p))
		w.mu.Lock()
	}
	return n, nil
}

// ReadFrom queues all that r yields, read straight into the frames, until its
// EOF (then err is nil) or an error of either. It does not send FIN.
func (s *Stream) ReadFrom(r io.Reader) (total int64, err error) {
	if s.header.Kind.Packets() {
		return 0, errors.New("ReadFrom on a packet stream would lose the boundaries")
	}
	w := s.sess.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := s.beginWrite(); err != nil {
		return 0, err
	}
	defer s.endWrite()
	// A flow that idles waits with a small buffer, one that fills it gets a
	// big one.
	size := smallChunk - frameHeaderSize
	for {
		if err := s.waitRoom(); err != nil {
			return total, err
		}
		limit := min(size, s.credit)
		w.mu.Unlock()
		c := w.sess.pool.getSend(limit)
		n, err := r.Read(c.buf[c.w : c.w+limit])
		w.mu.Lock()
		c.w += n
		if n == 0 {
			w.sess.pool.put(c)
		} else {
			if err := s.sendState(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				w.sess.pool.put(c)
				return total, err
			}
			s.credit -= n
			total += int64(n)
			s.push(c)
			w.kick(n <= inlineMax)
			w.mu.Lock()
		}
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		case n == size:
			size = maxPayload
		case n <= smallChunk-frameHeaderSize:
			size = smallChunk - frameHeaderSize
		}
	}
}

// WritePacket queues one datagram of at most 65507 bytes and never waits: it
// is dropped when the queue is full. The error is about the stream's state
// only.
func (s *Stream) WritePacket(b []byte) error {
	if !s.header.Kind.Packets() {
		return errNotPackets
	}
	if len(b) > maxPacket {
		return errTooLong
	}
	w := s.sess.w
	w.mu.Lock()
	if err := s.sendState(); err != nil {
		w.mu.Unlock()
		return err
	}
	// The floor keeps empty datagrams from queueing without bound.
	if s.queued+len(s.sendq)*64 > packetQueue || w.queued >= queuedMax {
		w.mu.Unlock()
		s.dropped.Add(1)
		return nil
	}
	c := w.sess.pool.getSend(len(b))
	c.packet = true
	c.w += copy(c.buf[c.w:], b)
	s.push(c)
	w.kick(false)
	return nil
}

// Dropped returns how many datagrams this end of the stream has dropped, of
// either direction.
func (s *Stream) Dropped() int64 { return s.dropped.Load() }

// CloseWrite sends FIN after what is queued. Reading goes on. Write then
// returns EPIPE.
func (s *Stream) CloseWrite() error {
	s.closeWrite(syscall.EPIPE)
	return nil
}

func (s *Stream) closeWrite(err error) {
	w := s.sess.w
	w.mu.Lock()
	if s.sendClosed == nil || err != syscall.EPIPE {
		s.sendClosed = err
	}
	s.writeLimit.set(time.Time{}, &s.sendCond)
	s.sendCond.Broadcast()
	// After the session's end a FIN would make a stream that was cut short
	// look complete.
	if s.finQueued || s.sendErr != nil {
		w.mu.Unlock()
		return
	}
	s.finQueued = true
	w.enlist(s)
	w.kick(true)
}

// addCredit handles WINDOW.
func (s *Stream) addCredit(n int) error {
	w := s.sess.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.credit+n > maxCredit {
		return protocolErrorf("stream %d: credit exceeds %d bytes", s.id, maxCredit)
	}
	s.credit += n
	s.sendCond.Broadcast()
	return nil
}

// stopByPeer handles STOP: nothing more is sent but FIN, which lets the peer
// forget the stream.
func (s *Stream) stopByPeer(code Code) {
	w := s.sess.w
	w.mu.Lock()
	if s.sendErr == nil {
		s.sendErr = &ResetError{Code: code}
	}
	for _, c := range s.sendq {
		w.queued -= c.len()
		w.sess.pool.put(c)
	}
	s.sendq, s.queued = nil, 0
	s.sendCond.Broadcast()
	if s.finSent {
		w.mu.Unlock()
		return
	}
	s.finQueued = true
	w.enlist(s)
	w.kick(false)
}
