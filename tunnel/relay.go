package tunnel

import (
	"io"
	"net"
	"time"
)

// HalfCloser is an end of Relay: a *Stream or a *net.TCPConn, or anything that
// can end its two directions on its own.
type HalfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Relay copies both ways between a and b.
func Relay(a, b HalfCloser) (sent, received int64, err error) { return 0, 0, errTODO }

// RelayPackets copies datagrams both ways between a packet stream and conn (a
// connected UDP socket, say: one Read or Write is one datagram), until either
// ends or both are silent for idle.
func RelayPackets(s *Stream, conn net.Conn, idle time.Duration) (sent, received int64, err error) {
	return 0, 0, errTODO
}
