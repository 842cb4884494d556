// Package mount is a FUSE file system over a files.Client: one volume, one
// mount, one connection.
//
// # Coherence
//
// What the server promises to tell of changes is kept for ten minutes (names,
// attributes, pages); what it does not, for one second. An open compares
// attributes with those under which the kernel's pages were read and keeps the
// pages only if they are the same (close-to-open). O_APPEND goes to the server's
// end of file, past the page cache.
//
// # Writes
//
// A write returns when it has been queued; up to 64 are under way per mount, in
// order per file. The first error is returned by the next write, and by fsync or
// close, which wait for all that was queued. Any read or stat of a file waits for
// its writes first. Nothing is written back later than close.
//
// # Concurrency
//
// Invalidations arrive while requests run. An answer that was asked for before an
// invalidation arrived is not kept (epoch); and since the kernel may get that
// answer after the invalidation, that one is repeated if any request was under
// way. Lock order: node.mu before Mount.mu; neither is held during a call.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	longTTL  = 10 * time.Minute
	shortTTL = time.Second
	bodyRoom = 64 << 20 // bytes of small files that were read ahead
	inFlight = 64       // writes
)

// Mount is a mounted volume.
type Mount struct {
	c      *files.Client
	root   *node
	server *fuse.Server
	dir    string
	epoch  atomic.Uint64
	active atomic.Int64
	slots  chan struct{}
	done   chan struct{}

	mu       sync.Mutex
	events   []files.Event
	wake     chan struct{}
	bodies   map[string]*body
	order    []string // of bodies, oldest first
	bodySize int
}

type body struct {
	attr files.Attr
	data []byte
	at   time.Time
	old  atomic.Bool
}

// New connects with o and mounts at dir, which must exist.
func New(ctx context.Context, dir string, o files.Options) (*Mount, error) {
	m := &Mount{dir: dir, slots: make(chan struct{}, inFlight), done: make(chan struct{}), wake: make(chan struct{}, 1), bodies: map[string]*body{}}
	o.OnEvent = func(e files.Event) {
		m.epoch.Add(1)
		m.mu.Lock()
		m.events = append(m.events, e)
		m.mu.Unlock()
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
	c, err := files.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	m.c = c
	info := c.Info()
	if !info.Root.IsDir() {
		c.Close()
		return nil, fmt.Errorf("mount %s: it is a single file; a Docker volume is a directory", o.Root)
	}
	m.root = &node{m: m, attr: info.Root}
	opts := fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, FsName: "telemount", Name: "berth",
		MaxWrite: files.MaxIO, MaxReadAhead: files.MaxIO, MaxBackground: 64, DisableSplice: true, // our megabytes and a header exceed the largest pipe
	}
	if info.Super {
		// The server may do everything, so this kernel checks modes and owners as
		// the pod's would. Otherwise it is the pod's user who may or may not.
		opts.Options = append(opts.Options, "default_permissions")
	}
	if info.ReadOnly {
		opts.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
	}
	negative := longTTL
	m.server, err = fs.Mount(dir, m.root, &fs.Options{MountOptions: opts, NullPermissions: true, NegativeTimeout: &negative,
		RootStableAttr: &fs.StableAttr{Ino: info.Root.Ino, Gen: info.Root.Birth}})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("mount at %s: %w", dir, err)
	}
	m.readahead()
	go m.invalidate()
	return m, nil
}

// readahead lets the kernel ask for whole megabytes, where it may be told to.
func (m *Mount) readahead() {
	var st unix.Stat_t
	if unix.Stat(m.dir, &st) == nil {
		p := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
		_ = os.WriteFile(p, []byte("1024"), 0)
	}
}

// Close unmounts, lazily if the mount is busy, and ends the connection.
func (m *Mount) Close() error {
	err := unix.Unmount(m.dir, 0)
	if err != nil {
		err = unix.Unmount(m.dir, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) { // it is gone already
		err = nil
	}
	m.c.Close() // what is still open gets EIO rather than waiting for us
	close(m.done)
	if err == nil {
		gone := make(chan struct{})
		go func() { m.server.Wait(); close(gone) }()
		select {
		case <-gone:
		case <-time.After(time.Second): // files are open: the kernel ends it with the last
		}
	}
	return err
}

// begin notes a request under way; the function that it returns says for how
// long the answer may be kept.
func (m *Mount) begin() (ttl func(told bool) time.Duration, end func()) {
	m.active.Add(1)
	e := m.epoch.Load()
	return func(told bool) time.Duration {
		switch {
		case !told:
			return shortTTL
		case m.epoch.Load() != e:
			return 0
		}
		return longTTL
	}, func() { m.active.Add(-1) }
}

func (m *Mount) invalidate() {
	for {
		select {
		case <-m.wake:
		case <-m.done:
			return
		}
		m.mu.Lock()
		es := m.events
		m.events = nil
		m.mu.Unlock()
		busy := m.active.Load() > 0
		for _, e := range es {
			m.apply(e)
		}
		if busy {
			time.AfterFunc(100*time.Millisecond, func() {
				for _, e := range es {
					m.apply(e)
				}
			})
		}
	}
}

func (m *Mount) apply(e files.Event) {
	if e.Tree {
		m.dropBodies(e.Dir, true)
		if n := m.find(e.Dir); n != nil {
			n.forgetTree()
		}
		return
	}
	d := m.find(e.Dir)
	if e.Name == "" {
		if d != nil {
			d.NotifyContent(-1, 0)
		}
		return
	}
	m.dropBodies(filepath.Join(e.Dir, e.Name), false)
	if d == nil {
		return
	}
	d.unknown(e.Name)
	if c := d.GetChild(e.Name); c != nil {
		n := c.Operations().(*node)
		n.ver.Add(1)
		c.NotifyContent(0, 0)
		if c.IsDir() {
			// Invalidating its name would take away what is mounted or working
			// below it, so it is done for another directory only.
			a, err := m.c.Stat(context.Background(), filepath.Join(e.Dir, e.Name))
			if err == nil && n.is(a) {
				d.NotifyContent(-1, 0)
				return
			}
		}
	}
	d.NotifyEntry(e.Name)
	d.NotifyContent(-1, 0)
}

func (m *Mount) find(path string) *node {
	in := m.root.EmbeddedInode()
	for path != "" && in != nil {
		var name string
		name, path, _ = strings.Cut(path, "/")
		in = in.GetChild(name)
	}
	if in == nil {
		return nil
	}
	return in.Operations().(*node)
}

func (n *node) forgetTree() {
	n.mu.Lock()
	n.list = nil
	n.mu.Unlock()
	n.ver.Add(1)
	n.NotifyContent(0, 0)
	for name, c := range n.Children() {
		x := c.Operations().(*node)
		x.forgetTree()
		if c.IsDir() {
			if p, ok := x.path(); ok {
				if a, err := n.m.c.Stat(context.Background(), p); err == nil && x.is(a) {
					continue
				}
			}
		}
		n.NotifyEntry(name)
	}
}

func (m *Mount) body(path string) *body {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.bodies[path]
	if b != nil && !b.attr.Watched && time.Since(b.at) > shortTTL {
		return nil
	}
	return b
}

func (m *Mount) keepBody(path string, b *body) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.bodies[path]; old != nil {
		old.old.Store(true)
		m.bodySize -= len(old.data)
	} else {
		m.order = append(m.order, path)
	}
	m.bodies[path] = b
	m.bodySize += len(b.data)
	for (m.bodySize > bodyRoom || len(m.order) > 1<<16) && len(m.order) > 0 {
		if x := m.bodies[m.order[0]]; x != nil {
			m.bodySize -= len(x.data)
			delete(m.bodies, m.order[0])
			x.old.Store(true) // nobody would tell its readers of a change
		}
		m.order = m.order[1:]
	}
}

func (m *Mount) dropBodies(path string, tree bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	drop := func(p string) {
		if b := m.bodies[p]; b != nil {
			b.old.Store(true)
			m.bodySize -= len(b.data)
			delete(m.bodies, p)
		}
	}
	drop(path)
	if tree {
		for p := range m.bodies {
			if path == "" || strings.HasPrefix(p, path+"/") {
				drop(p)
			}
		}
	}
}

func errno(err error) syscall.Errno { return files.Errno(err) }
