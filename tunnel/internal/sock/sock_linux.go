package sock

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a TCP connection. One goroutine at a time may read, and one may write.
type Socket struct {
	conn        *net.TCPConn
	raw         syscall.RawConn
	read, write call
}

// call is a read or write in progress.
type call struct {
	b    []byte
	n    uintptr
	err  syscall.Errno
	make func(fd uintptr) (done bool) // made once, so that no call allocates
}

// prepare makes the call; wait says that it is repeated when the socket is ready, if it
// is not.
func (c *call) prepare(trap uintptr, wait bool) {
	c.make = func(fd uintptr) bool {
		for {
			c.n, _, c.err = syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.b))), uintptr(len(c.b)))
			if c.err != syscall.EINTR {
				return !wait || c.err != syscall.EAGAIN
			}
		}
	}
}

// Of returns conn's socket; nil unless conn is a *net.TCPConn, on Linux.
func Of(conn net.Conn) *Socket {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &Socket{conn: c, raw: raw}
	s.read.prepare(syscall.SYS_READ, true)
	s.write.prepare(syscall.SYS_WRITE, false)
	return s
}

// Read is that of net.Conn.
func (s *Socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := &s.read
	c.b = p
	err := s.raw.Read(c.make)
	c.b = nil
	switch {
	case err != nil:
		return 0, err
	case c.err != 0:
		return 0, s.failed("read", c.err)
	case c.n == 0:
		return 0, io.EOF
	}
	return int(c.n), nil
}

// TryWrite writes as much of p as the socket takes at once. Less than all is no error.
func (s *Socket) TryWrite(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := &s.write
	c.b = p
	err := s.raw.Write(c.make)
	c.b = nil
	switch {
	case err != nil:
		return 0, err
	case c.err == syscall.EAGAIN:
		return 0, nil
	case c.err != 0:
		return 0, s.failed("write", c.err)
	}
	return int(c.n), nil
}

// Write is that of net.Conn.
func (s *Socket) Write(p []byte) (n int, err error) {
	if len(p) <= announced {
		if n, err = s.TryWrite(p); err != nil || n == len(p) {
			return n, err
		}
	}
	m, err := s.conn.Write(p[n:])
	return n + m, err
}

// Writable says, without waiting, that the socket has room.
func Writable(fd uintptr) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	var now unix.Timespec
	n, _, err := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return err == 0 && n == 1 && fds[0].Revents == unix.POLLOUT
}

// failed is a failed call's error as net has it.
func (s *Socket) failed(op string, err syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: s.conn.LocalAddr(), Addr: s.conn.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}
