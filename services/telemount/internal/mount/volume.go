package mount

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
)

// volume is one root of a file server, as nodes.
type volume struct {
	c    *files.Client
	root *node
	// index tells the volumes of one mount apart: the same file may be in two.
	index uint64
	// server: whoever asks, it is the server's user who may or may not, and who
	// owns what is made.
	server bool
	epoch  atomic.Uint64
	active atomic.Int64
	slots  chan struct{}
	done   chan struct{}
	// inner are the roots of other volumes that are mounted below this one, by
	// their paths in it. Written before the mount is there, only read since.
	inner map[string]*node

	mu       sync.Mutex
	events   []files.Event
	wake     chan struct{}
	bodies   map[string]*body
	order    []string // of bodies, oldest first
	bodySize int
	asking   int    // requests for bodies under way
	changes  uint64 // ours and others', ever
	// The paths that have changed while asking, and when; those that are trees, with
	// all below them, in both.
	dropped, trees map[string]uint64
}

type body struct {
	attr files.Attr
	data []byte
	at   time.Time
	old  atomic.Bool
}

// dial connects to the file server with o.
func dial(ctx context.Context, index int, o files.Options) (*volume, error) {
	v := &volume{
		index: uint64(index), slots: make(chan struct{}, inFlight), done: make(chan struct{}), wake: make(chan struct{}, 1),
		bodies: map[string]*body{}, dropped: map[string]uint64{}, trees: map[string]uint64{},
	}
	o.OnEvent = func(e files.Event) {
		v.epoch.Add(1)
		v.mu.Lock()
		v.events = append(v.events, e)
		v.mu.Unlock()
		select {
		case v.wake <- struct{}{}:
		default:
		}
	}
	c, err := files.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	v.c = c
	v.root = &node{m: v, attr: c.Info().Root}
	return v, nil
}

// close ends the connection: what is still open gets EIO rather than waiting.
func (v *volume) close() {
	v.c.Close()
	close(v.done)
}

// ino is a file's inode number in the mount.
func (v *volume) ino(a files.Attr) uint64 { return a.Ino ^ v.index<<56 }

func (v *volume) stable(a files.Attr) fs.StableAttr {
	return fs.StableAttr{Mode: a.Mode & syscall.S_IFMT, Ino: v.ino(a), Gen: a.Birth}
}

// begin notes a request under way; the function that it returns says for how
// long the answer may be kept.
func (v *volume) begin() (ttl func(told bool) time.Duration, end func()) {
	v.active.Add(1)
	e := v.epoch.Load()
	return func(told bool) time.Duration {
		switch {
		case !told:
			return shortTTL
		case v.epoch.Load() != e:
			return 0
		}
		return longTTL
	}, func() { v.active.Add(-1) }
}

func (v *volume) invalidate() {
	for {
		select {
		case <-v.wake:
		case <-v.done:
			return
		}
		v.mu.Lock()
		es := v.events
		v.events = nil
		v.mu.Unlock()
		busy := v.active.Load() > 0
		for _, e := range es {
			v.apply(e)
		}
		if busy {
			time.AfterFunc(100*time.Millisecond, func() {
				for _, e := range es {
					v.apply(e)
				}
			})
		}
	}
}

func (v *volume) apply(e files.Event) {
	if e.Tree {
		v.dropBodies(e.Dir, true)
		if n := v.find(e.Dir); n != nil {
			n.forgetTree()
		}
		return
	}
	d := v.find(e.Dir)
	if e.Name == "" {
		if d != nil {
			d.NotifyContent(-1, 0)
		}
		return
	}
	v.dropBodies(filepath.Join(e.Dir, e.Name), false)
	if d == nil {
		return
	}
	d.unknown(e.Name)
	if c := d.GetChild(e.Name); c != nil {
		n := c.Operations().(*node)
		if n.m != v { // another volume is mounted there
			return
		}
		n.ver.Add(1)
		c.NotifyContent(0, 0)
		if c.IsDir() {
			// Invalidating its name would take away what is mounted or working
			// below it, so it is done for another directory only.
			a, err := v.c.Stat(context.Background(), filepath.Join(e.Dir, e.Name))
			if err == nil && n.is(a) {
				d.NotifyContent(-1, 0)
				return
			}
		}
	}
	d.NotifyEntry(e.Name)
	d.NotifyContent(-1, 0)
}

func (v *volume) find(path string) *node {
	in := v.root.EmbeddedInode()
	for path != "" && in != nil {
		var name string
		name, path, _ = strings.Cut(path, "/")
		in = in.GetChild(name)
	}
	if in == nil {
		return nil
	}
	if n := in.Operations().(*node); n.m == v {
		return n
	}
	return nil // in another volume, which is mounted there
}

func (n *node) forgetTree() {
	n.mu.Lock()
	n.list = nil
	n.mu.Unlock()
	n.ver.Add(1)
	n.NotifyContent(0, 0)
	for name, c := range n.Children() {
		x := c.Operations().(*node)
		if x.m != n.m {
			continue
		}
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

func (v *volume) body(path string) *body {
	v.mu.Lock()
	defer v.mu.Unlock()
	b := v.bodies[path]
	if b != nil && !b.attr.Watched && time.Since(b.at) > shortTTL {
		return nil
	}
	return b
}

// ask notes that bodies are asked for, until end; since is for keepBody. What is
// changed meanwhile may be answered as it was before, and the server does not tell
// us of what we change ourselves.
func (v *volume) ask() (since uint64, end func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asking++
	return v.changes, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.asking--; v.asking == 0 {
			clear(v.dropped)
			clear(v.trees)
		}
	}
}

// stale reports whether path has changed since; mu is held.
func (v *volume) stale(path string, since uint64) bool {
	if v.dropped[path] > since {
		return true
	}
	for tree, at := range v.trees {
		if at > since && (tree == "" || strings.HasPrefix(path, tree+"/")) {
			return true
		}
	}
	return false
}

// keepBody keeps what was asked for since, unless that has changed meanwhile.
func (v *volume) keepBody(path string, b *body, since uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stale(path, since) {
		return
	}
	if old := v.bodies[path]; old != nil {
		old.old.Store(true)
		v.bodySize -= len(old.data)
	} else {
		v.order = append(v.order, path)
	}
	v.bodies[path] = b
	v.bodySize += len(b.data)
	for (v.bodySize > bodyRoom || len(v.order) > 1<<16) && len(v.order) > 0 {
		if x := v.bodies[v.order[0]]; x != nil {
			v.bodySize -= len(x.data)
			delete(v.bodies, v.order[0])
			x.old.Store(true) // nobody would tell its readers of a change
		}
		v.order = v.order[1:]
	}
}

func (v *volume) dropBodies(path string, tree bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	drop := func(p string) {
		if b := v.bodies[p]; b != nil {
			b.old.Store(true)
			v.bodySize -= len(b.data)
			delete(v.bodies, p)
		}
	}
	drop(path)
	if v.changes++; v.asking > 0 {
		v.dropped[path] = v.changes
		if tree {
			v.trees[path] = v.changes
		}
	}
	if tree {
		for p := range v.bodies {
			if path == "" || strings.HasPrefix(p, path+"/") {
				drop(p)
			}
		}
	}
}

func errno(err error) syscall.Errno { return files.Errno(err) }
