package mount

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	chunk    = files.MaxIO
	maxAhead = 12 // chunks under way, when a file is read through
	smallMax = 64 << 10
)

// handle is an open file: on the server, or a small one of which we have all.
type handle struct {
	n     *node
	flags uint32

	body *body // until file is set

	mu    sync.Mutex
	file  *files.File
	gone  bool // the body's file has no name any more: it is all there is
	err   error
	next  int64 // where a sequential reader goes on
	ahead int
	chunk map[int64]*piece
}

type piece struct {
	ver  uint64
	at   time.Time
	p    files.Pending
	once sync.Once
	b    []byte
	err  error
}

func (p *piece) wait() ([]byte, error) {
	p.once.Do(func() { p.b, p.err = p.p.Data(context.Background()) })
	return p.b, p.err
}

func (h *handle) open() *files.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.file
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.drain()
	h := &handle{n: n, flags: flags}
	var a files.Attr
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY && flags&syscall.O_TRUNC == 0 {
		n.mu.Lock()
		size := n.attr.Size
		n.mu.Unlock()
		if size <= smallMax {
			if h.body = n.small(ctx); h.body != nil {
				a = h.body.attr
			}
		}
	}
	if h.body == nil {
		f, err := n.openFile(ctx, flags&^(syscall.O_CREAT|syscall.O_EXCL))
		if err != nil {
			return nil, 0, errno(err)
		}
		h.file, a = f, f.Attr
		if flags&syscall.O_TRUNC != 0 {
			n.changed()
		}
	}
	if flags&syscall.O_APPEND != 0 {
		return h, fuse.FOPEN_DIRECT_IO, 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attr = a
	var keep uint32
	if n.pages.SameContent(a) {
		keep = fuse.FOPEN_KEEP_CACHE
	}
	n.pages = a
	return h, keep, 0
}

// openFile opens n on the server by its path or, if that has become another's since
// the kernel looked it up, as the file that it was. ESTALE makes the kernel look the
// name up again, but only once: a program that replaces a file in a loop would
// show it to those who open it.
func (n *node) openFile(ctx context.Context, flags uint32) (*files.File, error) {
	f, err := n.m.c.Open(ctx, n.path, flags, 0, files.Owner{})
	if err == nil && n.is(f.Attr) {
		return f, nil
	}
	if err == nil {
		f.Close()
		err = syscall.ESTALE
	}
	switch err {
	case syscall.ESTALE, syscall.ENOENT, syscall.ELOOP, syscall.EISDIR, syscall.EINVAL:
		if f, rerr := n.m.c.Reopen(ctx, n.seen(), flags); rerr == nil {
			return f, nil
		}
	}
	return nil, err
}

// seen is what was last known of the file.
func (n *node) seen() files.Attr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attr
}

// small gets the whole of a small file: read ahead already, or now, alone or, if
// it is not the first of its directory, with those that follow it.
func (n *node) small(ctx context.Context) *body {
	path, ok := n.path()
	name, parent := n.Parent()
	if !ok || parent == nil || n == n.m.root {
		return nil
	}
	if b := n.m.body(path); b != nil && n.is(b.attr) {
		return b
	}
	d := parent.Operations().(*node)
	dir, _ := d.path()
	d.mu.Lock()
	d.reads++
	many := d.reads > 1
	d.room = min(max(d.room*2, 256<<10), 4<<20)
	room := d.room
	d.mu.Unlock()
	epoch := n.m.epoch.Load()
	since, end := n.m.ask()
	defer end()
	var es []files.Entry
	if many {
		p, err := n.m.c.ReadDir(ctx, dir, before(name), true, room)
		if err != nil {
			return nil
		}
		es = p.Entries
	} else {
		e, err := n.m.c.Get(ctx, path)
		if err != nil {
			return nil
		}
		e.Name = name
		es = []files.Entry{e}
	}
	now := time.Now()
	for _, e := range es {
		if e.Body == nil {
			continue
		}
		e.Attr.Watched = e.Attr.Watched && n.m.epoch.Load() == epoch
		// Its own memory: a page must not live as long as its last file.
		n.m.keepBody(join(dir, e.Name), &body{attr: e.Attr, data: slices.Clone(e.Body), at: now}, since)
	}
	if b := n.m.body(path); b != nil && n.is(b.attr) {
		return b
	}
	return nil
}

// before is a name that sorts closely before name.
func before(name string) string {
	b := []byte(name)
	b[len(b)-1]--
	return string(b) + "\xff\xff"
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	p, no := n.child(name)
	if no != 0 {
		return nil, nil, 0, no
	}
	ttl, end := n.m.begin()
	defer end()
	h := &handle{flags: flags}
	var mu sync.Mutex
	path := func() (string, bool) {
		mu.Lock()
		defer mu.Unlock()
		if h.n != nil {
			return h.n.path()
		}
		return p, true
	}
	f, err := n.m.c.Open(ctx, path, flags|syscall.O_CREAT, mode, n.m.owner(ctx))
	if err != nil {
		return nil, nil, 0, errno(err)
	}
	n.m.dropBodies(p, false)
	n.set(name, &f.Attr)
	in := n.enter(ctx, f.Attr, out, ttl)
	mu.Lock()
	h.n, h.file = in.Operations().(*node), f
	mu.Unlock()
	h.n.ver.Add(1)
	if flags&syscall.O_APPEND != 0 {
		return in, h, fuse.FOPEN_DIRECT_IO, 0
	}
	return in, h, 0, 0
}

// changed: what was read ahead of n, and what its parent's listing says, is old.
func (n *node) changed() {
	n.ver.Add(1)
	if p, ok := n.path(); ok {
		n.m.dropBodies(p, false)
	}
	n.touched()
}

// drain waits for the writes under way.
func (n *node) drain() {
	n.wmu.Lock()
	n.drainLocked()
	n.wmu.Unlock()
}

func (n *node) drainLocked() {
	for n.writes > 0 {
		n.wcond.Wait()
	}
}

func (n *node) Write(ctx context.Context, fh fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	h := fh.(*handle)
	f := h.open()
	if f == nil {
		return 0, syscall.EBADF
	}
	if err := h.failed(false); err != nil {
		return 0, errno(err)
	}
	n.wmu.Lock()
	if n.wcond == nil {
		n.wcond = sync.NewCond(&n.wmu)
	}
	if n.writer != h {
		n.drainLocked() // their order counts, and the server keeps it per open file only
		n.writer = h
	}
	n.wmu.Unlock()
	if h.flags&syscall.O_APPEND != 0 {
		a, err := f.WriteAsync(0, data).Written()
		n.changed()
		if err != nil {
			return 0, errno(err)
		}
		if a.Size != uint64(off)+uint64(len(data)) { // others append too: the kernel's idea of the end is wrong
			go n.NotifyContent(0, 0)
		}
		return uint32(len(data)), 0
	}
	n.m.slots <- struct{}{}
	n.wmu.Lock()
	first := n.writes == 0
	n.writes++
	p := f.WriteAsync(off, slices.Clone(data))
	n.wmu.Unlock()
	n.ver.Add(1)
	if first {
		n.changed()
	}
	go func() {
		_, err := p.Written()
		if err != nil {
			h.mu.Lock()
			if h.err == nil {
				h.err = err
			}
			h.mu.Unlock()
		}
		<-n.m.slots
		n.wmu.Lock()
		if n.writes--; n.writes == 0 {
			n.changed() // again: what was asked for since the first may not have all of them
			n.wcond.Broadcast()
		}
		n.wmu.Unlock()
	}()
	return uint32(len(data)), 0
}

// failed returns the first error of a write that was queued; clear, when it is
// about to be reported by fsync or close.
func (h *handle) failed(clear bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.err
	if clear {
		h.err = nil
	}
	return err
}

func (n *node) Flush(ctx context.Context, fh fs.FileHandle) syscall.Errno {
	h := fh.(*handle)
	n.drain()
	if err := h.failed(true); err != nil {
		return errno(err)
	}
	if f := h.open(); f != nil && h.flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return errno(f.Flush(ctx))
	}
	return 0
}

func (n *node) Fsync(ctx context.Context, fh fs.FileHandle, flags uint32) syscall.Errno {
	h, ok := fh.(*handle)
	if !ok {
		p, _ := n.path()
		return errno(n.m.c.SyncDir(ctx, p))
	}
	n.drain()
	err := h.failed(true)
	f := h.open()
	if f == nil {
		return 0
	}
	if serr := f.Sync(ctx, flags&1 != 0); err == nil {
		err = serr
	}
	return errno(err)
}

func (n *node) Release(ctx context.Context, fh fs.FileHandle) syscall.Errno {
	h := fh.(*handle)
	n.drain()
	n.wmu.Lock()
	if n.writer == h {
		n.writer = nil
	}
	n.wmu.Unlock()
	if f := h.open(); f != nil {
		f.Close()
	}
	return 0
}

func (n *node) Allocate(ctx context.Context, fh fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	n.drain()
	f := fh.(*handle).open()
	if f == nil {
		return syscall.EBADF
	}
	defer n.changed()
	return errno(f.Allocate(ctx, mode, int64(off), int64(size)))
}

func (n *node) Lseek(ctx context.Context, fh fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	n.drain()
	h, ok := fh.(*handle)
	if !ok {
		return 0, syscall.ENOTSUP
	}
	f, no := h.real(ctx)
	if no != 0 {
		return 0, no
	}
	if f == nil {
		switch size := uint64(len(h.body.data)); {
		case off >= size:
			return 0, syscall.ENXIO
		case whence == 3: // SEEK_DATA
			return off, 0
		default:
			return size, 0
		}
	}
	x, err := f.Seek(ctx, int64(off), whence)
	return uint64(x), errno(err)
}

// real opens on the server what was served from memory. nil without an error:
// that file has no name any more, and its content is what we have.
func (h *handle) real(ctx context.Context) (*files.File, syscall.Errno) {
	h.mu.Lock()
	f, gone := h.file, h.gone
	h.mu.Unlock()
	if f != nil || gone {
		return f, 0
	}
	f, err := h.n.m.c.Open(ctx, h.n.path, h.flags&^(syscall.O_CREAT|syscall.O_EXCL), 0, files.Owner{})
	if err != nil && err != syscall.ENOENT && err != syscall.ESTALE && err != syscall.ELOOP {
		return nil, errno(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || !h.n.is(f.Attr) || h.file != nil {
		if f != nil {
			f.Close()
		}
		h.gone = h.file == nil
		return h.file, 0
	}
	h.file = f
	return f, 0
}

func (n *node) Read(ctx context.Context, fh fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h := fh.(*handle)
	n.drain()
	if h.body != nil {
		fresh := !h.body.old.Load() && (h.body.attr.Watched || time.Since(h.body.at) < shortTTL)
		if !fresh {
			if _, no := h.real(ctx); no != 0 {
				return nil, no
			}
		}
		if h.open() == nil {
			b := h.body.data
			if off >= int64(len(b)) {
				return fuse.ReadResultData(nil), 0
			}
			return fuse.ReadResultData(b[off:min(int(off)+len(dest), len(b))]), 0
		}
	}
	return h.read(ctx, dest, off)
}

// read reads ahead for who reads on where the last read ended, or nearly so (the
// kernel asks out of order), and exactly what is asked for otherwise.
func (h *handle) read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h.mu.Lock()
	f := h.file
	seq := off >= h.next-chunk && off <= h.next+chunk/2
	if off+int64(len(dest)) > h.next || !seq {
		h.next = off + int64(len(dest))
	}
	if !seq || h.flags&syscall.O_ACCMODE != syscall.O_RDONLY && len(dest) < 64<<10 {
		h.ahead, h.chunk = 0, nil
		h.mu.Unlock()
		b, err := f.ReadAsync(off, len(dest)).Data(ctx)
		return fuse.ReadResultData(b), errno(err)
	}
	ver := h.n.ver.Load()
	size := int64(f.Attr.Size)
	first, last := off/chunk, (off+int64(len(dest))-1)/chunk
	if h.chunk == nil {
		h.chunk = map[int64]*piece{}
	}
	for i := range h.chunk {
		if i < first-1 || h.chunk[i].ver != ver {
			delete(h.chunk, i)
		}
	}
	if p := h.chunk[last]; p == nil && last > 0 || h.ahead == 0 {
		h.ahead = min(max(2*h.ahead, 2), maxAhead)
	}
	for i := first; i <= last+int64(h.ahead); i++ {
		if i > last && i*chunk >= size {
			break
		}
		if p := h.chunk[i]; p == nil || time.Since(p.at) > 5*time.Second && i <= last {
			h.chunk[i] = &piece{ver: ver, at: time.Now(), p: f.ReadAsync(i*chunk, chunk)}
		}
	}
	pieces := []*piece{h.chunk[first]}
	if last != first {
		pieces = append(pieces, h.chunk[last])
	}
	h.mu.Unlock()
	var out []byte
	for i, p := range pieces {
		b, err := p.wait()
		if err != nil {
			return nil, errno(err)
		}
		from := max(off-(first+int64(i))*chunk, 0)
		to := min(off+int64(len(dest))-(first+int64(i))*chunk, int64(len(b)))
		if from >= to {
			break
		}
		if len(pieces) == 1 {
			return fuse.ReadResultData(b[from:to]), 0
		}
		out = append(out, b[from:to]...)
		if len(b) < chunk {
			break
		}
	}
	return fuse.ReadResultData(out), 0
}
