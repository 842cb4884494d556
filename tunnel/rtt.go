package tunnel

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// rttEstimate is the session's round-trip time as pings see it, queueing
// included: pings overtake data in our queue, not in the kernel's.
type rttEstimate struct {
	smoothed atomic.Int64 // ns, 0 before the first pong
	sampled  atomic.Int64 // ns since Session.start of the last ping sent
	pending  atomic.Int64 // the ping awaited, as sampled; 0: none
}

// RTT returns the smoothed round-trip time to the far side, or 0 before the
// first measurement.
func (s *Session) RTT() time.Duration { return time.Duration(s.rtt.smoothed.Load()) }

// appendPing encodes a ping; its payload is the time of sending, on our clock
// alone.
func (s *Session) appendPing(b []byte) []byte {
	now := max(int64(time.Since(s.start)), 1)
	s.rtt.sampled.Store(now)
	s.rtt.pending.Store(now)
	var p [8]byte
	binary.BigEndian.PutUint64(p[:], uint64(now))
	return appendFrame(b, framePing, false, 0, p[:]...)
}

// sampleRTT sends a ping if the estimate is stale.
func (s *Session) sampleRTT() {
	last := s.rtt.sampled.Load()
	now := int64(time.Since(s.start))
	if now-last < int64(rttSampleEvery) || !s.rtt.sampled.CompareAndSwap(last, now) {
		return
	}
	s.w.addControl(false, s.appendPing(nil)...)
}

// ponged takes a sample; a pong for anything but the last ping is ignored.
func (s *Session) ponged(payload []byte) {
	sent := int64(binary.BigEndian.Uint64(payload))
	if sent == 0 || !s.rtt.pending.CompareAndSwap(sent, 0) {
		return
	}
	sample := max(int64(time.Since(s.start))-sent, 1)
	if old := s.rtt.smoothed.Load(); old != 0 {
		sample = old + (sample-old)/4
	}
	s.rtt.smoothed.Store(sample)
}

// keepAlive pings a silent peer and ends the session when it stays silent.
func (s *Session) keepAlive() {
	tick := time.NewTicker(s.cfg.KeepAlive)
	defer tick.Stop()
	missed := 0
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		if s.heard.Swap(false) {
			missed = 0
			continue
		}
		if missed == keepAliveMisses {
			s.fail(ErrDeadPeer)
			return
		}
		missed++
		s.w.addControl(false, s.appendPing(nil)...)
	}
}
