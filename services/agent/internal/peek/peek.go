// Package peek reads what comes first over a connection without taking it from
// who carries the connection on.
package peek

import (
	"io"
	"net"

	"berth.dev/tunnel"
)

// End is a connection that ends its two directions on their own: a TCP
// connection, or a stream of a tunnel.
type End interface {
	net.Conn
	CloseWrite() error
}

// Conn is an End of which some has been read ahead. Reading ahead and reading
// are one goroutine's at a time.
type Conn struct {
	End
	ahead []byte
}

// New is a connection of which nothing has been read.
func New(e End) *Conn { return &Conn{End: e} }

// More reads more ahead, as much as has come.
func (c *Conn) More() error {
	buf := make([]byte, 2048)
	n, err := c.End.Read(buf)
	c.ahead = append(c.ahead, buf[:n]...)
	return err
}

// Ahead is what has been read ahead; it is not to be changed.
func (c *Conn) Ahead() []byte { return c.ahead }

// Whole is the connection to carry on with, from its beginning: the end itself
// where nothing was read ahead, so that sockets are spliced.
func (c *Conn) Whole() End {
	if len(c.ahead) == 0 {
		return c.End
	}
	return c
}

// Read returns first what was read ahead.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.End.Read(b)
}

// WriteTo hides the end's own, which knows nothing of what was read ahead.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.ahead)
	c.ahead = c.ahead[n:]
	if err != nil {
		return int64(n), err
	}
	m, err := io.Copy(w, c.End)
	return int64(n) + m, err
}

// Reset ends both directions at once, so that the peer sees it.
func (c *Conn) Reset(code tunnel.Code) {
	switch e := c.End.(type) {
	case interface{ Reset(tunnel.Code) }:
		e.Reset(code)
	case interface{ SetLinger(int) error }:
		_ = e.SetLinger(0) // makes Close send RST
	}
	_ = c.Close()
}
