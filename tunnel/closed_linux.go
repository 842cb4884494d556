package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpClose is TCP_CLOSE of the kernel's TCP states (tcp(7), include/net/tcp_states.h).
const tcpClose = 7

// closed says that the kernel holds the TCP connection under end for over: both
// ways have ended, or it was reset. False where end is no socket.
func closed(end any) bool {
	c, ok := end.(net.Conn)
	if !ok {
		return false
	}
	raw := socketOf(c)
	if raw == nil {
		return false
	}
	over := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		over = err == nil && info.State == tcpClose
	})
	return over
}
