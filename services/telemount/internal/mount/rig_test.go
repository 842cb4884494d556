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
)

// rig is a file server on loopback TCP that can be cut, replaced and kept away,
// and mounts of it.
type rig struct {
	t    testing.TB
	dir  string
	addr string

	mu    sync.Mutex
	srv   *files.Server
	away  bool
	conns map[net.Conn]bool
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
	r := &rig{t: t, dir: dir, conns: map[net.Conn]bool{}}
	r.restart()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			srv := r.srv
			if r.away {
				_ = c.Close()
				r.mu.Unlock()
				continue
			}
			r.conns[c] = true
			r.mu.Unlock()
			wg.Add(1)
			go func() { defer wg.Done(); _ = srv.Serve(context.Background(), c) }()
		}
	}()
	t.Cleanup(func() { ln.Close(); r.cut(); r.srv.Close(); wg.Wait() })
	return r
}

func (r *rig) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.srv != nil {
		r.srv.Close()
	}
	r.srv = files.NewServer(files.Export{Roots: []files.Root{{Path: r.dir}}}, files.TokenIs("secret"), nil)
}

func (r *rig) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
		delete(r.conns, c)
	}
}

func (r *rig) setAway(a bool) {
	r.mu.Lock()
	r.away = a
	r.mu.Unlock()
}

func (r *rig) options() files.Options {
	return files.Options{Token: "secret", Root: r.dir, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
	}}
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
