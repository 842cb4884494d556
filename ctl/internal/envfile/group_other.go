//go:build !unix

package envfile

import "syscall"

func ownGroup() *syscall.SysProcAttr { return nil }
