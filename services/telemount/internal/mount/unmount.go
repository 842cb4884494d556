package mount

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Unmount takes dir out of the mount table, lazily if it is busy; where this user
// may not, fusermount3 does, which may take out what it mounted for him. What is
// not mounted is no error.
func Unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EPERM) {
		return fusermount("-u", "-z", dir)
	}
	if err != nil {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) { // it is gone already
		return nil
	}
	return err
}

func fusermount(args ...string) error {
	name, err := exec.LookPath("fusermount3")
	if err != nil {
		name = "fusermount"
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "not found in /etc/mtab") && !strings.Contains(string(out), "Invalid argument") {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
