package split

import (
	"bytes"
	"io"
	"net"
	"net/http/httptrace"
	"os"
	"strconv"
	"sync"
	"time"

	"berth.dev/services/agent/internal/peek"
)

// endWait is how long a client's end is kept from the far one: other requests that
// it has sent before may still want that connection.
const endWait = 500 * time.Millisecond

// inbound is a client's connection as net/http's server has it.
//
// A client may end its half after a request (HTTP/1 only) and still wait for the
// answer; the server would take that for the client's being gone. So the end is
// passed on to where the request went, as it would be without us, and held back
// from the server until the request is over.
type inbound struct {
	*peek.Conn
	closed chan struct{}
	once   sync.Once

	multi bool // it speaks HTTP/2, where streams end and not the connection

	mu        sync.Mutex
	busy      bool          // with a request by HTTP/1
	far       *far          // to which it goes
	made      bool          // all of it has been read
	wrote     bool          // and written
	ended     bool          // the client has ended its half
	interrupt chan struct{} // closed by a deadline in the past
}

func newInbound(c *peek.Conn) *inbound {
	return &inbound{Conn: c, multi: bytes.HasPrefix(c.Ahead(), []byte(preface)), closed: make(chan struct{}), interrupt: make(chan struct{})}
}

// begin is called before a request by HTTP/1 is carried on, end after it.
func (c *inbound) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy, c.far, c.made, c.wrote = true, nil, false, false
}

func (c *inbound) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy, c.far, c.wrote = false, nil, false
}

// trace learns where the request goes and when all of it has been made.
func (c *inbound) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.far, _ = i.Conn.(*far)
		},
		WroteRequest: func(httptrace.WroteRequestInfo) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.made = true
		},
	}
}

// written tells that something was written to a far connection: the last of a
// request when all of it has been made, for only then net/http flushes it.
func (c *inbound) written(f *far) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.far == f && c.made {
		c.wrote = true
		c.passEnd()
	}
}

// passEnd ends our half of the far connection where the client has ended its own
// after all of its request; c.mu is held.
func (c *inbound) passEnd() {
	if c.ended && c.wrote {
		_ = c.far.CloseWrite()
	}
}

// Read holds back the end of the client's half while a request is under way of
// which all has been read. It is known by what net/http then reads: one byte, to
// notice that the client goes. It reads more than that of all else.
func (c *inbound) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != io.EOF || n > 0 || len(b) > 1 || c.multi {
		return n, err
	}
	c.mu.Lock()
	interrupt := c.interrupt
	c.mu.Unlock()
	wait := time.NewTimer(endWait)
	defer wait.Stop()
	for {
		select {
		case <-interrupt:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		case <-wait.C:
			c.mu.Lock()
			c.ended = true
			c.passEnd()
			c.mu.Unlock()
		}
	}
}

// SetReadDeadline also interrupts a Read that holds back the end.
func (c *inbound) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	select {
	case <-c.interrupt:
		c.interrupt = make(chan struct{})
	default:
	}
	if !t.IsZero() && t.Before(time.Now()) {
		close(c.interrupt)
	}
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *inbound) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// Close ends the connection.
func (c *inbound) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// closeIdle ends the connection between two requests by HTTP/1.
func (c *inbound) closeIdle() {
	c.mu.Lock()
	idle := !c.busy && !c.multi && !c.ended
	c.mu.Unlock()
	if idle {
		_ = c.Close()
	}
}

// once is a listener of one connection, which ends with it.
type once struct {
	conn  *inbound
	taken bool
}

func (l *once) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

func (l *once) Close() error   { return nil }
func (l *once) Addr() net.Addr { return l.conn.LocalAddr() }

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

func atoi(s string) uint16 {
	n, _ := strconv.ParseUint(s, 10, 16) // of our own making
	return uint16(n)
}
