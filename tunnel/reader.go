package tunnel

import (
	"fmt"
	"io"
)

// readLoop takes frames off the connection until it fails. It never waits for
// a stream's reader, nor for the connection to take a write: what it answers
// goes by the writer goroutine.
func (s *Session) readLoop() error {
	b, err := s.br.Peek(prefaceSize)
	if err != nil {
		return wrapLost("read preface", err)
	}
	if err := parsePreface(b); err != nil {
		return err
	}
	s.discard(prefaceSize)
	for {
		b, err := s.br.Peek(frameHeaderSize)
		if err != nil {
			return wrapLost("read", err)
		}
		h, err := parseFrameHeader(b)
		if err != nil {
			return err
		}
		s.discard(frameHeaderSize)
		s.heard.Store(true)
		switch h.typ {
		case frameData, framePacket:
			err = s.readData(h)
		default:
			err = s.readControl(h)
		}
		if err != nil {
			return err
		}
	}
}

// discard drops bytes that Peek has returned.
func (s *Session) discard(n int) { _, _ = s.br.Discard(n) }

// find returns the stream of a frame, nil if it has ended; a number that was
// never in use is an error.
func (s *Session) find(h frameHeader) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[h.id]; st != nil {
		return st, nil
	}
	ours := (h.id%2 == 1) == s.client
	if ours && (s.nextID == 0 || h.id < s.nextID) || !ours && h.id <= s.peerID {
		return nil, nil
	}
	return nil, protocolErrorf("frame type %d for stream %d, which was never opened", h.typ, h.id)
}

func (s *Session) readData(h frameHeader) error {
	st, err := s.find(h)
	if err != nil {
		return err
	}
	if st == nil { // reset by us a moment ago
		if _, err := s.br.Discard(h.length); err != nil {
			return wrapLost("read", err)
		}
		return nil
	}
	if h.typ == frameData {
		if err := st.checkData(h.length, h.fin); err != nil {
			return err
		}
	} else if !st.header.Kind.Packets() {
		return protocolErrorf("datagram on a stream of %v", st.header.Kind)
	}
	if h.length <= mediumChunk {
		b, err := s.br.Peek(h.length)
		if err != nil {
			return wrapLost("read", err)
		}
		if h.typ == framePacket {
			st.receivePacket(b)
		} else {
			st.receive(b, nil, h.fin)
		}
		s.discard(h.length)
		return nil
	}
	c := s.pool.get(h.length)
	if _, err := io.ReadFull(s.br, c.buf[:h.length]); err != nil {
		return wrapLost("read", err)
	}
	c.w = h.length
	if h.typ == framePacket {
		st.receivePacket(c.buf[:c.w])
		s.pool.put(c)
	} else {
		st.receive(nil, c, h.fin)
	}
	return nil
}

func (s *Session) readControl(h frameHeader) error {
	b, err := s.br.Peek(h.length) // the largest is an OPEN, less than readBuffer
	if err != nil {
		return wrapLost("read", err)
	}
	defer s.discard(h.length)
	switch h.typ {
	case framePing:
		s.w.mu.Lock()
		copy(s.w.pong[:], b)
		s.w.pongDue = true
		s.w.kick(false)
		return nil
	case framePong:
		s.ponged(b)
		return nil
	case frameGoAway:
		if msg := string(b[1:]); msg != "" {
			return fmt.Errorf("%w: %s", ErrClosedByPeer, msg)
		}
		return ErrClosedByPeer
	case frameOpen:
		return s.readOpen(h, b)
	}
	st, err := s.find(h)
	if err != nil || st == nil {
		return err
	}
	switch h.typ {
	case frameAccept:
		window, err := parseCredit(b)
		if err != nil {
			return err
		}
		return st.accepted(window)
	case frameRefuse:
		return st.refused(Code(b[0]), string(b[1:]))
	case frameWindow:
		credit, err := parseCredit(b)
		if err != nil {
			return err
		}
		return st.addCredit(credit)
	case frameReset:
		st.resetByPeer(Code(b[0]))
	case frameStop:
		st.stopByPeer(Code(b[0]))
	}
	return nil
}

func (s *Session) readOpen(h frameHeader, b []byte) error {
	if ours := (h.id%2 == 1) == s.client; ours {
		return protocolErrorf("OPEN with stream %d, which is ours to use", h.id)
	}
	window, header, early, err := parseOpen(b)
	if err != nil {
		return err
	}
	if len(early) > 0 && header.Kind.Packets() {
		return protocolErrorf("early data on a stream of %v", header.Kind)
	}
	st := newStream(s, header, false)
	st.id = h.id
	st.credit = window
	st.early = len(early)
	s.mu.Lock()
	if h.id <= s.peerID {
		s.mu.Unlock()
		return protocolErrorf("OPEN with stream %d after %d", h.id, s.peerID)
	}
	s.peerID = h.id
	busy := s.peerCount >= s.cfg.MaxStreams
	if !busy && s.err == nil {
		s.streams[h.id] = st
		s.peerCount++
	}
	s.mu.Unlock()
	if busy {
		return s.refuseBusy(h.id, "too many streams")
	}
	if len(early) > 0 || h.fin {
		st.receive(early, nil, h.fin)
	}
	select {
	case s.accept <- &Request{Header: header, st: st}:
		return nil
	default:
		st.end(&RefusedError{Code: CodeBusy}, false, false)
		return s.refuseBusy(h.id, "too many streams wait to be accepted")
	}
}

func (s *Session) refuseBusy(id uint32, msg string) error {
	if s.w.overfull() {
		return protocolErrorf("the far side does not read our answers")
	}
	s.w.addControl(false, appendMessage(nil, frameRefuse, id, CodeBusy, msg)...)
	return nil
}
