package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

// notSentLowat bounds what the kernel holds unsent of a session: bytes there
// can no longer be overtaken by a small frame.
const notSentLowat = 128 << 10

// congestion is what sends at the pace of the path where others take each lost packet
// for a full one: at 20 ms and one per cent, a hundred times as fast (docs/adr/0015).
const congestion = "bbr"

// Tune sets TCP_NODELAY, TCP_NOTSENT_LOWAT and, where the kernel has and grants it,
// congestion control by BBR on the TCP socket under conn, if there is one. NewSession
// does it; it is for sockets that NewSession cannot see, under wrappers without
// NetConn. Failing is harmless and silent.
func Tune(conn net.Conn) {
	raw := socketOf(conn)
	if raw == nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
	})
}

// datagramBuffer is what a relay's socket may hold of datagrams that have come: the
// default is used up in 20 ms at 50 Mbit/s, less than a busy machine may take to run
// the reader.
const datagramBuffer = 4 << 20

// tuneDatagrams lets the socket under conn hold more of what has come: beyond
// net.core.rmem_max only with NET_ADMIN.
func tuneDatagrams(conn net.Conn) {
	raw := socketOf(conn)
	if raw == nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, datagramBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, datagramBuffer)
		}
	})
}
