package tunnel

import (
	"encoding/binary"
	"io"
	"os"
	"time"
)

// packetBacklog bounds the unread datagrams of a stream, in bytes; beyond it
// they are dropped, as a socket would.
const packetBacklog = 1 << 20

// chunkQueue is a FIFO of received bytes.
type chunkQueue struct {
	q    []*chunk
	head int
	n    int // bytes
}

func (q *chunkQueue) empty() bool { return q.head == len(q.q) }

func (q *chunkQueue) first() *chunk { return q.q[q.head] }

// room returns a chunk at the end of the queue with room for n more bytes.
func (q *chunkQueue) room(p *pool, n int) *chunk {
	if q.empty() {
		c := p.get(n)
		q.push(c)
		return c
	}
	if c := q.q[len(q.q)-1]; len(c.buf)-c.w >= n {
		return c
	}
	// The reader is behind: fill big chunks, or many small frames would hold
	// much more memory than their window says.
	c := p.get(bigChunk)
	q.push(c)
	return c
}

func (q *chunkQueue) push(c *chunk) {
	q.q = append(q.q, c)
	q.n += c.len()
}

func (q *chunkQueue) pop() *chunk {
	c := q.q[q.head]
	q.q[q.head] = nil
	q.head++
	if q.head == len(q.q) {
		q.q, q.head = q.q[:0], 0
	} else if q.head > 64 && q.head > len(q.q)/2 {
		n := copy(q.q, q.q[q.head:])
		clear(q.q[n:])
		q.q, q.head = q.q[:n], 0
	}
	q.n -= c.len()
	return c
}

func (q *chunkQueue) clear(p *pool) {
	for !q.empty() {
		p.put(q.pop())
	}
	q.q = nil
}

// checkData charges a DATA frame to the window before its payload is read.
func (s *Stream) checkData(n int, fin bool) error {
	if n > 0 && s.header.Kind.Packets() {
		return protocolErrorf("bytes on a stream of %v", s.header.Kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.eof {
		return protocolErrorf("stream %d: data after FIN", s.id)
	}
	if n > s.allowed {
		return protocolErrorf("stream %d: %d bytes exceed the window by %d", s.id, n, n-s.allowed)
	}
	s.allowed -= n
	return nil
}

// directMax is the largest piece that the session's reader hands on by itself: what
// is larger is worth the overlap of decrypting and writing.
const directMax = 4 << 10

// direct is where bytes may go without the goroutine that waits for them in writeTo.
// It is guarded by Stream.mu.
type direct struct {
	to  TryWriter
	n   int   // bytes taken
	err error // ends writeTo
}

// receive takes bytes, of which the stream either copies b or owns c.
func (s *Stream) receive(b []byte, c *chunk, fin bool) {
	p := &s.sess.pool
	grant := 0
	s.mu.Lock()
	if d := s.direct; d != nil && d.err == nil && 0 < len(b) && len(b) <= directMax && s.recv.empty() && s.readClosed == nil && s.readErr == nil {
		var n int
		n, d.err = d.to.TryWrite(b)
		d.n += n
		grant = s.consume(n)
		if b = b[n:]; len(b) == 0 && d.err == nil && !fin {
			s.mu.Unlock()
			s.sendGrant(grant)
			return
		}
	}
	switch {
	case s.readClosed != nil || s.readErr != nil:
		if c != nil {
			p.put(c)
		}
	case c != nil:
		s.recv.push(c)
	case len(b) > 0:
		t := s.recv.room(p, len(b))
		t.w += copy(t.buf[t.w:], b)
		s.recv.n += len(b)
	}
	if fin {
		s.eof = true
		s.readable.Broadcast()
	} else {
		s.readable.Signal()
	}
	s.mu.Unlock()
	s.sendGrant(grant)
	if fin {
		s.ended(recvEnded)
	}
}

// receivePacket copies a datagram, or drops it when the reader is behind. In
// the queue each has 2 bytes of length before it and lies within one chunk.
func (s *Stream) receivePacket(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readClosed != nil || s.readErr != nil || s.eof {
		return
	}
	n := 2 + len(b)
	if s.recv.n+n > packetBacklog {
		s.dropped.Add(1)
		return
	}
	t := s.recv.room(&s.sess.pool, n)
	binary.BigEndian.PutUint16(t.buf[t.w:], uint16(len(b)))
	copy(t.buf[t.w+2:], b)
	t.w += n
	s.recv.n += n
	s.readable.Signal()
}

// waitReadable returns nil when there is something to read. s.mu is held.
func (s *Stream) waitReadable() error {
	for {
		switch {
		case s.readClosed != nil:
			return s.readClosed
		case s.readLimit.expired:
			return os.ErrDeadlineExceeded
		case !s.recv.empty(), s.direct != nil && s.direct.err != nil:
			return nil
		case s.eof:
			return io.EOF
		case s.readErr != nil:
			return s.readErr
		}
		s.readable.Wait()
	}
}

// Read returns what has arrived, at least one byte; io.EOF after the far
// side's FIN, a *ResetError after its reset. On a packet stream it is
// ReadPacket.
func (s *Stream) Read(p []byte) (int, error) {
	if s.header.Kind.Packets() {
		return s.ReadPacket(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	if err := s.waitReadable(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := 0
	for n < len(p) && !s.recv.empty() {
		c := s.recv.first()
		k := copy(p[n:], c.buf[c.r:c.w])
		n += k
		c.r += k
		s.recv.n -= k
		if c.len() == 0 {
			s.sess.pool.put(s.recv.pop())
		}
	}
	more := !s.recv.empty()
	grant := s.consume(n)
	if more {
		s.readable.Signal() // for another reader
	}
	s.mu.Unlock()
	s.sendGrant(grant)
	return n, nil
}

// WriteTo writes all that arrives to w, without a copy in between, until FIN
// (then err is nil) or an error of either. The peer is granted new credit only
// for what w has taken.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	total, _, err = s.writeTo(w, nil)
	return total, err
}

// writeTo is WriteTo, and says whether it was w that failed. With try, which is w, the
// session's reader hands small pieces on by itself while this waits, which saves waking
// it.
func (s *Stream) writeTo(w io.Writer, try TryWriter) (total int64, inW bool, err error) {
	d := direct{to: try}
	for {
		s.mu.Lock()
		if try != nil {
			s.direct = &d
		}
		err := s.waitReadable()
		s.direct = nil
		total += int64(d.n)
		d.n = 0
		if err == nil {
			inW, err = d.err != nil, d.err
		}
		if err != nil {
			s.mu.Unlock()
			if err == io.EOF {
				err = nil
			}
			return total, inW, err
		}
		c := s.recv.pop()
		s.mu.Unlock()
		n, err := w.Write(c.buf[c.r:c.w])
		short := n < c.len()
		s.sess.pool.put(c)
		total += int64(n)
		s.mu.Lock()
		grant := s.consume(n)
		s.mu.Unlock()
		s.sendGrant(grant)
		if err != nil {
			return total, true, err
		}
		if short {
			return total, true, io.ErrShortWrite
		}
	}
}

// consume notes that n bytes were read, and returns the credit to grant: half
// a window at a time. s.mu is held.
//
// A sender that fills half a window in less than two round trips is, or soon
// will be, held up by the window and not by the path or the reader: then the
// window doubles, and ends at no more than four times the bandwidth-delay
// product.
func (s *Stream) consume(n int) int {
	s.consumed += n
	if s.eof || s.readErr != nil || s.readClosed != nil || s.consumed < s.window/2 {
		return 0
	}
	grant := s.consumed
	s.consumed = 0
	now := time.Now()
	took := now.Sub(s.granted)
	s.granted = now
	if rtt := s.sess.RTT(); took < 2*rtt {
		grant += s.grow()
	}
	s.allowed += grant
	return grant
}

// grow doubles the window if the limits allow, and returns by how much.
func (s *Stream) grow() int {
	by := min(s.window, s.sess.cfg.MaxWindow-s.window)
	if by <= 0 {
		return 0
	}
	if s.sess.growth.Add(int64(by)) > int64(s.sess.cfg.WindowBudget) {
		s.sess.growth.Add(-int64(by))
		return 0
	}
	s.growth.Add(int64(by))
	s.window += by
	return by
}

func (s *Stream) sendGrant(n int) {
	if n > 0 {
		s.sess.w.grant(s, n)
		s.sess.sampleRTT()
	}
}

// ReadPacket returns the next datagram, cut to len(buf) if it is longer. It
// works on packet streams only.
func (s *Stream) ReadPacket(buf []byte) (int, error) {
	if !s.header.Kind.Packets() {
		return 0, errNotPackets
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.waitReadable(); err != nil {
		return 0, err
	}
	c := s.recv.first()
	size := int(binary.BigEndian.Uint16(c.buf[c.r:]))
	n := copy(buf, c.buf[c.r+2:c.r+2+size])
	c.r += 2 + size
	s.recv.n -= 2 + size
	if c.len() == 0 {
		s.sess.pool.put(s.recv.pop())
	}
	if !s.recv.empty() {
		s.readable.Signal()
	}
	return n, nil
}

// nextPacket is ReadPacket into a chunk of the session's pool, of the datagram's size.
func (s *Stream) nextPacket() (*chunk, error) {
	if !s.header.Kind.Packets() {
		return nil, errNotPackets
	}
	s.mu.Lock()
	err := s.waitReadable()
	size := 0
	if err == nil {
		c := s.recv.first()
		size = int(binary.BigEndian.Uint16(c.buf[c.r:]))
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c := s.sess.pool.get(size)
	n, err := s.ReadPacket(c.buf)
	if err != nil {
		s.sess.pool.put(c)
		return nil, err
	}
	c.w = n
	return c, nil
}

// CloseRead drops what arrives from now on and tells the far side to stop; its
// Write fails with ECONNRESET. Read then returns io.EOF.
func (s *Stream) CloseRead() error {
	s.closeRead(io.EOF)
	return nil
}

func (s *Stream) closeRead(err error) {
	s.mu.Lock()
	first := s.readClosed == nil
	if first || err != io.EOF {
		s.readClosed = err
	}
	stop := first && !s.eof && s.readErr == nil
	s.recv.clear(&s.sess.pool)
	s.readLimit.set(time.Time{}, &s.readable)
	s.readable.Broadcast()
	s.mu.Unlock()
	if stop {
		s.sess.w.addControl(true, appendFrame(nil, frameStop, false, s.id, byte(CodeReset))...)
	}
}
