//go:build unix && !linux

package sock

import "golang.org/x/sys/unix"

// Writable says, without waiting, that the socket has room.
func Writable(fd uintptr) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n == 1 && fds[0].Revents == unix.POLLOUT
}
