package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth.dev/tunnel/internal/sock"
)

// HalfCloser is an end of Relay: a *Stream, a *net.TCPConn, or anything that
// can end its two directions on their own.
//
// Relay resets an end by the first of these that it has: Reset(Code), or
// SetLinger(0) and Close, or Close.
type HalfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Relay copies both ways between a and b until both directions have ended, and
// closes both. The end of one direction travels as a half-close, a reset (or
// any other failure) of one end at once as a reset of the other. sent counts
// bytes from a to b.
//
// What one end sent before its reset reaches the other first, as far as that one
// takes it without delay, and so does what a stream has queued.
//
// err is nil after an orderly end, else what failed first.
//
// A reset of a TCP end is noticed when it is read or written, so not while the
// other end takes no bytes; that of a stream is noticed at once.
func Relay(a, b HalfCloser) (sent, received int64, err error) {
	var once sync.Once
	fail := func(cause error) {
		once.Do(func() {
			err = cause
			code := CodeOf(cause)
			resetEnd(a, code)
			resetEnd(b, code)
		})
	}
	x := &crossing{fail: fail, of: map[HalfCloser]*crossingEnd{a: {read: make(chan struct{})}, b: {read: make(chan struct{})}}}
	var watchers sync.WaitGroup
	var stops []func() bool
	for _, end := range []HalfCloser{a, b} {
		if s, ok := end.(*Stream); ok {
			// The far side's reset should not wait for a copy that is stuck
			// in the other end.
			watchers.Add(1)
			stops = append(stops, s.afterEnd(func(cause error) {
				defer watchers.Done()
				x.failAfter(end, cause)
			}))
		}
	}
	defer func() {
		// All are stopped before any is waited for: with a stream at both ends,
		// waiting for the one would leave the other's watcher for ever.
		for _, stop := range stops {
			if stop() {
				watchers.Done()
			}
		}
		watchers.Wait()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { sent = x.copy(b, a) })
	received = x.copy(a, b)
	wg.Wait()
	// Taking once's turn also waits for a watcher that is amid failing.
	once.Do(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return sent, received, err
}

// resetGrace is how long what an end sent before its reset may take to get into the
// other end. What that one does not take was never acknowledged to anyone.
const resetGrace = 200 * time.Millisecond

// crossing is the two copies of a Relay.
type crossing struct {
	fail    func(error)
	of      map[HalfCloser]*crossingEnd
	failing atomic.Bool
}

type crossingEnd struct {
	read     chan struct{} // closed when the copy out of this end is through
	finished atomic.Bool   // FIN was sent into it
}

// failAfter fails once what end had sent is read, or resetGrace has passed.
func (x *crossing) failAfter(end HalfCloser, cause error) {
	x.failing.Store(true)
	select {
	case <-x.of[end].read:
	case <-time.After(resetGrace):
	}
	x.fail(cause)
}

// copy copies one way until EOF and passes that on.
func (x *crossing) copy(dst, src HalfCloser) int64 {
	n, inDst, err := copyBytes(dst, src)
	if err == nil && closed(src) && !x.of[src].finished.Load() {
		// It was reset, the error went to who was writing, and to who reads it
		// seems to have ended in good order.
		err = fmt.Errorf("read: %w", syscall.ECONNRESET)
	}
	close(x.of[src].read)
	switch s, ok := dst.(*Stream); {
	case err == nil:
		x.of[dst].finished.Store(true)
		// A failure here is of an end that is gone, which the other direction
		// finds out in its own words.
		if !x.failing.Load() {
			_ = dst.CloseWrite()
		}
	case ok && s.broken.Load(): // its watcher fails
	case inDst:
		x.failAfter(dst, err)
	default:
		x.fail(err)
	}
	return n
}

// TryWriter is an end of Relay that can write without waiting. Sockets need not be
// one.
type TryWriter interface {
	// TryWrite writes as much of p as it can at once, and keeps none of it. Less than
	// all is no error.
	TryWrite(p []byte) (int, error)
}

// copyBytes copies until EOF; inDst says that err is of writing to an end that is
// no stream.
func copyBytes(dst, src HalfCloser) (n int64, inDst bool, err error) {
	if s, ok := src.(*Stream); ok {
		if t, ok := dst.(TryWriter); ok {
			return s.writeTo(dst, t)
		}
		if t := socket(dst); t != nil {
			return s.writeTo(t, t)
		}
		return s.writeTo(dst, nil)
	}
	if s, ok := dst.(*Stream); ok {
		var from io.Reader = src
		if t := socket(src); t != nil {
			from = t
		}
		n, err = s.ReadFrom(from)
		return n, false, err
	}
	n, err = io.Copy(dst, src) // splice(2) between sockets
	return n, false, err
}

// socket is the socket that an end is; nil where it only has one inside, for its Read
// and Write are others.
func socket(end HalfCloser) *sock.Socket {
	c, ok := end.(*net.TCPConn)
	if !ok {
		return nil
	}
	return sock.Of(c)
}

func resetEnd(end HalfCloser, code Code) {
	switch e := end.(type) {
	case *Stream:
		e.resetAfterQueued(code)
	case interface{ Reset(Code) }:
		e.Reset(code)
	case interface{ SetLinger(int) error }:
		_ = e.SetLinger(0) // makes Close send RST
	}
	_ = end.Close()
}

// RelayPackets copies datagrams both ways between a packet stream and conn,
// of which one Read or Write is one datagram: a connected UDP socket, say. It
// ends when either end does, or after nothing has passed for idle (0: never),
// and closes both. sent counts bytes from s to conn.
//
// An error of conn resets s with its code, so that a closed port (ICMP port
// unreachable) reaches the other end as ECONNREFUSED.
func RelayPackets(s *Stream, conn net.Conn, idle time.Duration) (sent, received int64, err error) {
	var once sync.Once
	finish := func(cause error) {
		once.Do(func() {
			if err = cause; cause == nil {
				_ = s.Close()
			} else {
				s.Reset(CodeOf(cause))
			}
			_ = conn.Close()
		})
	}
	tuneDatagrams(conn)
	var passed atomic.Int64 // datagrams
	if idle > 0 {
		stop := onIdle(&passed, idle, func() { finish(nil) })
		defer stop()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := packetsOut(conn, s, &passed)
		sent = n
		finish(err)
	})
	n, cerr := packetsIn(s, conn, &passed)
	received = n
	finish(cerr)
	wg.Wait()
	return sent, received, err
}

func packetsOut(conn net.Conn, s *Stream, passed *atomic.Int64) (total int64, err error) {
	for {
		c, err := s.nextPacket()
		if err != nil {
			return total, orderly(err)
		}
		passed.Add(1)
		// A datagram that does not fit, or finds no buffer, is lost like any
		// other; what the peer's ICMP says comes up in Read too.
		n := c.len()
		_, err = conn.Write(c.buf[c.r:c.w])
		s.sess.pool.put(c)
		if err == nil {
			total += int64(n)
		} else if errors.Is(err, net.ErrClosed) {
			return total, nil
		}
	}
}

// ReadWaiter is an end of RelayPackets that can wait for a datagram without a buffer
// to put it into: most flows are silent most of the time, and there may be
// thousands. Sockets and streams need not be one.
type ReadWaiter interface {
	// WaitRead returns when Read has something to return, an error included.
	WaitRead()
}

func packetsIn(s *Stream, conn net.Conn, passed *atomic.Int64) (total int64, err error) {
	next := packetReader(conn, &s.sess.pool)
	for {
		c, err := next()
		if err != nil {
			if err = orderly(err); err != nil {
				err = fmt.Errorf("relay datagrams: %w", err)
			}
			return total, err
		}
		passed.Add(1)
		n := c.len()
		err = s.WritePacket(c.buf[c.r:c.w])
		s.sess.pool.put(c)
		if err != nil {
			return total, orderly(err)
		}
		total += int64(n)
	}
}

// packetReader returns what waits for the next datagram of conn, and takes a buffer
// for it from p only then, if conn lets it.
func packetReader(conn net.Conn, p *pool) func() (*chunk, error) {
	wait := func() {}
	switch c := conn.(type) {
	case *Stream:
		return func() (*chunk, error) {
			q, err := c.nextPacket()
			if err != nil || p == &c.sess.pool {
				return q, err
			}
			mine := p.get(q.len()) // a chunk goes back to the pool that it is of
			mine.w = copy(mine.buf, q.buf[q.r:q.w])
			c.sess.pool.put(q)
			return mine, nil
		}
	case ReadWaiter:
		wait = c.WaitRead
	default:
		if w := readableWait(conn); w != nil {
			wait = w
		}
	}
	return func() (*chunk, error) {
		wait()
		c := p.get(maxPacket)
		n, err := conn.Read(c.buf)
		if err != nil {
			p.put(c)
			return nil, err
		}
		c.w = min(n, maxPacket)
		return c, nil
	}
}

// orderly turns the ways in which a relay just ends into nil.
func orderly(err error) error {
	if err == io.EOF || errors.Is(err, net.ErrClosed) && !errors.Is(err, ErrSessionClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// idleLooks is how often onIdle looks, in the time that it is about.
const idleLooks = 4

// onIdle calls f once count has stayed the same for d, or up to a quarter longer.
func onIdle(count *atomic.Int64, d time.Duration, f func()) (stop func()) {
	var mu sync.Mutex
	var timer *time.Timer
	var stopped bool
	last, same := count.Load(), 0
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(d/idleLooks, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		now := count.Load()
		if same++; now != last {
			last, same = now, 0
		}
		if same >= idleLooks {
			f()
			return
		}
		timer.Reset(d / idleLooks)
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}
