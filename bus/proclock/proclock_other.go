//go:build !unix

package proclock

import (
	"errors"
	"os"
)

// Take takes the lock of the file.
func Take(string) (*Lock, error) { return nil, errors.ErrUnsupported }

// Holder is the process that holds the lock.
func Holder(string) (Process, bool, error) { return Process{}, false, nil }

// Signal sends the process a signal.
func (Process) Signal(os.Signal) error { return ErrGone }
