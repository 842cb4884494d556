//go:build !unix

package hostspace

import (
	"errors"
	"syscall"
)

func private(string) error { return errors.ErrUnsupported }

func detached() *syscall.SysProcAttr { return nil }
