package files

import (
	"context"
	"sync"
	"syscall"
)

func attrOf(f fields, err error) (Attr, error) {
	if err != nil {
		return Attr{}, err
	}
	a := f.attr()
	return checked(&f, a, nil)
}

// Stat tells of path. A missing name is ENOENT; the Attr then says with Named
// whether the client will be told when it appears.
func (c *Client) Stat(ctx context.Context, path string) (Attr, error) {
	a, err := attrOf(c.call(ctx, opStat, false, func(b *buffer) { b.str(path) }))
	if err == nil && a.Mode == 0 {
		err = syscall.ENOENT
	}
	return a, err
}

// Setattr changes attributes of f if it is not nil, else of what lies at path.
func (c *Client) Setattr(ctx context.Context, path string, f *File, s Setattr) (Attr, error) {
	var id uint64
	if f != nil {
		if err := f.usable(); err != nil {
			return Attr{}, err
		}
		id = f.id
	}
	return attrOf(c.call(ctx, opSetattr, false, func(b *buffer) { b.u64(id); b.str(path); b.setattr(s) }))
}

// ReadDir lists path from the first name after the name after, at most about
// budget bytes of it; with bodies, small files come with their content.
func (c *Client) ReadDir(ctx context.Context, path, after string, bodies bool, budget int) (Page, error) {
	f, err := c.call(ctx, opReaddir, false, func(b *buffer) { b.str(path); b.str(after); b.bool(bodies); b.u32(uint32(budget)) })
	if err != nil {
		return Page{}, err
	}
	p := Page{End: f.bool(), Watched: f.bool()}
	for n := f.u32(); n > 0 && !f.bad; n-- {
		p.Entries = append(p.Entries, f.entry())
	}
	return checked(&f, p, nil)
}

// Get reads a small file whole. Body is nil where it is not small, not regular,
// or was being written.
func (c *Client) Get(ctx context.Context, path string) (Entry, error) {
	f, err := c.call(ctx, opGet, false, func(b *buffer) { b.str(path) })
	if err != nil {
		return Entry{}, err
	}
	e := f.entry()
	return checked(&f, e, nil)
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, path string, mode uint32, o Owner) (Attr, error) {
	return attrOf(c.call(ctx, opMkdir, true, func(b *buffer) { b.str(path); b.u32(mode); b.u32(o.UID); b.u32(o.GID) }))
}

// Mknod makes a regular file, FIFO or socket.
func (c *Client) Mknod(ctx context.Context, path string, mode, rdev uint32, o Owner) (Attr, error) {
	return attrOf(c.call(ctx, opMknod, true, func(b *buffer) { b.str(path); b.u32(mode); b.u32(rdev); b.u32(o.UID); b.u32(o.GID) }))
}

// Symlink makes a symbolic link.
func (c *Client) Symlink(ctx context.Context, target, path string, o Owner) (Attr, error) {
	return attrOf(c.call(ctx, opSymlink, true, func(b *buffer) { b.str(path); b.str(target); b.u32(o.UID); b.u32(o.GID) }))
}

// Link makes another name for from.
func (c *Client) Link(ctx context.Context, from, path string) (Attr, error) {
	return attrOf(c.call(ctx, opLink, true, func(b *buffer) { b.str(path); b.str(from) }))
}

// Unlink removes a name.
func (c *Client) Unlink(ctx context.Context, path string) error {
	_, err := c.call(ctx, opUnlink, true, func(b *buffer) { b.str(path) })
	return err
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, path string) error {
	_, err := c.call(ctx, opRmdir, true, func(b *buffer) { b.str(path) })
	return err
}

// Rename renames, with the flags of renameat2(2).
func (c *Client) Rename(ctx context.Context, from, to string, flags uint32) error {
	_, err := c.call(ctx, opRename, true, func(b *buffer) { b.str(from); b.str(to); b.u32(flags) })
	return err
}

// Readlink reads a symbolic link, and tells which one lay at path.
func (c *Client) Readlink(ctx context.Context, path string) (string, Attr, error) {
	f, err := c.call(ctx, opReadlink, false, func(b *buffer) { b.str(path) })
	if err != nil {
		return "", Attr{}, err
	}
	t, a := f.str(), f.attr()
	_, err = checked(&f, a, nil)
	return t, a, err
}

// Statfs tells of the root's file system.
func (c *Client) Statfs(ctx context.Context) (Statfs, error) {
	f, err := c.call(ctx, opStatfs, false, nil)
	if err != nil {
		return Statfs{}, err
	}
	s := Statfs{Blocks: f.u64(), Bfree: f.u64(), Bavail: f.u64(), Files: f.u64(), Ffree: f.u64(), Bsize: f.u32(), Namelen: f.u32(), Frsize: f.u32()}
	return checked(&f, s, nil)
}

// Getxattr reads an extended attribute.
func (c *Client) Getxattr(ctx context.Context, path, name string) ([]byte, error) {
	f, err := c.call(ctx, opGetxattr, false, func(b *buffer) { b.str(path); b.str(name) })
	return f.bytes(), err
}

// Listxattr lists them, each name ended by a zero byte.
func (c *Client) Listxattr(ctx context.Context, path string) ([]byte, error) {
	f, err := c.call(ctx, opListxattr, false, func(b *buffer) { b.str(path) })
	return f.bytes(), err
}

// Setxattr sets one.
func (c *Client) Setxattr(ctx context.Context, path, name string, v []byte, flags uint32) error {
	_, err := c.call(ctx, opSetxattr, flags != 0, func(b *buffer) { b.str(path); b.str(name); b.bytes(v); b.u32(flags) })
	return err
}

// Removexattr removes one.
func (c *Client) Removexattr(ctx context.Context, path, name string) error {
	_, err := c.call(ctx, opRemovexattr, true, func(b *buffer) { b.str(path); b.str(name) })
	return err
}

// SyncDir makes the names in a directory durable.
func (c *Client) SyncDir(ctx context.Context, path string) error {
	_, err := c.call(ctx, opSyncdir, false, func(b *buffer) { b.str(path) })
	return err
}

// File is an open file on the server.
type File struct {
	c     *Client
	id    uint64
	flags uint32
	path  func() (string, bool)
	// Attr as of the open.
	Attr Attr
	// opening is the call that opens it; the client's mu guards it.
	opening *call

	mu       sync.Mutex
	stale    bool
	unsynced bool // acknowledged writes since the last fsync
	lost     bool // and they may be gone
}

func openArgs(b *buffer, id uint64, path string, flags, mode uint32, o Owner) {
	b.u64(id)
	b.str(path)
	b.u32(flags)
	b.u32(mode)
	b.u32(o.UID)
	b.u32(o.GID)
}

// Open opens or, with O_CREAT in flags, creates a file. path tells its present
// path, and whether it has any, when it must be opened again.
func (c *Client) Open(ctx context.Context, path func() (string, bool), flags, mode uint32, o Owner) (*File, error) {
	p, ok := path()
	if !ok {
		return nil, syscall.ESTALE
	}
	f := &File{c: c, id: c.nextFH.Add(1), flags: flags, path: path}
	// Without these, opening twice is the same as opening once.
	once := flags&(syscall.O_CREAT|syscall.O_TRUNC) != 0
	return f.opened(ctx, opOpen, once, func(b *buffer) { openArgs(b, f.id, p, flags, mode, o) })
}

// opened makes the call that opens f. The client knows f from the call on, not
// from its answer: another server can have taken over before anyone reads that.
func (f *File) opened(ctx context.Context, o op, once bool, args func(*buffer)) (*File, error) {
	c := f.c
	c.mu.Lock()
	f.opening = c.make(o, args, nil, once)
	c.files[f.id] = f
	c.launch(f.opening)
	var err error
	if f.Attr, err = attrOf(c.wait(ctx, f.opening)); err != nil {
		c.mu.Lock()
		delete(c.files, f.id)
		c.mu.Unlock()
		return nil, err
	}
	return f, nil
}

// was is the file's identity as the server told it, false if it has not yet.
func (f *File) was() (Attr, bool) {
	select {
	case <-f.opening.done:
		a, err := attrOf(fields{b: f.opening.body}, nil)
		return a, err == nil && f.opening.errno == 0
	default:
		return Attr{}, false
	}
}

// Recall finds a file that this client itself unlinked or renamed another over, a
// moment ago, by its identity. Between a lookup and the open that follows, the
// kernel holds no file open: without this, one that is replaced in that moment
// is ESTALE to a program that did nothing but open its name. ESTALE if the server
// does not have it any more. The string is the target of a link.
func (c *Client) Recall(ctx context.Context, a Attr) (Attr, string, error) {
	return recalled(c.call(ctx, opRecall, false, func(b *buffer) { recallArgs(b, 0, a, 0) }))
}

// Reopen is Open for such a file.
func (c *Client) Reopen(ctx context.Context, a Attr, flags uint32) (*File, error) {
	f := &File{c: c, id: c.nextFH.Add(1), flags: flags, path: func() (string, bool) { return "", false }}
	return f.opened(ctx, opRecall, true, func(b *buffer) { recallArgs(b, f.id, a, flags) })
}

func recallArgs(b *buffer, id uint64, a Attr, flags uint32) {
	b.u64(id)
	b.attr(a)
	b.u32(flags)
}

func recalled(f fields, err error) (Attr, string, error) {
	if err != nil {
		return Attr{}, "", err
	}
	a, target := f.attr(), f.str()
	_, err = checked(&f, a, nil)
	return a, target, err
}

func (f *File) reflags() uint32 {
	return f.flags &^ (syscall.O_CREAT | syscall.O_EXCL | syscall.O_TRUNC)
}

func (f *File) reattached(ok, changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !ok {
		f.stale = true
	}
	if f.unsynced && (!ok || changed) {
		f.lost = true
	}
}

func (f *File) usable() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stale {
		return syscall.ESTALE
	}
	return nil
}

// Pending is a request under way. Wait may be called once.
type Pending struct {
	f *File
	p *call
}

// ReadAsync asks for n bytes at off, at most MaxIO.
func (f *File) ReadAsync(off int64, n int) Pending {
	return Pending{f, f.c.start(opRead, func(b *buffer) { b.u64(f.id); b.i64(off); b.u32(uint32(n)) }, nil, false)}
}

// Data waits for what was read; less than asked for means the end of the file.
func (p Pending) Data(ctx context.Context) ([]byte, error) {
	if err := p.f.usable(); err != nil {
		return nil, err
	}
	f, err := p.f.c.wait(ctx, p.p)
	if err == nil {
		err = p.f.usable()
	}
	return f.rest(), err
}

// WriteAsync writes data, at most MaxIO, which must not change until it is done.
// Writes of one File are done in the order of the calls. The offset does not
// count for a file that was opened with O_APPEND.
func (f *File) WriteAsync(off int64, data []byte) Pending {
	return Pending{f, f.c.start(opWrite, func(b *buffer) { b.u64(f.id); b.i64(off) }, data, f.flags&syscall.O_APPEND != 0)}
}

// Written waits for a write and returns the file's attributes after it.
func (p Pending) Written() (Attr, error) {
	f, err := p.f.c.wait(context.Background(), p.p)
	if err != nil {
		return Attr{}, err
	}
	a := f.attr()
	p.f.mu.Lock()
	p.f.unsynced = true
	p.f.mu.Unlock()
	return checked(&f, a, p.f.usable())
}

// Stat tells of the open file.
func (f *File) Stat(ctx context.Context) (Attr, error) {
	if err := f.usable(); err != nil {
		return Attr{}, err
	}
	return attrOf(f.c.call(ctx, opFstat, false, func(b *buffer) { b.u64(f.id) }))
}

// Sync is fsync(2), or fdatasync(2). EIO once if what was written before may be
// lost because the server's node is another one now.
func (f *File) Sync(ctx context.Context, dataOnly bool) error {
	f.mu.Lock()
	lost := f.lost
	f.lost, f.unsynced = false, false
	f.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	_, err := f.c.call(ctx, opFsync, false, func(b *buffer) { b.u64(f.id); b.bool(dataOnly) })
	if err == nil && lost {
		err = syscall.EIO
	}
	return err
}

// Flush returns what close(2) would.
func (f *File) Flush(ctx context.Context) error {
	f.mu.Lock()
	lost, unsynced := f.lost, f.unsynced
	f.lost = false
	f.mu.Unlock()
	if !unsynced {
		return nil
	}
	_, err := f.c.call(ctx, opFlush, false, func(b *buffer) { b.u64(f.id) })
	if err == nil && lost {
		err = syscall.EIO
	}
	return err
}

// Allocate is fallocate(2).
func (f *File) Allocate(ctx context.Context, mode uint32, off, size int64) error {
	if err := f.usable(); err != nil {
		return err
	}
	_, err := f.c.call(ctx, opAllocate, false, func(b *buffer) { b.u64(f.id); b.u32(mode); b.i64(off); b.i64(size) })
	return err
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (f *File) Seek(ctx context.Context, off int64, whence uint32) (int64, error) {
	if err := f.usable(); err != nil {
		return 0, err
	}
	r, err := f.c.call(ctx, opSeek, false, func(b *buffer) { b.u64(f.id); b.i64(off); b.u32(whence) })
	return r.i64(), err
}

// Close forgets the file; it does not wait for the server.
func (f *File) Close() {
	f.c.mu.Lock()
	delete(f.c.files, f.id)
	f.c.mu.Unlock()
	f.c.start(opRelease, func(b *buffer) { b.u64(f.id) }, nil, false)
}
