package files

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth.dev/files/filestest"
)

// rig is a server on loopback TCP that can be cut and replaced.
type rig struct {
	*filestest.Listener
	t   *testing.T
	dir string
	ro  bool

	mu  sync.Mutex
	srv *Server
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir()}
	r.restart()
	r.Listener = filestest.Listen(t, func(c net.Conn) { _ = r.server().Serve(context.Background(), c) })
	t.Cleanup(func() { r.server().Close() })
	return r
}

func (r *rig) server() *Server {
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
	r.srv = NewServer(Export{Roots: []Root{{Path: r.dir, ReadOnly: r.ro}}}, TokenIs("secret"), nil)
}

func (r *rig) client(o Options) *Client {
	r.t.Helper()
	if o.Dial == nil {
		o.Dial = r.Dial
	}
	if o.Token == "" {
		o.Token = "secret"
	}
	if o.Root == "" {
		o.Root = r.dir
	}
	c, err := Connect(context.Background(), o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func at(p string) func() (string, bool) { return func() (string, bool) { return p, true } }

var ctx = context.Background()

func TestRefusals(t *testing.T) {
	r := newRig(t)
	dial := r.Dial
	for _, x := range []struct {
		name, token, root string
		want              syscall.Errno
	}{
		{"foreign token", "other", r.dir, syscall.EACCES},
		{"no token", "", r.dir, syscall.EACCES},
		{"foreign root", "secret", "/etc", syscall.ENOENT},
		{"below the root", "secret", r.dir + "/x", syscall.ENOENT},
		{"above the root", "secret", r.dir + "/..", syscall.ENOENT},
	} {
		_, err := Connect(ctx, Options{Dial: dial, Token: x.token, Root: x.root})
		var ref *Refused
		if !errors.As(err, &ref) || ref.Errno != x.want {
			t.Errorf("%s: got %v, want %v", x.name, err, x.want)
		}
	}
}

func TestConfinement(t *testing.T) {
	for _, walk := range []bool{false, true} {
		r := newRig(t)
		outside := t.TempDir()
		must(t, os.WriteFile(outside+"/s", []byte("outside"), 0o600))
		must(t, os.Symlink(outside, r.dir+"/out"))
		must(t, os.Symlink(outside+"/s", r.dir+"/file"))
		must(t, os.Symlink("../../../../etc/passwd", r.dir+"/up"))
		must(t, os.Mkdir(r.dir+"/d", 0o755))
		rt, err := openRoot(r.dir)
		must(t, err)
		rt.openat2 = rt.openat2 && !walk
		o := &ops{root: rt}
		for _, p := range []string{"..", "../x", "d/..", "d/../..", "/etc", "d//x", ".", "out/s", "file", "up", "d/", "a\x00b"} {
			if f, _, err := o.open(p, syscall.O_RDWR, 0, Owner{}); err == nil {
				f.Close()
				t.Errorf("walk=%v: open %q succeeded", walk, p)
			}
			if _, _, err := o.open(p, syscall.O_CREAT|syscall.O_WRONLY, 0o600, Owner{}); err == nil {
				t.Errorf("walk=%v: create %q succeeded", walk, p)
			}
		}
		if _, err := o.mkdir("out/x", 0o755, Owner{}); err == nil {
			t.Error("mkdir through a link succeeded")
		}
		if err := o.rename("d", "out/d", 0); err == nil {
			t.Error("rename through a link succeeded")
		}
		if _, err := o.setattr("file", nil, Setattr{Valid: SetSize}); err == nil {
			t.Error("truncate through a link succeeded")
		}
		if a, err := o.stat("file"); err != nil || a.Mode&syscall.S_IFMT != syscall.S_IFLNK {
			t.Errorf("stat of a link: %v %v", a, err)
		}
		if s, _, err := o.readlink("file"); err != nil || s != outside+"/s" {
			t.Errorf("readlink: %q %v", s, err)
		}
		if b, _ := os.ReadFile(outside + "/s"); string(b) != "outside" {
			t.Errorf("outside was changed: %q", b)
		}
		if es, _ := os.ReadDir(outside); len(es) != 1 {
			t.Errorf("something was made outside: %v", es)
		}
		rt.close()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	r := newRig(t)
	must(t, os.WriteFile(r.dir+"/f", []byte("x"), 0o644))
	c := r.client(Options{ReadOnly: true})
	if _, err := c.Open(ctx, at("f"), syscall.O_RDWR, 0, Owner{}); err != syscall.EROFS {
		t.Errorf("open: %v", err)
	}
	if err := c.Unlink(ctx, "f"); err != syscall.EROFS {
		t.Errorf("unlink: %v", err)
	}
	if _, err := c.Open(ctx, at("f"), syscall.O_RDONLY, 0, Owner{}); err != nil {
		t.Errorf("read: %v", err)
	}
}

func TestListing(t *testing.T) {
	r := newRig(t)
	for i := range 10_000 {
		must(t, os.WriteFile(filepath.Join(r.dir, "f"+string(rune('a'+i%26))+strings.Repeat("x", i/26)[:min(i/26, 200)]+itoa(i)), []byte("b"), 0o600))
	}
	c := r.client(Options{})
	seen, after, pages := map[string]bool{}, "", 0
	for {
		p, err := c.ReadDir(ctx, "", after, true, 256<<10)
		must(t, err)
		pages++
		for _, e := range p.Entries {
			if seen[e.Name] || string(e.Body) != "b" {
				t.Fatalf("%s: twice, or body %q", e.Name, e.Body)
			}
			seen[e.Name] = true
			after = e.Name
		}
		if p.End {
			break
		}
	}
	if len(seen) != 10_000 || pages < 3 {
		t.Errorf("%d names in %d pages", len(seen), pages)
	}
}

func itoa(i int) string {
	return string([]byte{byte('0' + i/10000%10), byte('0' + i/1000%10), byte('0' + i/100%10), byte('0' + i/10%10), byte('0' + i%10)})
}

// TestCut cuts the connection again and again while files are appended to and
// written: nothing may be done twice, lost, or torn.
func TestCut(t *testing.T) {
	r := newRig(t)
	c := r.client(Options{Timeout: 5 * time.Second})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			case <-time.After(15 * time.Millisecond):
				r.Cut()
			}
		}
	}()
	f, err := c.Open(ctx, at("log"), syscall.O_CREAT|syscall.O_WRONLY|syscall.O_APPEND, 0o600, Owner{})
	must(t, err)
	want := ""
	for i := range 2000 {
		line := itoa(i) + "\n"
		want += line
		if _, err := f.WriteAsync(0, []byte(line)).Written(); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		if i%20 == 0 {
			if _, err := c.Mkdir(ctx, "d"+itoa(i), 0o700, Owner{}); err != nil {
				t.Fatalf("mkdir: %v", err)
			}
		}
	}
	close(stop)
	wg.Wait()
	if b, _ := os.ReadFile(r.dir + "/log"); string(b) != want {
		t.Errorf("log has %d bytes, want %d", len(b), len(want))
	}
}

// A client that says goodbye leaves nothing open; one that is cut off may come back.
func TestGoodbye(t *testing.T) {
	r := newRig(t)
	sessions := func() int {
		r.srv.mu.Lock()
		defer r.srv.mu.Unlock()
		return len(r.srv.sessions)
	}
	c := r.client(Options{})
	r.Cut()
	if _, err := c.Stat(ctx, ""); err != nil || sessions() != 1 {
		t.Errorf("after a cut: %v, %d sessions", err, sessions())
	}
	c.Close()
	for end := time.Now().Add(5 * time.Second); sessions() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the session stays after a goodbye")
		}
	}
}

// TestRestart replaces the server: open files are found again by path, unless
// another file is there.
func TestRestart(t *testing.T) {
	r := newRig(t)
	must(t, os.WriteFile(r.dir+"/same", []byte("same"), 0o600))
	must(t, os.WriteFile(r.dir+"/other", []byte("other"), 0o600))
	reset := make(chan Event, 100)
	c := r.client(Options{Timeout: 5 * time.Second, OnEvent: func(e Event) {
		if e.Tree {
			reset <- e
		}
	}})
	same, err := c.Open(ctx, at("same"), syscall.O_RDWR, 0, Owner{})
	must(t, err)
	other, err := c.Open(ctx, at("other"), syscall.O_RDONLY, 0, Owner{})
	must(t, err)
	r.SetAway(true)
	r.restart()
	r.Cut()
	must(t, os.WriteFile(r.dir+"/new", []byte("wrong"), 0o600))
	must(t, os.Rename(r.dir+"/new", r.dir+"/other"))
	read := make(chan string, 1)
	go func() {
		b, err := same.ReadAsync(0, 10).Data(ctx)
		if err != nil {
			b = []byte(err.Error())
		}
		read <- string(b)
	}()
	select {
	case s := <-read:
		t.Fatalf("read without a server: %q", s)
	case <-time.After(100 * time.Millisecond):
	}
	r.SetAway(false)
	if s := <-read; s != "same" {
		t.Errorf("read after restart: %q", s)
	}
	<-reset
	if b, err := other.ReadAsync(0, 10).Data(ctx); err != syscall.ESTALE {
		t.Errorf("read of a replaced file: %q %v", b, err)
	}
}

func TestAwayTooLong(t *testing.T) {
	r := newRig(t)
	c := r.client(Options{Timeout: 300 * time.Millisecond})
	r.SetAway(true)
	r.Cut()
	t0 := time.Now()
	if _, err := c.Stat(ctx, ""); err != syscall.EIO || time.Since(t0) < 200*time.Millisecond || time.Since(t0) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(t0))
	}
	t0 = time.Now()
	if _, err := c.Stat(ctx, ""); err != syscall.EIO || time.Since(t0) > 100*time.Millisecond {
		t.Errorf("second call: %v after %v", err, time.Since(t0))
	}
	r.SetAway(false)
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := c.Stat(ctx, ""); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("never back")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A server that has gone for good is not waited for.
func TestGone(t *testing.T) {
	r := newRig(t)
	var gone atomic.Bool
	c := r.client(Options{Timeout: time.Hour, Dial: func(ctx context.Context) (net.Conn, error) {
		if gone.Load() {
			return nil, fmt.Errorf("dial: %w", ErrGone)
		}
		return r.Dial(ctx)
	}})
	gone.Store(true)
	r.Cut()
	for range 2 {
		if _, err := c.Stat(ctx, ""); err != syscall.EIO {
			t.Error(err)
		}
	}
}

// TestPush: foreign changes are told, own ones are not.
func TestPush(t *testing.T) {
	r := newRig(t)
	ev := make(chan Event, 100)
	c := r.client(Options{OnEvent: func(e Event) { ev <- e }})
	if !c.Info().Watches {
		t.Skip("the file system of the test directory is not observable")
	}
	if _, err := c.Stat(ctx, "a"); err != syscall.ENOENT {
		t.Fatal(err)
	}
	f, err := c.Open(ctx, at("own"), syscall.O_CREAT|syscall.O_WRONLY, 0o600, Owner{})
	must(t, err)
	_, err = f.WriteAsync(0, []byte("x")).Written()
	must(t, err)
	expect := func(name string) {
		t.Helper()
		for {
			select {
			case e := <-ev:
				if e.Name == name {
					return
				}
				if e.Name == "own" {
					t.Logf("own change was told: allowed, but a cost")
				}
			case <-time.After(3 * time.Second):
				t.Fatalf("no event for %q", name)
			}
		}
	}
	must(t, os.WriteFile(r.dir+"/a", []byte("1"), 0o600))
	expect("a")
	// As kubelet updates a ConfigMap.
	must(t, os.Mkdir(r.dir+"/..1", 0o755))
	must(t, os.Symlink("..1", r.dir+"/..data"))
	if s, _, err := c.Readlink(ctx, "..data"); err != nil || s != "..1" {
		t.Fatal(s, err)
	}
	_, err = c.Stat(ctx, "..data")
	must(t, err)
	must(t, os.Symlink("..2", r.dir+"/..tmp"))
	must(t, os.Rename(r.dir+"/..tmp", r.dir+"/..data"))
	expect("..data")
	if s, _, _ := c.Readlink(ctx, "..data"); s != "..2" {
		t.Errorf("link is %q", s)
	}
}

// A file whose name the client took can be had by its identity for a moment, and
// only by who took it.
func TestRecall(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	c, other := r.client(Options{}), r.client(Options{})
	must(t, os.WriteFile(r.dir+"/old", []byte("old"), 0o600))
	must(t, os.WriteFile(r.dir+"/new", []byte("new"), 0o600))
	must(t, os.Symlink("there", r.dir+"/link"))
	old, err := c.Stat(ctx, "old")
	must(t, err)
	link, err := c.Stat(ctx, "link")
	must(t, err)
	if _, _, err := c.Recall(ctx, old); err != syscall.ESTALE {
		t.Errorf("a file that has its name: %v", err)
	}
	must(t, c.Rename(ctx, "new", "old", 0))
	must(t, c.Unlink(ctx, "link"))
	if a, _, err := c.Recall(ctx, old); err != nil || !a.SameFile(old) || a.Nlink != 0 {
		t.Errorf("replaced: %+v %v", a, err)
	}
	if _, to, err := c.Recall(ctx, link); err != nil || to != "there" {
		t.Errorf("unlinked link: %q %v", to, err)
	}
	f, err := c.Reopen(ctx, old, syscall.O_RDWR)
	must(t, err)
	if b, err := f.ReadAsync(0, 10).Data(ctx); err != nil || string(b) != "old" {
		t.Errorf("read %q %v", b, err)
	}
	if _, err := f.WriteAsync(0, []byte("OLD")).Written(); err != nil {
		t.Error(err)
	}
	if _, err := c.Reopen(ctx, link, 0); err != syscall.EINVAL {
		t.Errorf("a link opened: %v", err)
	}
	if _, _, err := other.Recall(ctx, old); err != syscall.ESTALE {
		t.Errorf("another client: %v", err)
	}
	if _, err := c.Stat(ctx, "gone"); err != syscall.ENOENT {
		t.Error(err)
	}
	if err := c.Unlink(ctx, "gone"); err != syscall.ENOENT {
		t.Error(err)
	}
	// They are given up, the oldest first, so that the disk gets its room back.
	for range lostMax {
		must(t, os.WriteFile(r.dir+"/x", nil, 0o600))
		must(t, c.Unlink(ctx, "x"))
	}
	if _, _, err := c.Recall(ctx, old); err != syscall.ESTALE {
		t.Errorf("after many more: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.srv.sessions {
		s.lost.mu.Lock()
		for i := range s.lost.all {
			s.lost.all[i].at = time.Now().Add(-lostKeep)
		}
		s.lost.mu.Unlock()
		s.lost.expire()
		if n := len(s.lost.all); n != 0 {
			t.Errorf("%d kept after their time", n)
		}
	}
}

// A server takes over, and connections end while the client opens its files there
// again: in the end each is open.
func TestCutWhileReopening(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	c := r.client(Options{})
	var all []*File
	for i := range 200 {
		n := strings.Repeat("x", 1+i)
		must(t, os.WriteFile(r.dir+"/"+n, []byte{byte(i)}, 0o600))
		f, err := c.Open(ctx, at(n), syscall.O_RDONLY, 0, Owner{})
		must(t, err)
		all = append(all, f)
	}
	for range 10 {
		r.restart()
		for range 4 {
			r.Cut()
			for !r.Connected() {
				time.Sleep(100 * time.Microsecond)
			}
		}
		for i, f := range all {
			if b, err := f.ReadAsync(0, 2).Data(ctx); err != nil || len(b) != 1 || b[0] != byte(i) {
				t.Fatalf("file %d: %v %v", i, b, err)
			}
		}
	}
}

func FuzzFrames(f *testing.F) {
	var h buffer
	h.u64(1)
	h.u64(1)
	h.u8(byte(opStat))
	h.str("a")
	f.Add([]byte(h))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(opReaddir), 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 17 && op(b[16]) == opSeek {
			return
		}
		s, err := newSession(&Server{log: slog.New(slog.DiscardHandler)}, Root{Path: fuzzDir(t)}, false)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.dispatch(b)
		s.close()
		g := fields{b: b}
		g.entry()
		g.hello()
		if _, err := os.Lstat(fuzzDir(t)); err != nil {
			t.Fatal("root is gone")
		}
	})
}

func fuzzDir(t *testing.T) string {
	d := filepath.Join(os.TempDir(), "berth-files-fuzz", "root")
	must(t, os.MkdirAll(d, 0o700))
	return d
}
