package files

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// Errno is the number under which an error crosses the wire, 0 for nil.
func Errno(err error) syscall.Errno {
	var n unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &n):
		return n
	case errors.Is(err, fs.ErrClosed):
		return unix.EBADF
	case errors.Is(err, context.Canceled):
		return unix.EINTR
	}
	return unix.EIO
}

// unwrap leaves the errno of an error of package os.
func unwrap(err error) error {
	if err == nil {
		return nil
	}
	return Errno(err)
}
