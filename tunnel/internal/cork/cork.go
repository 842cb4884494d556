// Package cork makes TLS cheaper to write: crypto/tls makes one system call
// per record of 16 KiB, in each direction; with a Socket under it and a Conn
// over it, it makes one per batch.
//
//	socket := cork.New(tcp)
//	conn := cork.Over(tls.Client(socket, config), socket)
//	conn.WriteBuffers(bufs) // any number of records, one write(2)
//
// Nothing is ever held back between calls: outside of WriteBuffers and Write
// of a Conn, a Socket passes on every write as it comes.
package cork

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"sync"

	"berth.dev/tunnel/internal/sock"
)

const (
	// flushAt bounds what is held, so that encryption overlaps with sending.
	flushAt = 256 << 10
	// readBuffer holds several records of a burst.
	readBuffer = 64 << 10
	// record is the most plaintext in a TLS record (RFC 8446 5.1).
	record = 16 << 10
)

// Socket is a connection whose writes can be held and sent as one. Reads may not be
// concurrent with each other.
type Socket struct {
	net.Conn
	rw io.ReadWriter // the same
	r  *bufio.Reader

	mu   sync.Mutex
	held bool
	buf  []byte
}

// New wraps conn.
func New(conn net.Conn) *Socket {
	s := &Socket{Conn: conn, rw: conn}
	if t := sock.Of(conn); t != nil {
		s.rw = t
	}
	s.r = bufio.NewReaderSize(s.rw, readBuffer)
	return s
}

// NetConn returns the wrapped connection.
func (s *Socket) NetConn() net.Conn { return s.Conn }

func (s *Socket) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *Socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return s.rw.Write(p)
	}
	s.buf = append(s.buf, p...)
	if len(s.buf) >= flushAt {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// CloseWrite sends FIN if the connection can.
func (s *Socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return net.ErrClosed
}

func (s *Socket) hold() {
	s.mu.Lock()
	s.held = true
	s.mu.Unlock()
}

func (s *Socket) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	return s.flush()
}

func (s *Socket) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.rw.Write(s.buf)
	s.buf = s.buf[:0]
	if cap(s.buf) > 2*flushAt {
		s.buf = nil
	}
	return err
}

// Conn is a TLS connection over a Socket. Write and WriteBuffers may not be
// called concurrently with each other; all else as in net.Conn.
type Conn struct {
	*tls.Conn
	socket *Socket
}

// Over returns conn as a Conn; socket is what conn was made over.
func Over(conn *tls.Conn, socket *Socket) *Conn { return &Conn{conn, socket} }

// NetConn returns the Socket.
func (c *Conn) NetConn() net.Conn { return c.socket }

func (c *Conn) Write(p []byte) (int, error) {
	if len(p) <= record {
		return c.Conn.Write(p)
	}
	c.socket.hold()
	n, err := c.Conn.Write(p)
	if ferr := c.socket.release(); err == nil {
		err = ferr
	}
	return n, err
}

// WriteBuffers writes all of bufs with as few system calls as that takes.
func (c *Conn) WriteBuffers(bufs net.Buffers) error {
	c.socket.hold()
	var err error
	for _, b := range bufs {
		if _, err = c.Conn.Write(b); err != nil {
			break
		}
	}
	if ferr := c.socket.release(); err == nil {
		err = ferr
	}
	return err
}
