package hostmount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"berth.dev/bus/fault"

	"golang.org/x/sys/unix"
)

// Check tells what this machine lacks for FUSE mounts by this user.
func Check() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.FailedPrecondition, "sudo modprobe fuse", "nothing can be mounted on this machine: it has no /dev/fuse")
	case err != nil:
		return fault.New(fault.FailedPrecondition, "sudo chmod 666 /dev/fuse", "nothing can be mounted on this machine: %v", err)
	}
	_ = f.Close()
	if os.Geteuid() == 0 {
		return nil
	}
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return fault.New(fault.FailedPrecondition, "sudo apt-get install fuse3", "nothing can be mounted on this machine without root: it has no fusermount3 (package fuse3 of Debian, Ubuntu and Fedora)")
	}
	if i, err := os.Stat(path); err != nil || i.Mode()&os.ModeSetuid == 0 {
		return fault.New(fault.FailedPrecondition, "sudo chmod u+s "+path, "nothing can be mounted on this machine without root: %s does not have root's rights (set-user-ID)", path)
	}
	return nil
}

// prepare is the program's command, from memory: it is in no file that somebody
// would have to remove. done is to be called once it has been started.
func prepare(program []byte, args ...string) (cmd *exec.Cmd, done func(), err error) {
	fd, err := unix.MemfdCreate("telemount", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3 knows no MFD_EXEC, and needs none
		fd, err = unix.MemfdCreate("telemount", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make room for telemount's program: %w", err)
	}
	f := os.NewFile(uintptr(fd), "telemount")
	if _, err := f.Write(program); err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("keep telemount's program: %w", err)
	}
	cmd = exec.Command("/proc/self/fd/3", args...)
	cmd.Args[0] = "telemount"
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us; we tell it
	return cmd, func() { _ = f.Close() }, nil
}

// sourcePrefix begins the name of our mounts in the mount table.
const sourcePrefix = "berth-"

// Sweep takes away what is left of mounts whose processes are all gone, and says
// what it was. Mounts that live, and those of other users, are left alone.
func Sweep() (gone []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc(5): …, mount point (5th), options, optional fields, "-", type, source
		before, after, _ := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(before), strings.Fields(after)
		if len(l) < 5 || len(r) < 2 || r[0] != "fuse.berth" || !strings.HasPrefix(r[1], sourcePrefix) {
			continue
		}
		dir := unescape(l[4])
		if !dead(dir) {
			continue
		}
		if uerr := unmount(dir); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", dir, uerr))
			continue
		}
		if strings.HasPrefix(filepath.Base(dir), freshPrefix) {
			_ = os.Remove(dir)
		}
		gone = append(gone, dir)
	}
	return append(gone, sweepDirs()...), err
}

// dead reports whether nobody serves a mount any more. The root of ours answers
// statfs by itself, whatever is away.
func dead(dir string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN)
	case <-time.After(time.Second): // somebody else's of the same name
		return false
	}
}

func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH)
	if errors.Is(err, unix.EPERM) {
		if out, ferr := exec.Command("fusermount3", "-u", "-z", dir).CombinedOutput(); ferr != nil {
			return fmt.Errorf("%w: %s", ferr, strings.TrimSpace(string(out)))
		}
		return nil
	}
	return err
}

// sweepDirs removes empty directories at which nobody is about to mount: who is
// holds their lock.
func sweepDirs() (gone []string) {
	all, err := filepath.Glob(filepath.Join(home(), freshPrefix+"*"))
	if err != nil {
		return nil
	}
	for _, d := range all {
		f, err := os.Open(d)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && os.Remove(d) == nil {
			gone = append(gone, d)
		}
		_ = f.Close()
	}
	return gone
}

// unescape undoes what the mount table does to blanks.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
