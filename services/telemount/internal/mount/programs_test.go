package mount

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	c := exec.Command(name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestGit(t *testing.T) {
	src := t.TempDir()
	run(t, src, "git", "init", "-q", "-b", "main")
	for i := range 200 {
		must(t, os.WriteFile(filepath.Join(src, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i), '\n'}, i*50), 0o644))
	}
	run(t, src, "git", "add", ".")
	run(t, src, "git", "commit", "-q", "-m", "one")
	r := newRig(t, "")
	d := r.mount(r.options())
	run(t, d, "git", "clone", "-q", "--no-hardlinks", src, "c")
	c := filepath.Join(d, "c")
	must(t, os.WriteFile(c+"/new", []byte("new"), 0o644))
	run(t, c, "git", "add", ".")
	run(t, c, "git", "commit", "-q", "-m", "two")
	run(t, c, "git", "gc", "-q")
	run(t, c, "git", "fsck", "--strict")
	if s := run(t, c, "git", "status", "--porcelain"); s != "" {
		t.Errorf("not clean:\n%s", s)
	}
	run(t, filepath.Join(r.dir, "c"), "git", "fsck", "--strict")
}

func TestSQLite(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, "")
			d := r.mount(r.options())
			if exec.Command("python3", "-c", "import sqlite3").Run() != nil {
				t.Skip("python3 with sqlite3 is not installed")
			}
			const script = `
import sqlite3,sys,os
p,mode=sys.argv[1],sys.argv[2]
def con():
    c=sqlite3.connect(p,timeout=20); assert c.execute("pragma journal_mode="+mode).fetchone()[0]==mode; return c
c=con(); c.execute("create table t(id integer primary key,v text)"); c.commit(); c.close()
pids=[]
for k in range(2):
    pid=os.fork()
    if pid==0:
        c=con()
        for i in range(40):
            c.execute("insert into t(v) values(?)",("x"*(i*37),)); c.commit()
        c.close(); os._exit(0)
    pids.append(pid)
for q in pids: assert os.waitpid(q,0)[1]==0
c=con()
assert c.execute("select count(*) from t").fetchone()[0]==80
assert c.execute("pragma integrity_check").fetchone()[0]=="ok"
c.close()
`
			run(t, d, "python3", "-c", script, d+"/db", mode)
			const check = `
import sqlite3,sys
c=sqlite3.connect(sys.argv[1]); assert c.execute("pragma integrity_check").fetchone()[0]=="ok"; assert c.execute("select count(*) from t").fetchone()[0]==80`
			run(t, d, "python3", "-c", check, r.dir+"/db")
		})
	}
}

func hashTree(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	m := map[string][32]byte{}
	must(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		m[rel] = sha256.Sum256(b)
		return err
	}))
	return m
}

func TestTar(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	src := t.TempDir()
	for i := range n {
		p := filepath.Join(src, fmt.Sprintf("d%d/%d", i%7, i))
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, bytes.Repeat([]byte{byte(i)}, i%3000), 0o640))
	}
	want := hashTree(t, src)
	r := newRig(t, "")
	d := r.mount(r.options())
	tarball := t.TempDir() + "/a.tar"
	run(t, src, "tar", "cf", tarball, ".")
	run(t, d, "tar", "xf", tarball)
	run(t, d, "tar", "cf", tarball, ".")
	back := t.TempDir()
	run(t, back, "tar", "xf", tarball)
	for name, dir := range map[string]string{"in the pod": r.dir, "in the handler": d, "back": back} {
		got := hashTree(t, dir)
		if len(got) != len(want) {
			t.Errorf("%s: %d files, want %d", name, len(got), len(want))
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%s: %s differs", name, k)
			}
		}
	}
}

func TestMmapAndReplace(t *testing.T) {
	r := newRig(t, "")
	d := r.mount(r.options())
	data := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	must(t, os.WriteFile(r.dir+"/f", data, 0o644))
	// In another process: a page fault that waits for a file system in its own
	// process stops that process's garbage collector, and with it the file system.
	const script = `
import mmap,sys
f=open(sys.argv[1],"r+b"); m=mmap.mmap(f.fileno(),0); assert m[:]==b"0123456789abcdef"*(40<<10)
m[5]=ord("X"); m.flush(); m.close()`
	run(t, d, "python3", "-c", script, d+"/f")
	data[5] = 'X'
	f, err := os.OpenFile(d+"/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	if b, _ := os.ReadFile(r.dir + "/f"); !bytes.Equal(b, data) {
		t.Error("store through the mapping did not arrive")
	}
	// Rename over an open file: who has it open keeps the old content.
	must(t, os.WriteFile(d+"/n", []byte("new"), 0o644))
	must(t, os.Rename(d+"/n", d+"/f"))
	b := make([]byte, 16)
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, data[:16]) {
		t.Errorf("open file: %q %v", b, err)
	}
	if b, _ := os.ReadFile(d + "/f"); string(b) != "new" {
		t.Errorf("new file: %q", b)
	}
}

// Who opens a name finds a file, old or new, however fast it is replaced.
func TestOpenWhileReplaced(t *testing.T) {
	r := newRig(t, "")
	m := r.mount(r.options())
	name := filepath.Join(m, "x")
	must(t, os.WriteFile(name, []byte("first"), 0o644))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var writers error
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := 0; writers == nil; i++ {
			select {
			case <-stop:
				return
			default:
			}
			tmp := filepath.Join(m, fmt.Sprint("tmp", i))
			if i%2 == 0 {
				writers = os.WriteFile(tmp, bytes.Repeat([]byte("y"), 1+i%3*100_000), 0o644)
			} else if writers = os.WriteFile(tmp+".to", []byte("z"), 0o644); writers == nil {
				writers = os.Symlink(filepath.Base(tmp)+".to", tmp)
			}
			if writers == nil {
				writers = os.Rename(tmp, name)
			}
		}
	}()
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 500 {
				f, err := os.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := f.Stat(); err != nil {
					t.Error(err)
				}
				if b, err := io.ReadAll(f); err != nil || len(b) == 0 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				f.Close()
			}
		})
	}
	readers.Wait()
	close(stop)
	wg.Wait()
	must(t, writers)
}

func TestAppendFromTwo(t *testing.T) {
	r := newRig(t, "")
	ds := []string{r.mount(r.options()), r.mount(r.options())}
	var wg sync.WaitGroup
	for i, d := range ds {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f, err := os.OpenFile(d+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for j := range 500 {
				if _, err := fmt.Fprintf(f, "%d-%d\n", i, j); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	want, _ := os.ReadFile(r.dir + "/log")
	if n := strings.Count(string(want), "\n"); n != 1000 {
		t.Errorf("%d lines, want 1000", n)
	}
	for _, d := range ds {
		eventually(t, "both see the same", func() bool { b, _ := os.ReadFile(d + "/log"); return bytes.Equal(b, want) })
	}
}

// TestCoherence: what the pod does is seen, in files that are open, cached, or
// known to be missing.
func TestCoherence(t *testing.T) {
	r := newRig(t, "")
	d := r.mount(r.options())
	must(t, os.Mkdir(r.dir+"/..1", 0o755))
	must(t, os.WriteFile(r.dir+"/..1/key", []byte("one"), 0o644))
	must(t, os.Symlink("..1", r.dir+"/..data"))
	must(t, os.Symlink("..data/key", r.dir+"/key"))
	read := func(p string) string {
		b, err := os.ReadFile(d + "/" + p)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	for range 3 {
		if s := read("key"); s != "one" {
			t.Fatal(s)
		}
		if _, err := os.Stat(d + "/missing"); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	f, err := os.Open(d + "/..1/key")
	must(t, err)
	defer f.Close()
	must(t, os.Mkdir(r.dir+"/..2", 0o755))
	must(t, os.WriteFile(r.dir+"/..2/key", []byte("second"), 0o644))
	must(t, os.Symlink("..2", r.dir+"/..tmp"))
	must(t, os.Rename(r.dir+"/..tmp", r.dir+"/..data"))
	must(t, os.WriteFile(r.dir+"/missing", nil, 0o644))
	eventually(t, "the swap is seen", func() bool { return read("key") == "second" })
	eventually(t, "the new file is seen", func() bool { _, err := os.Stat(d + "/missing"); return err == nil })
	must(t, os.WriteFile(r.dir+"/..1/key", []byte("changed in place"), 0o644))
	eventually(t, "a change is seen in an open file", func() bool {
		b := make([]byte, 100)
		n, _ := f.ReadAt(b, 0)
		return string(b[:n]) == "changed in place"
	})
	must(t, os.Remove(r.dir+"/missing"))
	eventually(t, "a removal is seen", func() bool { _, err := os.Stat(d + "/missing"); return errors.Is(err, os.ErrNotExist) })
}

func TestNoSpace(t *testing.T) {
	needFUSE(t)
	small := t.TempDir()
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(small, unix.MNT_DETACH)) })
	r := newRig(t, small)
	d := r.mount(r.options())
	for _, sync := range []bool{true, false} {
		f, err := os.Create(d + "/f")
		must(t, err)
		var first error
		for i := 0; i < 8 && first == nil; i++ {
			_, first = f.Write(make([]byte, 1<<20))
		}
		if sync && first == nil {
			first = f.Sync()
		}
		if err := f.Close(); first == nil {
			first = err
		}
		if !errors.Is(first, syscall.ENOSPC) {
			t.Errorf("sync=%v: got %v, want ENOSPC", sync, first)
		}
		must(t, os.Remove(d+"/f"))
	}
}

func TestReadOnly(t *testing.T) {
	r := newRig(t, "")
	must(t, os.WriteFile(r.dir+"/f", []byte("x"), 0o644))
	o := r.options()
	o.ReadOnly = true
	d := r.mount(o)
	if err := os.WriteFile(d+"/f", nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := os.Mkdir(d+"/d", 0o755); !errors.Is(err, syscall.EROFS) {
		t.Errorf("mkdir: %v", err)
	}
}

// TestBig writes a big file in the handler and reads it in the pod, and the reverse.
func TestBig(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 256 << 20
	}
	r := newRig(t, "")
	d := r.mount(r.options())
	rnd := rand.NewChaCha8([32]byte{1})
	h := sha256.New()
	f, err := os.Create(d + "/big")
	must(t, err)
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(rnd, size))
	must(t, err)
	must(t, f.Close())
	for _, p := range []string{r.dir + "/big", d + "/big"} {
		f, err := os.Open(p)
		must(t, err)
		g := sha256.New()
		n, err := io.Copy(g, f)
		must(t, err)
		if n != size || !bytes.Equal(g.Sum(nil), h.Sum(nil)) {
			t.Errorf("%s: %d bytes, or the hash differs", p, n)
		}
		f.Close()
	}
}

// TestServerRestarts replaces the server while files are read and written.
func TestServerRestarts(t *testing.T) {
	r := newRig(t, "")
	o := r.options()
	o.Timeout = 10 * time.Second
	d := r.mount(o)
	data := make([]byte, 32<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
	must(t, os.WriteFile(r.dir+"/in", data, 0o644))
	stop := make(chan struct{})
	var chaos, work sync.WaitGroup
	chaos.Add(1)
	go func() {
		defer chaos.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(40 * time.Millisecond):
			}
			r.SetAway(true)
			if i%2 == 0 {
				r.restart()
			}
			r.Cut()
			time.Sleep(10 * time.Millisecond)
			r.SetAway(false)
		}
	}()
	work.Add(2)
	go func() {
		defer work.Done()
		for range 8 {
			b, err := os.ReadFile(d + "/in")
			if err != nil || !bytes.Equal(b, data) {
				t.Errorf("read: %d bytes, %v", len(b), err)
				return
			}
			unixDrop(d + "/in")
		}
	}()
	go func() {
		defer work.Done()
		f, err := os.OpenFile(d+"/out", os.O_WRONLY|os.O_CREATE, 0o644)
		for errors.Is(err, syscall.EIO) { // whether it was created is unknown: ask again
			f, err = os.OpenFile(d+"/out", os.O_WRONLY|os.O_CREATE, 0o644)
		}
		if err != nil {
			t.Error(err)
			return
		}
		for off := 0; off < len(data); off += 64 << 10 {
			if _, err := f.WriteAt(data[off:off+64<<10], int64(off)); err != nil {
				t.Errorf("write at %d: %v", off, err)
				return
			}
			if off%(4<<20) == 0 {
				if err := f.Sync(); err != nil {
					t.Errorf("sync: %v", err)
				}
			}
		}
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	work.Wait()
	close(stop)
	chaos.Wait()
	if b, _ := os.ReadFile(r.dir + "/out"); !bytes.Equal(b, data) {
		t.Error("what was written is torn")
	}
}

func unixDrop(p string) {
	if f, err := os.Open(p); err == nil {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
	}
}

func TestServerAway(t *testing.T) {
	r := newRig(t, "")
	must(t, os.WriteFile(r.dir+"/f", []byte("x"), 0o644))
	o := r.options()
	o.Timeout = 500 * time.Millisecond
	d := r.mount(o)
	r.SetAway(true)
	r.Cut()
	t0 := time.Now()
	if _, err := os.ReadDir(d); !errors.Is(err, syscall.EIO) || time.Since(t0) > 3*time.Second {
		t.Errorf("%v after %v, want EIO after 0.5 s", err, time.Since(t0))
	}
	r.SetAway(false)
	eventually(t, "it comes back", func() bool { b, _ := os.ReadFile(d + "/f"); return string(b) == "x" })
}

// TestMany mounts 20 volumes, ten at a time.
func TestMany(t *testing.T) {
	r := newRig(t, "")
	must(t, os.WriteFile(r.dir+"/f", []byte("x"), 0o644))
	base := t.TempDir()
	slots := make(chan struct{}, 10)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			d := filepath.Join(base, fmt.Sprint(i))
			_ = os.Mkdir(d, 0o755)
			for range 5 {
				m, err := New(t.Context(), d, r.options())
				if err != nil {
					t.Error(err)
					return
				}
				if b, err := os.ReadFile(d + "/f"); string(b) != "x" {
					t.Error(err)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), base) {
		t.Error("something is still mounted")
	}
}
