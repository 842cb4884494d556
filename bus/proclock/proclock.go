// Package proclock is a file by which a process of this machine is found again:
// the process holds the file's lock for as long as it lives, and the kernel says
// which process that is. Nothing has to be removed after a kill -9, and no number
// that another process may have by now is ever trusted.
//
//	l, err := proclock.Take(path)        // in the process; ErrHeld if another has it
//	p, ok, err := proclock.Holder(path)  // in another one
//	err = p.Signal(syscall.SIGTERM)      // reaches that process, or nobody
//
// The lock is a POSIX one (fcntl(2)), which is why the kernel knows its holder. Two
// things follow: a process must not open the file a second time while it holds
// the lock, since closing that one would give it up, and a child does not inherit it.
package proclock

import (
	"errors"
	"io/fs"
	"os"
)

// ErrHeld says that another process holds the lock.
var ErrHeld = errors.New("another process holds the lock")

// ErrGone says that the process does not hold the lock any more.
var ErrGone = errors.New("the process has ended")

// Lock is a lock that this process holds.
type Lock struct{ f *os.File }

// Release gives the lock up. The file stays: removing it would let two processes
// hold the lock of one path.
func (l *Lock) Release() { _ = l.f.Close() }

// Is reports whether the lock is that of this file, and not of one that had its
// name before.
func (l *Lock) Is(file fs.FileInfo) bool {
	mine, err := l.f.Stat()
	return err == nil && os.SameFile(mine, file)
}

// Process is one that held the lock of a file when it was asked for.
type Process struct {
	PID  int
	path string
}
