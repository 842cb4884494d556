//go:build unix

package tunnel

import (
	"net"
	"syscall"

	"berth.dev/tunnel/internal/sock"

	"golang.org/x/sys/unix"
)

// socketOf finds the socket under c, through TLS and other wrappers that have
// NetConn, or returns nil.
func socketOf(c net.Conn) syscall.RawConn {
	for c != nil {
		if sc, ok := c.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = inner.NetConn()
	}
	return nil
}

// readableWait returns a function that waits until the socket under c has something
// to read, or an error; nil when there is no socket to ask.
func readableWait(c net.Conn) func() {
	raw := socketOf(c)
	if raw == nil {
		return nil
	}
	var fds [1]unix.PollFd
	ready := func(fd uintptr) bool {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		n, err := unix.Poll(fds[:], 0)
		return err != nil || n == 1 // Read tells what is the matter
	}
	return func() { _ = raw.Read(ready) }
}

// writableProbe returns a function that says, without blocking, whether the
// socket under c has room; nil when there is no socket to ask.
func writableProbe(c net.Conn) func() bool {
	raw := socketOf(c)
	if raw == nil {
		return nil
	}
	var ready bool
	poll := func(fd uintptr) { ready = sock.Writable(fd) }
	return func() bool {
		ready = false
		return raw.Control(poll) == nil && ready
	}
}
