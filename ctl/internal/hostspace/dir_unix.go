//go:build unix

package hostspace

import (
	"fmt"
	"os"
	"syscall"
)

// private is nil for a directory that is this user's, and that nobody else enters.
func private(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || fi.Mode().Perm()&0o077 != 0 || ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of this user's alone (mode 0700): keys would lie in it", dir)
	}
	return nil
}

// detached is a process that outlives ctl and its terminal.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
