package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrSessionClosed is the error of a session, and of its streams, after
	// this end closed it. It matches net.ErrClosed.
	ErrSessionClosed = fmt.Errorf("tunnel session is closed: %w", net.ErrClosed)
	// ErrClosedByPeer is matched by the error of a session that the far side
	// closed in good order; see CloseWithError for the message.
	ErrClosedByPeer = errors.New("tunnel session was closed by the far side")
	// ErrDeadPeer is the error of a session whose far side fell silent.
	ErrDeadPeer = errors.New("tunnel connection lost: no sign of life from the far side")
	// ErrExhausted is returned by Open when the session has used up its
	// stream numbers (2^31 opens): dial a new one.
	ErrExhausted = errors.New("tunnel session has no stream numbers left")
)

const (
	// closeTimeout is how long Close may take to send what is queued and to
	// say goodbye.
	closeTimeout = time.Second
	// readBuffer is what one read of the connection asks for while between
	// frames; payloads beyond it are read straight into their chunk.
	readBuffer = 32 << 10
	// keepAliveMisses is how many pings may go unanswered.
	keepAliveMisses = 3
	// rttSampleEvery is how often bulk transfers refresh the RTT estimate.
	rttSampleEvery = 250 * time.Millisecond
)

// Session multiplexes streams over one reliable connection. Its methods may be
// called by any number of goroutines.
type Session struct {
	conn   net.Conn
	client bool
	cfg    Config
	pool   pool
	w      *writer
	br     *bufio.Reader
	accept chan *Request
	done   chan struct{}
	wg     sync.WaitGroup
	start  time.Time
	sent   chan struct{} // closed when the writer goroutine is through

	heard  atomic.Bool  // a frame came in since keepAlive last looked
	growth atomic.Int64 // bytes of window beyond cfg.Window, all streams

	mu        sync.Mutex
	streams   map[uint32]*Stream
	nextID    uint32 // of the next Open; 0 when used up
	peerID    uint32 // the highest the peer has used
	peerCount int    // streams opened by the peer
	err       error  // why the session ended

	rtt rttEstimate
}

// NewSession starts a session on conn, which it owns from now on. Exactly one
// end is the client; which one only matters for numbering. Both ends send
// their preface at once, and a far side of another version ends the session
// with a *VersionError.
//
// The session runs three goroutines until Close, or until conn fails.
func NewSession(conn net.Conn, client bool, cfg Config) *Session {
	cfg = cfg.withDefaults()
	Tune(conn)
	s := &Session{
		conn: conn, client: client, cfg: cfg,
		br:      bufio.NewReaderSize(conn, readBuffer),
		accept:  make(chan *Request, cfg.AcceptBacklog),
		done:    make(chan struct{}),
		sent:    make(chan struct{}),
		start:   time.Now(),
		streams: make(map[uint32]*Stream),
		nextID:  2,
	}
	if client {
		s.nextID = 1
	}
	s.w = newWriter(s, conn)
	s.w.control = s.appendPing(appendPreface(nil))
	s.wg.Go(func() {
		defer close(s.sent)
		if err := s.w.run(); err != nil {
			s.writeFailed(err)
		}
	})
	s.wg.Go(func() { s.fail(s.readLoop()) })
	if cfg.KeepAlive > 0 {
		s.wg.Go(s.keepAlive)
	}
	return s
}

func wrapLost(verb string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // an EOF would read as a stream's orderly end
	}
	return fmt.Errorf("tunnel connection lost: %s: %w", verb, err)
}

// Open asks the far side for a stream and waits for its answer. It returns a
// *RefusedError when the far side refuses, the context's cause when that ends
// first, or the session's error.
func (s *Session) Open(ctx context.Context, h Header) (*Stream, error) {
	st, err := s.open(ctx, h, nil, false)
	if err != nil {
		return nil, fmt.Errorf("open %v: %w", h, err)
	}
	return st, nil
}

// Begin is the first half of Open: it asks and does not wait for the answer, for
// which there is Wait. The far side's Accept has what was begun in that order.
func (s *Session) Begin(h Header) (Opening, error) {
	st, err := s.begin(h, nil, false)
	if err != nil {
		return Opening{}, fmt.Errorf("open %v: %w", h, err)
	}
	return Opening{st}, nil
}

// Opening is a stream that was asked for; Wait has to be called once.
type Opening struct{ st *Stream }

// Wait is the second half of Open.
func (o Opening) Wait(ctx context.Context) (*Stream, error) {
	if err := o.st.waitOpened(ctx); err != nil {
		return nil, fmt.Errorf("open %v: %w", o.st.header, err)
	}
	return o.st, nil
}

// open is Open with the stream's first bytes, at most maxEarly, riding along;
// fin says that there will be no more.
func (s *Session) open(ctx context.Context, h Header, early []byte, fin bool) (*Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	st, err := s.begin(h, early, fin)
	if err != nil {
		return nil, err
	}
	if err := st.waitOpened(ctx); err != nil {
		return nil, err
	}
	return st, nil
}

func (s *Session) begin(h Header, early []byte, fin bool) (*Stream, error) {
	st := newStream(s, h, true)
	st.opened = make(chan struct{})
	st.early = len(early)
	st.finQueued, st.finSent = fin, fin
	if fin {
		st.ends.Store(sendEnded)
	}
	frame, err := appendOpen(nil, 0, st.window, h, early, fin)
	if err != nil {
		return nil, err
	}
	// Numbering and queueing are one step, so that OPENs leave in order.
	s.w.mu.Lock()
	if err := s.number(st); err != nil {
		s.w.mu.Unlock()
		return nil, err
	}
	putFrameHeader(frame, frameOpen, fin, len(frame)-frameHeaderSize, st.id)
	s.w.control = append(s.w.control, frame...)
	s.w.kick(true)
	return st, nil
}

func (s *Session) number(st *Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.nextID == 0 {
		return ErrExhausted
	}
	st.id = s.nextID
	if s.nextID > math.MaxUint32-2 {
		s.nextID = 0
	} else {
		s.nextID += 2
	}
	s.streams[st.id] = st
	return nil
}

// Accept waits for the far side to ask for a stream.
func (s *Session) Accept(ctx context.Context) (*Request, error) {
	select {
	case <-s.done: // do not hand out what can no longer be answered
		return nil, s.Err()
	default:
	}
	select {
	case r := <-s.accept:
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.done:
		return nil, s.Err()
	}
}

// Close sends what streams have queued, says goodbye and closes the
// connection; it takes a second at most. Streams fail with ErrSessionClosed,
// and with ErrClosedByPeer on the far side. When it returns, so have all
// goroutines of the session.
func (s *Session) Close() error { return s.shutdown(0, "") }

// CloseWithError is Close, and tells the far side why: its error matches
// ErrClosedByPeer and has err's text.
func (s *Session) CloseWithError(err error) error {
	if err == nil {
		return s.Close()
	}
	return s.shutdown(CodeOf(err), err.Error())
}

func (s *Session) shutdown(code Code, msg string) error {
	if streams, first := s.finish(ErrSessionClosed); first {
		timer := time.AfterFunc(closeTimeout, s.abort)
		defer timer.Stop()
		for _, st := range streams {
			st.sessionEnded(ErrSessionClosed)
		}
		s.w.drain(appendMessage(nil, frameGoAway, 0, code, msg))
		<-s.sent
		// Closing a socket with unread bytes resets it, and the far side
		// may lose the goodbye: so let it close first.
		if cw, ok := s.conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
			s.wg.Wait()
		}
		s.abort()
	}
	s.wg.Wait()
	return nil
}

// finish records why the session ended, if it had not yet.
func (s *Session) finish(err error) (streams []*Stream, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, false
	}
	s.err = err
	close(s.done)
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	return streams, true
}

// goodbyeWait is how long the reader may take to find, in what has already
// arrived, why the far side closed the connection.
const goodbyeWait = 100 * time.Millisecond

// writeFailed ends the session for want of a way to write. A far side that says
// goodbye and closes is often noticed first by a write: its reason lies unread in
// the reader's hands, and is worth more than "broken pipe".
func (s *Session) writeFailed(err error) {
	s.w.stop()
	select {
	case <-s.done:
	case <-time.After(goodbyeWait):
	}
	s.fail(wrapLost("write", err))
}

// fail ends the session at once.
func (s *Session) fail(err error) {
	streams, first := s.finish(err)
	s.w.stop()
	s.abort()
	if first && errors.Is(err, ErrProtocol) {
		s.cfg.Logger.Warn("tunnel session ended", "err", err)
	}
	for _, st := range streams {
		st.sessionEnded(err)
	}
}

// abort closes the connection from below, since closing TLS writes an alert,
// and that may wait for a peer that is gone.
func (s *Session) abort() {
	c := s.conn
	for {
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = inner.NetConn()
	}
	_ = c.Close()
	if c != s.conn {
		_ = s.conn.Close()
	}
}

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session ended, or nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// NumStreams returns how many streams are open, those being opened included.
func (s *Session) NumStreams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// LocalAddr returns the connection's local address.
func (s *Session) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr returns the connection's remote address; across an API server it
// says little.
func (s *Session) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// remove forgets a stream that has ended both ways.
func (s *Session) remove(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == st {
		delete(s.streams, st.id)
		if !st.opener {
			s.peerCount--
		}
		s.growth.Add(-st.growth.Swap(0))
	}
}
