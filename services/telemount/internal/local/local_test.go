package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus/command"
	"berth.dev/services/telemount/internal/doortest"
	"berth.dev/services/telemount/internal/mount"
	"berth.dev/tunnel"

	"golang.org/x/sys/unix"
)

// The test's own program is telemount here: its guard is started as that.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case GuardWord:
			if err := Guard(os.Args[2:], os.Stdin); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case "mount":
			if err := Run(context.Background(), os.Args[2], os.Stdin, os.Stdout, "test", slog.New(slog.DiscardHandler)); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// child is a process that mounts.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	pin tunnel.Pin
}

// nobody is a user who may mount by fusermount3 only.
var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

func start(t *testing.T, dir string, who *syscall.Credential) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command("/proc/self/exe", "mount", dir)}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.in.Close(); _ = c.cmd.Process.Kill(); _ = c.cmd.Wait() })
	var h Hello
	if c.line(&h); h.Pin == "" {
		t.Fatal("no pin")
	}
	c.pin = tunnel.Pin(h.Pin)
	return c
}

func (c *child) line(v any) {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatal("it has ended: ", c.out.Err())
	}
	if err := json.Unmarshal(c.out.Bytes(), v); err != nil {
		c.t.Fatal(err, c.out.Text())
	}
}

// mount has it mount all of served's volumes.
func (c *child) mount(served map[string]bool) (answer struct {
	Mounted
	Failed
}) {
	c.t.Helper()
	var paths []string
	for p := range served {
		paths = append(paths, p)
	}
	d := doortest.Serve(c.t, c.pin, paths...)
	v := command.RemoteVolumes{Engagement: d.Engagement, Door: d.Door, DoorPin: d.Pin}
	for _, p := range paths {
		v.Mounts = append(v.Mounts, command.RemoteVolume{Path: p, ReadOnly: served[p]})
	}
	if err := json.NewEncoder(c.in).Encode(v); err != nil {
		c.t.Fatal(err)
	}
	c.line(&answer)
	return answer
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 10 s: " + what)
		}
	}
}

func gone(dir string) func() bool {
	return func() bool {
		_, err := os.Lstat(dir)
		b, _ := os.ReadFile("/proc/self/mountinfo")
		return errors.Is(err, os.ErrNotExist) && !strings.Contains(string(b), dir)
	}
}

func needFUSE(t *testing.T) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	} else {
		f.Close()
	}
}

// as is who uses the mount: another user, root too, may not.
func as(who *syscall.Credential, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestLocal(t *testing.T) {
	needFUSE(t)
	for name, who := range map[string]*syscall.Credential{"root": nil, "a user": nobody} {
		t.Run(name, func(t *testing.T) {
			if out, err := as(who, "sh", "-c", `test -u "$(command -v fusermount3)" && exec 3<>/dev/fuse`); err != nil {
				t.Skip("needs fusermount3 with root's rights, and a /dev/fuse that is everybody's: ", out)
			}
			served, base := t.TempDir(), t.TempDir()
			for _, d := range []string{served, base, filepath.Dir(served), filepath.Dir(base)} {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			data, inner, config, file := served+"/data", served+"/data/a/inner", served+"/etc/config", served+"/etc/one.conf"
			for _, d := range []string{inner, config} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// Another file system, as in a pod: the same file numbers again.
			if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(inner, unix.MNT_DETACH) })
			for p, text := range map[string]string{data + "/f": "data", inner + "/f": "inner", config + "/f": "config", file: "file"} {
				if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			dir := base + "/m"
			c := start(t, dir, who)
			if a := c.mount(map[string]bool{data: false, inner: true, config: true, file: true}); a.Error != "" || len(a.Mounted.Mounted) != 4 {
				t.Fatalf("%+v", a)
			}
			const tree = `cd "$1" && find . -type f | sort | while read -r f; do echo "$f $(cat "$f")"; done`
			want, err := as(nil, "sh", "-c", tree, "sh", served)
			if err != nil {
				t.Fatal(err, want)
			}
			if got, err := as(who, "sh", "-c", tree, "sh", dir+served); err != nil || got != want || strings.Count(got, "\n") != 4 {
				t.Errorf("%v: mounted\n%s\nserved\n%s", err, got, want)
			}
			for _, x := range []struct{ name, script, want string }{
				{"write", `echo new > "$1"/g && cat "$1"/g`, "new\n"},
				{"an inner volume is read-only", `echo new > "$1"/a/inner/g`, "Read-only file system"},
				{"test -w tells", `test -w "$1" && ! test -w "$1"/a/inner && echo yes`, "yes\n"},
				{"no rename between volumes by itself", `mv "$1"/f "$1"/a/inner/h`, "Read-only file system"},
				{"nobody removes a mount", `rmdir "$1"/a/inner`, "Device or resource busy"},
			} {
				if got, _ := as(who, "sh", "-c", x.script, "sh", dir+data); !strings.Contains(got, x.want) {
					t.Errorf("%s: %q", x.name, got)
				}
			}
			if b, err := os.ReadFile(data + "/g"); err != nil || string(b) != "new\n" {
				t.Errorf("%q, %v", b, err)
			}
			if got, err := as(&syscall.Credential{Uid: 12345, Gid: 12345}, "ls", dir); err == nil {
				t.Errorf("another user sees %q", got)
			}
			if err := os.WriteFile(data+"/a/later", []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a change is seen", func() bool { _, err := as(who, "cat", dir+data+"/a/later"); return err == nil })
			c.in.Close()
			eventually(t, "all is gone", gone(dir))
			if err := c.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// It is killed while a file is open: the guard unmounts, and nothing hangs.
func TestKilled(t *testing.T) {
	needFUSE(t)
	served, dir := t.TempDir(), t.TempDir()+"/m"
	if err := os.WriteFile(served+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, dir, nil)
	if a := c.mount(map[string]bool{served: false}); a.Error != "" {
		t.Fatal(a.Error)
	}
	f, err := os.OpenFile(dir+served+"/f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is gone", gone(dir))
	if _, err := f.WriteAt([]byte("y"), 0); err == nil {
		t.Error("a write to a mount that is gone succeeds")
	}
}

// A parent that is gone before there is an engagement leaves nothing; neither
// does what cannot be mounted.
func TestNothingToMount(t *testing.T) {
	needFUSE(t)
	served, dir := t.TempDir(), t.TempDir()+"/m"
	c := start(t, dir, nil)
	c.in.Close()
	eventually(t, "all is gone", gone(dir))

	c = start(t, dir, nil)
	d := doortest.Serve(t, c.pin, served)
	d.Pin = string(c.pin) // a stranger at the door
	if err := json.NewEncoder(c.in).Encode(command.RemoteVolumes{Engagement: "e", Door: d.Door, DoorPin: d.Pin, Mounts: []command.RemoteVolume{{Path: served}}}); err != nil {
		t.Fatal(err)
	}
	var f Failed
	if c.line(&f); f.Error == "" {
		t.Error("a stranger's volumes were mounted")
	}
	eventually(t, "all is gone", gone(dir))

	kept := t.TempDir()
	if err := os.WriteFile(kept+"/mine", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), kept, strings.NewReader(""), io.Discard, "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Error(err)
	}
	empty := t.TempDir()
	if err := Run(t.Context(), empty, strings.NewReader(""), io.Discard, "test", slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(empty); err != nil {
		t.Error("a directory of the user's own was removed")
	}
	if err := mount.Unmount(empty); err != nil {
		t.Error("what is not mounted:", err)
	}
}
