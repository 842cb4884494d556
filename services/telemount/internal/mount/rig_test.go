package mount

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/files"
	"berth.dev/files/filestest"
)

// rig is a file server on loopback TCP that can be cut, replaced and kept away,
// and mounts of it.
type rig struct {
	*filestest.Listener
	t   testing.TB
	dir string

	mu  sync.Mutex
	srv *files.Server
}

func needFUSE(t testing.TB) {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	f.Close()
}

func newRig(t testing.TB, dir string) *rig {
	needFUSE(t)
	if dir == "" {
		dir = t.TempDir()
	}
	r := &rig{t: t, dir: dir}
	r.restart()
	r.Listener = filestest.Listen(t, func(c net.Conn) { _ = r.server().Serve(context.Background(), c) })
	t.Cleanup(func() { r.server().Close() })
	return r
}

func (r *rig) server() *files.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.srv
}

func (r *rig) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.srv != nil {
		r.srv.Close()
	}
	r.srv = files.NewServer(files.Export{Roots: []files.Root{{Path: r.dir}}}, files.TokenIs("secret"), nil)
}

func (r *rig) options() files.Options {
	return files.Options{Token: "secret", Root: r.dir, Dial: r.Dial}
}

// mount returns the mount point.
func (r *rig) mount(o files.Options) string {
	r.t.Helper()
	d := r.t.TempDir()
	m, err := New(context.Background(), d, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			r.t.Error(err)
		}
		if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), d) {
			r.t.Errorf("%s is still mounted", d)
		}
	})
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually probes until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}
