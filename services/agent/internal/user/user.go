// Package user makes the process become the user of the container beside which
// it runs, and keep the one right that diverting traffic needs.
//
// Kubernetes gives added capabilities to root only (it sets no ambient ones), so
// an agent that diverts starts as root. Before it does anything else it becomes
// the container's user, so that what it reads and writes in the container's
// volumes is what the app itself could.
package user

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Become makes all threads of the process those of who ("uid:gid"), with
// NET_ADMIN and no other capability. Supplementary groups, which are the pod's,
// stay.
func Become(who string) error {
	u, g, _ := strings.Cut(who, ":")
	uid, err := strconv.ParseUint(u, 10, 31)
	if err != nil {
		return fmt.Errorf("user %q is not like 1000:1000", who)
	}
	gid, err := strconv.ParseUint(g, 10, 31)
	if err != nil {
		return fmt.Errorf("user %q is not like 1000:1000", who)
	}
	if _, _, no := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); no != 0 {
		return fmt.Errorf("keep capabilities: %w", no)
	}
	if err := syscall.Setresgid(int(gid), int(gid), int(gid)); err != nil {
		return fmt.Errorf("become group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(int(uid), int(uid), int(uid)); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
	if _, _, no := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); no != 0 {
		return fmt.Errorf("keep NET_ADMIN: %w", no)
	}
	return nil
}
