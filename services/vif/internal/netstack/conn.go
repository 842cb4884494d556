package netstack

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"syscall"

	"berth.dev/tunnel"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// tcpConn is the application's end of a TCP flow, for tunnel.Relay: it ends
// either direction on its own, and a reset is told from an end. Unlike gonet's
// its errors match errno values. One goroutine may read while another writes.
type tcpConn struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

var (
	_ tunnel.HalfCloser = (*tcpConn)(nil)
	_ tunnel.TryWriter  = (*tcpConn)(nil)
)

// Read waits for data. io.EOF is the application's FIN.
func (c *tcpConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if _, ok := err.(*tcpip.ErrWouldBlock); ok {
		entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
		c.wq.EventRegister(&entry)
		defer c.wq.EventUnregister(&entry)
		for {
			if n, err = c.read(p); !blocked(err) {
				break
			}
			<-ready
		}
	}
	if n > 0 {
		c.ep.ModerateRecvBuf(n)
	}
	return n, goError("read", err)
}

func (c *tcpConn) read(p []byte) (int, tcpip.Error) {
	w := tcpip.SliceWriter(p)
	res, err := c.ep.Read(&w, tcpip.ReadOptions{})
	return res.Count, err
}

// Write waits until netstack has taken all of p.
func (c *tcpConn) Write(p []byte) (int, error) {
	var r bytes.Reader
	var ready chan struct{}
	done := 0
	for done < len(p) {
		r.Reset(p[done:])
		n, err := c.ep.Write(&r, tcpip.WriteOptions{})
		done += int(n)
		if !blocked(err) {
			if err != nil {
				return done, goError("write", err)
			}
			continue
		}
		if ready == nil {
			var entry waiter.Entry
			entry, ready = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
			c.wq.EventRegister(&entry)
			defer c.wq.EventUnregister(&entry)
			continue // room may have come up before we listened
		}
		<-ready
	}
	return done, nil
}

// TryWrite writes what netstack takes of p.
func (c *tcpConn) TryWrite(p []byte) (int, error) {
	n, err := c.ep.Write(bytes.NewReader(p), tcpip.WriteOptions{})
	if blocked(err) {
		err = nil
	}
	return int(n), goError("write", err)
}

// CloseWrite sends FIN.
func (c *tcpConn) CloseWrite() error { return goError("close", c.ep.Shutdown(tcpip.ShutdownWrite)) }

// Close ends both directions.
func (c *tcpConn) Close() error {
	c.ep.Close()
	return nil
}

// Reset sends RST and drops what is queued.
func (c *tcpConn) Reset(tunnel.Code) { c.ep.Abort() }

func blocked(err tcpip.Error) bool {
	_, ok := err.(*tcpip.ErrWouldBlock)
	return ok
}

// goError is err as the standard library would have it.
func goError(op string, err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	case *tcpip.ErrClosedForSend:
		return fmt.Errorf("%s: %w", op, syscall.EPIPE)
	case *tcpip.ErrConnectionReset:
		return fmt.Errorf("%s: %w", op, syscall.ECONNRESET)
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return fmt.Errorf("%s: %w", op, syscall.ECONNABORTED)
	case *tcpip.ErrConnectionRefused:
		return fmt.Errorf("%s: %w", op, syscall.ECONNREFUSED)
	case *tcpip.ErrTimeout:
		return fmt.Errorf("%s: %w", op, syscall.ETIMEDOUT)
	case *tcpip.ErrNotConnected, *tcpip.ErrInvalidEndpointState:
		return fmt.Errorf("%s: %w", op, net.ErrClosed)
	}
	return fmt.Errorf("%s: %s", op, err)
}
