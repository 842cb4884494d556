//go:build unix

package proclock

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Take takes the lock of the file, which is made if need be (mode 0600), and
// keeps it until Release or the process's end.
func Take(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	l := whole()
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &l)
	switch {
	case err == nil:
		return &Lock{f}, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES):
		err = ErrHeld
	}
	_ = f.Close()
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// Holder is the process that holds the lock. There is none where there is no such
// file, and the process that asks is none either: fcntl(2) does not tell it of
// itself.
func Holder(path string) (p Process, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, false, nil
	}
	if err != nil {
		return Process{}, false, fmt.Errorf("open the lock: %w", err)
	}
	defer f.Close()
	l := whole()
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &l); err != nil {
		return Process{}, false, fmt.Errorf("ask who holds %s: %w", path, err)
	}
	if l.Type == syscall.F_UNLCK {
		return Process{}, false, nil
	}
	return Process{int(l.Pid), path}, true, nil
}

// Signal sends the process a signal, or returns ErrGone. It takes hold of the
// process first (a pidfd, on Linux) and asks then whether that is still the one.
func (p Process) Signal(s os.Signal) error {
	proc, err := os.FindProcess(p.PID)
	if err != nil {
		return ErrGone
	}
	defer func() { _ = proc.Release() }()
	now, held, err := Holder(p.path)
	if err != nil {
		return err
	}
	if !held || now.PID != p.PID {
		return ErrGone
	}
	if err := proc.Signal(s); errors.Is(err, os.ErrProcessDone) {
		return ErrGone
	} else if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

func whole() syscall.Flock_t {
	return syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}
}
