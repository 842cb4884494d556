package mount

import (
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file, directory or link that the kernel knows.
type node struct {
	fs.Inode
	m   *volume
	ver atomic.Uint64 // counts changes of the content: what was read ahead under another is dropped

	mu     sync.Mutex
	attr   files.Attr // as last seen
	pages  files.Attr // under which the kernel's pages were read
	target string     // of a link, which never changes
	// Of a directory:
	list   *listing
	gen    uint64 // counts our own changes of names
	misses int    // lookups of names that no listing held
	reads  int    // small files read one by one
	room   int    // budget of the next bundle

	// Writes under way, and who made them.
	wmu    sync.Mutex
	wcond  *sync.Cond
	writes int
	writer *handle
}

// listing is what is known of a directory's names, up to upTo or all of them.
type listing struct {
	entries map[string]files.Attr
	upTo    string
	end     bool
	changed map[string]bool // must be asked for again
	watched bool
	at      time.Time
}

func (l *listing) fresh() bool { return l.watched || time.Since(l.at) < shortTTL }

func (n *node) path() (string, bool) {
	p := ""
	in := n.EmbeddedInode()
	for in != n.m.root.EmbeddedInode() {
		name, parent := in.Parent()
		if parent == nil {
			return "", false
		}
		if p == "" {
			p = name
		} else {
			p = name + "/" + p
		}
		in = parent
	}
	return p, true
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (n *node) child(name string) (string, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return "", syscall.ENOENT
	}
	return join(p, name), 0
}

// is tells whether a is of this very file.
func (n *node) is(a files.Attr) bool {
	s := n.StableAttr()
	return n == n.m.root || s == n.m.stable(a)
}

func (v *volume) fill(a files.Attr, o *fuse.Attr) {
	o.Ino, o.Size, o.Blocks, o.Blksize = v.ino(a), a.Size, a.Blocks, files.MaxIO
	o.Mode, o.Nlink, o.Uid, o.Gid, o.Rdev = a.Mode, a.Nlink, a.UID, a.GID, a.Rdev
	o.Atime, o.Atimensec = seconds(a.Atime)
	o.Mtime, o.Mtimensec = seconds(a.Mtime)
	o.Ctime, o.Ctimensec = seconds(a.Ctime)
}

func seconds(ns int64) (uint64, uint32) {
	s, r := ns/1e9, ns%1e9
	if r < 0 {
		s, r = s-1, r+1e9
	}
	return uint64(s), uint32(r)
}

// enter makes the inode of a and fills the entry.
func (n *node) enter(ctx context.Context, a files.Attr, out *fuse.EntryOut, ttl func(bool) time.Duration) *fs.Inode {
	n.m.fill(a, &out.Attr)
	out.SetEntryTimeout(ttl(a.Named))
	out.SetAttrTimeout(ttl(a.Watched))
	c := &node{m: n.m, attr: a}
	in := n.NewInode(ctx, c, n.m.stable(a))
	if x := in.Operations().(*node); x != c {
		x.mu.Lock()
		x.attr = a
		x.mu.Unlock()
	}
	return in
}

// unknown: the next lookup of name asks the server.
func (n *node) unknown(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gen++
	if n.list != nil {
		n.list.changed[name] = true
	}
}

// set notes what we did to name ourselves: what the server answered, or that it
// is gone (nil). The server does not tell us of it.
func (n *node) set(name string, a *files.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gen++
	l := n.list
	if l == nil {
		return
	}
	delete(l.changed, name)
	if a == nil {
		delete(l.entries, name)
	} else {
		l.entries[name] = *a
	}
}

// touched: our own writes changed what the parent's listing says of n.
func (n *node) touched() {
	if n == n.m.root {
		return
	}
	if name, p := n.Parent(); p != nil {
		p.Operations().(*node).unknown(name)
	}
}

// known looks name up in the listing.
func (n *node) known(name string) (a files.Attr, found, answer bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.list
	if l == nil || !l.fresh() || l.changed[name] {
		return a, false, false
	}
	a, found = l.entries[name]
	switch {
	case found:
		return a, true, a.Watched || time.Since(l.at) < shortTTL
	case l.end || name <= l.upTo:
		return files.Attr{Named: l.watched}, false, true
	}
	return a, false, false
}

// load asks for the listing, all of it or its first page.
func (n *node) load(ctx context.Context, all bool) (*listing, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return &listing{end: true}, 0
	}
	n.mu.Lock()
	gen, epoch := n.gen, n.m.epoch.Load()
	n.mu.Unlock()
	l := &listing{entries: map[string]files.Attr{}, changed: map[string]bool{}, watched: true}
	for !l.end {
		page, err := n.m.c.ReadDir(ctx, p, l.upTo, false, 1<<20)
		if err != nil {
			return nil, errno(err)
		}
		for _, e := range page.Entries {
			l.entries[e.Name] = e.Attr
			l.upTo = e.Name
		}
		l.end, l.watched = page.End, l.watched && page.Watched
		if !all || len(page.Entries) == 0 {
			break
		}
	}
	l.at = time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m.epoch.Load() != epoch {
		l.watched = false
	}
	if n.gen == gen {
		n.list = l
	}
	return l, 0
}

// Lookup answers from the directory's listing, which is asked for at the second
// lookup that goes to the server.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if in, no := n.mounted(ctx, name, out); in != nil || no != 0 {
		return in, no
	}
	if c := n.GetChild(name); c != nil {
		if x, ok := c.Operations().(*node); ok {
			x.drain() // the kernel takes the size for newer than what was written before
		}
	}
	ttl, end := n.m.begin()
	defer end()
	a, found, ok := n.known(name)
	if !ok {
		n.mu.Lock()
		n.misses++
		load := n.misses > 1 && (n.list == nil || !n.list.fresh())
		n.mu.Unlock()
		if load {
			if _, no := n.load(ctx, false); no != 0 && no != syscall.EACCES {
				return nil, no
			}
			a, found, ok = n.known(name)
		}
	}
	if !ok {
		p, no := n.child(name)
		if no != 0 {
			return nil, no
		}
		var err error
		if a, err = n.m.c.Stat(ctx, p); err != nil && err != syscall.ENOENT {
			return nil, errno(err)
		}
		if found = err == nil; found {
			n.mu.Lock()
			if n.list != nil {
				n.list.entries[name] = a
				if a.Watched && ttl(true) > 0 {
					delete(n.list.changed, name)
				}
			}
			n.mu.Unlock()
		}
	}
	if !found {
		// go-fuse makes ENOENT last for Options.NegativeTimeout, unless there is
		// a timeout already.
		if !a.Named || ttl(true) == 0 {
			out.SetEntryTimeout(1)
		}
		return nil, syscall.ENOENT
	}
	return n.enter(ctx, a, out, ttl), 0
}

// Readdir lists names; the lookups that follow are answered from the same listing.
func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	n.mu.Lock()
	l := n.list
	complete := l != nil && l.fresh() && l.end && len(l.changed) == 0
	n.mu.Unlock()
	if !complete {
		var no syscall.Errno
		if l, no = n.load(ctx, true); no != 0 {
			return nil, no
		}
	}
	n.mu.Lock()
	es := make([]fuse.DirEntry, 0, len(l.entries))
	for name, a := range l.entries {
		es = append(es, fuse.DirEntry{Name: name, Mode: a.Mode, Ino: n.m.ino(a)})
	}
	n.mu.Unlock()
	sort.Slice(es, func(i, j int) bool { return es[i].Name < es[j].Name })
	return fs.NewListDirStream(es), 0
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.drain()
	ttl, end := n.m.begin()
	defer end()
	h, _ := f.(*handle)
	a, no := n.stat(ctx, h)
	if no != 0 {
		return no
	}
	n.mu.Lock()
	n.attr = a
	n.mu.Unlock()
	n.m.fill(a, &out.Attr)
	out.SetTimeout(ttl(a.Watched))
	return 0
}

func (n *node) stat(ctx context.Context, h *handle) (files.Attr, syscall.Errno) {
	if h != nil {
		if f := h.open(); f != nil {
			a, err := f.Stat(ctx)
			return a, errno(err)
		}
	}
	if p, ok := n.path(); ok {
		a, err := n.m.c.Stat(ctx, p)
		if err == nil && n.is(a) {
			return a, 0
		}
		if err != nil && err != syscall.ENOENT {
			return a, errno(err)
		}
	}
	if h != nil && h.body != nil { // unlinked or replaced; we have all of it
		a := h.body.attr
		a.Nlink = 0
		return a, 0
	}
	a, _, err := n.m.c.Recall(ctx, n.seen())
	return a, errno(err)
}

// Access is asked for where this kernel does not check by itself: whoever asks, it
// is the server's user who may or may not, and he is told when he does.
func (n *node) Access(_ context.Context, mask uint32) syscall.Errno {
	if mask&unix.W_OK != 0 && n.m.c.Info().ReadOnly {
		return syscall.EROFS
	}
	return 0
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.drain()
	var s files.Setattr
	if v, ok := in.GetMode(); ok {
		s.Valid, s.Mode = s.Valid|files.SetMode, v
	}
	if v, ok := in.GetUID(); ok {
		s.Valid, s.UID = s.Valid|files.SetUID, v
	}
	if v, ok := in.GetGID(); ok {
		s.Valid, s.GID = s.Valid|files.SetGID, v
	}
	if v, ok := in.GetSize(); ok {
		s.Valid, s.Size = s.Valid|files.SetSize, v
	}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		s.Valid, s.Atime = s.Valid|files.SetAtime, int64(in.Atime)*1e9+int64(in.Atimensec)
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		s.Valid, s.Mtime = s.Valid|files.SetMtime, int64(in.Mtime)*1e9+int64(in.Mtimensec)
	}
	if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
		s.Valid |= files.SetAtimeNow
	}
	if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
		s.Valid |= files.SetMtimeNow
	}
	p, named := n.path()
	var file *files.File
	if h, ok := f.(*handle); ok {
		file = h.open()
	}
	if !named && file == nil {
		return syscall.ESTALE
	}
	ttl, end := n.m.begin()
	defer end()
	a, err := n.m.c.Setattr(ctx, p, file, s)
	if err != nil {
		return errno(err)
	}
	n.ver.Add(1)
	if named {
		n.m.dropBodies(p, false)
	}
	n.touched()
	n.m.fill(a, &out.Attr)
	out.SetTimeout(ttl(a.Watched))
	return 0
}

func (n *node) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	n.mu.Lock()
	t := n.target
	n.mu.Unlock()
	if t == "" {
		var a files.Attr
		err := error(syscall.ESTALE)
		if p, ok := n.path(); ok {
			t, a, err = n.m.c.Readlink(ctx, p)
		}
		if err != nil || !n.is(a) { // the name is another's by now
			if _, rt, rerr := n.m.c.Recall(ctx, n.seen()); rerr == nil {
				t, err = rt, nil
			} else if err == nil || err == syscall.EINVAL {
				err = syscall.ESTALE
			}
		}
		if err != nil {
			return nil, errno(err)
		}
		n.mu.Lock()
		n.target = t
		n.mu.Unlock()
	}
	return []byte(t), 0
}

func (v *volume) owner(ctx context.Context) files.Owner {
	if v.server {
		return files.Owner{}
	}
	if c, ok := fuse.FromContext(ctx); ok {
		return files.Owner{UID: c.Uid, GID: c.Gid}
	}
	return files.Owner{}
}

// made finishes what makes a name.
func (n *node) made(ctx context.Context, name string, a files.Attr, err error, out *fuse.EntryOut, ttl func(bool) time.Duration) (*fs.Inode, syscall.Errno) {
	if err != nil {
		return nil, errno(err)
	}
	n.set(name, &a)
	return n.enter(ctx, a, out, ttl), 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p, no := n.child(name)
	if no != 0 {
		return nil, no
	}
	ttl, end := n.m.begin()
	defer end()
	a, err := n.m.c.Mkdir(ctx, p, mode, n.m.owner(ctx))
	return n.made(ctx, name, a, err, out, ttl)
}

func (n *node) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p, no := n.child(name)
	if no != 0 {
		return nil, no
	}
	ttl, end := n.m.begin()
	defer end()
	a, err := n.m.c.Mknod(ctx, p, mode, dev, n.m.owner(ctx))
	return n.made(ctx, name, a, err, out, ttl)
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p, no := n.child(name)
	if no != 0 {
		return nil, no
	}
	ttl, end := n.m.begin()
	defer end()
	a, err := n.m.c.Symlink(ctx, target, p, n.m.owner(ctx))
	return n.made(ctx, name, a, err, out, ttl)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	t, ok := target.(*node)
	if !ok || t.m != n.m {
		return nil, syscall.EXDEV
	}
	from, ok := t.path()
	p, no := n.child(name)
	if !ok || no != 0 {
		return nil, syscall.ENOENT
	}
	t.drain()
	ttl, end := n.m.begin()
	defer end()
	a, err := n.m.c.Link(ctx, from, p)
	t.touched()
	return n.made(ctx, name, a, err, out, ttl)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	p, no := n.child(name)
	if no != 0 {
		return no
	}
	if err := n.m.c.Unlink(ctx, p); err != nil {
		return errno(err)
	}
	n.m.dropBodies(p, false)
	n.set(name, nil)
	return 0
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	p, no := n.child(name)
	if no != 0 {
		return no
	}
	if err := n.m.c.Rmdir(ctx, p); err != nil {
		return errno(err)
	}
	n.set(name, nil)
	return 0
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	d, ok := to.(*node)
	if !ok || d.m != n.m {
		return syscall.EXDEV
	}
	from, no := n.child(name)
	dest, no2 := d.child(newName)
	if no != 0 || no2 != 0 {
		return syscall.ENOENT
	}
	if err := n.m.c.Rename(ctx, from, dest, flags); err != nil {
		return errno(err)
	}
	n.m.dropBodies(from, true)
	n.m.dropBodies(dest, true)
	if flags == 0 || flags == unix.RENAME_NOREPLACE {
		n.set(name, nil)
	} else {
		n.unknown(name)
	}
	d.unknown(newName)
	return 0
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	s, err := n.m.c.Statfs(ctx)
	if err != nil {
		return errno(err)
	}
	out.Blocks, out.Bfree, out.Bavail, out.Files, out.Ffree = s.Blocks, s.Bfree, s.Bavail, s.Files, s.Ffree
	out.Bsize, out.NameLen, out.Frsize = s.Bsize, s.Namelen, s.Frsize
	return 0
}

func value(v []byte, err error, dest []byte) (uint32, syscall.Errno) {
	if err != nil {
		return 0, errno(err)
	}
	if len(dest) < len(v) {
		return uint32(len(v)), syscall.ERANGE
	}
	return uint32(copy(dest, v)), 0
}

func (n *node) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if attr == "security.capability" || attr == "security.selinux" { // asked for at every write; of no use to a handler
		return 0, syscall.ENODATA
	}
	p, ok := n.path()
	if !ok {
		return 0, syscall.ENODATA
	}
	v, err := n.m.c.Getxattr(ctx, p, attr)
	return value(v, err, dest)
}

func (n *node) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return 0, 0
	}
	v, err := n.m.c.Listxattr(ctx, p)
	return value(v, err, dest)
}

func (n *node) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	p, ok := n.path()
	if !ok {
		return syscall.ESTALE
	}
	defer n.touched()
	return errno(n.m.c.Setxattr(ctx, p, attr, data, flags))
}

func (n *node) Removexattr(ctx context.Context, attr string) syscall.Errno {
	p, ok := n.path()
	if !ok {
		return syscall.ESTALE
	}
	defer n.touched()
	return errno(n.m.c.Removexattr(ctx, p, attr))
}
