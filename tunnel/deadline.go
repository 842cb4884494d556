package tunnel

import (
	"sync"
	"time"
)

// deadline is one direction's deadline. All of it is guarded by the lock of
// the condition that its waiters wait on.
type deadline struct {
	timer   *time.Timer
	expired bool
}

// set replaces the deadline; the zero time means none. cond.L is held.
func (d *deadline) set(t time.Time, cond *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		cond.L.Lock()
		defer cond.L.Unlock()
		if d.timer == timer { // else replaced while this waited for the lock
			d.expired = true
			cond.Broadcast()
		}
	})
	d.timer = timer
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline makes Read and ReadPacket fail with os.ErrDeadlineExceeded
// after t; the zero time means never.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readLimit.set(t, &s.readable)
	return nil
}

// SetWriteDeadline makes Write fail with os.ErrDeadlineExceeded after t; the
// zero time means never.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.sess.w.mu.Lock()
	defer s.sess.w.mu.Unlock()
	s.writeLimit.set(t, &s.sendCond)
	return nil
}
