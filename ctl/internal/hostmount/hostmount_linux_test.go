package hostmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"

	"golang.org/x/sys/unix"
)

// mount mounts what nobody serves; it is dead once the file is closed.
func mount(t *testing.T, source, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	if err := unix.Mount(source, dir, "fuse.berth", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", f.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return f
}

func TestSweep(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dead, empty, locked := Fresh(), Fresh(), Fresh()
	own, plugin := filepath.Join(t.TempDir(), "with a blank"), filepath.Join(t.TempDir(), "plugin")
	for _, d := range []string{dead, empty, locked, own, plugin} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := os.Open(locked)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	mount(t, "berth-e1", dead).Close()
	mount(t, "berth-e2", own).Close()
	mount(t, "telemount", plugin).Close() // the volume plugin's: not ours to take away
	gone, err := Sweep()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(gone)
	want := []string{dead, own, empty}
	slices.Sort(want)
	if !slices.Equal(gone, want) {
		t.Errorf("swept %v, want %v", gone, want)
	}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for d, left := range map[string]bool{dead: false, empty: false, locked: true, own: true, plugin: true} {
		if _, err := os.Lstat(d); errors.Is(err, os.ErrNotExist) == left {
			t.Errorf("%s: %v", d, err)
		}
	}
	if strings.Contains(string(b), dead) || !strings.Contains(string(b), plugin) {
		t.Errorf("mounted are\n%s", b)
	}
	if gone, err := Sweep(); len(gone) > 0 || err != nil {
		t.Errorf("a second sweep: %v, %v", gone, err)
	}
}

func TestCheckDir(t *testing.T) {
	full := t.TempDir()
	file := filepath.Join(full, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, ok := range map[string]bool{t.TempDir(): true, filepath.Join(full, "new"): true, full: false, file: false, filepath.Join(full, "no", "such"): false} {
		if err := CheckDir(dir); (err == nil) != ok || err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// A program that is none, or ends at once, is an error that tells.
func TestStart(t *testing.T) {
	for _, program := range []string{"not a program", "#!/bin/sh\necho it does not work >&2\nexit 1\n"} {
		if m, err := Start([]byte(program), Fresh()); err == nil || fault.From(err).Hint == "" {
			t.Errorf("%q: %v, %v", program, m, err)
		}
	}
}
