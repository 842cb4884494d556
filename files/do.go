package files

import (
	"os"

	"golang.org/x/sys/unix"
)

// do carries out one request. The answer leaves room for its head.
func (s *session) do(o op, f *fields) ([]byte, error) {
	b := buffer(make([]byte, answerHead, answerHead+128))
	if s.readOnly && s.alters(o, *f) {
		return nil, unix.EROFS
	}
	var err error
	switch o {
	case opPing:
	case opBye:
		s.mu.Lock()
		s.bye = true
		s.mu.Unlock()
	case opRead, opWrite, opFsync, opFlush, opRelease, opFstat, opAllocate, opSeek:
		return s.doHandle(o, f, b)
	case opSetattr:
		err = s.setattr(f, &b)
	case opOpen:
		err = s.open(f, &b)
	case opRecall:
		err = s.recall(f, &b)
	case opStat:
		path := f.str()
		watched := s.observe(path)
		var a Attr
		if a, err = s.ops.stat(path); err == nil {
			s.told(path, &a, watched)
			b.attr(a)
		} else if err == unix.ENOENT && watched {
			// The name is known to be missing, and will be told of: the answer
			// must say so, hence it is no error here.
			s.watch.absent(path)
			b.attr(Attr{Named: true})
			err = nil
		}
	case opReaddir:
		path, after, bodies, budget := f.str(), f.str(), f.bool(), f.u32()
		watched := s.observeDir(path)
		var p Page
		if p, err = s.ops.page(path, after, bodies, int(min(budget, pageBudget))); err == nil {
			b = make([]byte, answerHead, answerHead+16+128*len(p.Entries))
			b.bool(p.End)
			b.bool(watched)
			b.u32(uint32(len(p.Entries)))
			for _, e := range p.Entries {
				s.told(join(path, e.Name), &e.Attr, watched)
				b.entry(e)
			}
		}
	case opGet:
		path := f.str()
		watched := s.observe(path)
		var e Entry
		if e.Body, e.Attr, err = s.ops.get(path); err == nil {
			s.told(path, &e.Attr, watched)
			b.entry(e)
		}
	case opMkdir, opMknod, opSymlink, opLink:
		var path string
		var a Attr
		switch o {
		case opMkdir:
			path = f.str()
			a, err = s.ops.mkdir(path, f.u32(), Owner{f.u32(), f.u32()})
		case opMknod:
			path = f.str()
			a, err = s.ops.mknod(path, f.u32(), f.u32(), Owner{f.u32(), f.u32()})
		case opSymlink:
			path = f.str()
			a, err = s.ops.symlink(f.str(), path, Owner{f.u32(), f.u32()})
		case opLink:
			path = f.str()
			from := f.str()
			if a, err = s.ops.link(from, path); err == nil {
				s.told(from, &a, s.watch.has(dirOf(from)))
			}
		}
		if err == nil {
			s.told(path, &a, s.watch.has(dirOf(path)))
			b.attr(a)
		}
	case opUnlink, opRmdir:
		path, flags := f.str(), 0
		if o == opRmdir {
			flags = unix.AT_REMOVEDIR
		}
		forget := s.lost.keep(s.ops, path)
		if err = s.ops.remove(path, flags); err != nil {
			forget()
		} else {
			s.watch.absent(path)
			if o == opRmdir {
				s.watch.forget(path, true)
			}
		}
	case opRename:
		from, to, flags := f.str(), f.str(), f.u32()
		forget := func() {}
		if flags&unix.RENAME_EXCHANGE == 0 {
			forget = s.lost.keep(s.ops, to)
		}
		if err = s.ops.rename(from, to, flags); err != nil {
			forget()
		} else {
			s.renamed(from, to, flags)
		}
	case opReadlink:
		var t string
		var a Attr
		t, a, err = s.ops.readlink(f.str())
		b.str(t)
		b.attr(a)
	case opStatfs:
		var x Statfs
		x, err = s.ops.statfs()
		for _, v := range []uint64{x.Blocks, x.Bfree, x.Bavail, x.Files, x.Ffree} {
			b.u64(v)
		}
		for _, v := range []uint32{x.Bsize, x.Namelen, x.Frsize} {
			b.u32(v)
		}
	case opGetxattr:
		var v []byte
		v, err = s.ops.getxattr(f.str(), f.str())
		b.bytes(v)
	case opListxattr:
		var v []byte
		v, err = s.ops.listxattr(f.str())
		b.bytes(v)
	case opSetxattr:
		path, name, v, flags := f.str(), f.str(), f.bytes(), f.u32()
		err = s.ops.xattr(path, func(p string) error { return unix.Setxattr(p, name, v, int(flags)) })
	case opRemovexattr:
		path, name := f.str(), f.str()
		err = s.ops.xattr(path, func(p string) error { return unix.Removexattr(p, name) })
	case opSyncdir:
		err = s.ops.syncdir(f.str())
	default:
		err = unix.ENOSYS
	}
	if f.bad && err == nil {
		err = unix.EINVAL
	}
	return b, err
}

func dirOf(path string) string { d, _ := split(path); return d }

// alters: not on a read-only root.
func (s *session) alters(o op, f fields) bool {
	switch o {
	case opOpen:
		f.u64()
		f.str()
		fl := f.u32()
		return fl&unix.O_ACCMODE != unix.O_RDONLY || fl&(unix.O_CREAT|unix.O_TRUNC) != 0
	case opRelease:
		return false
	}
	return o.changes()
}

// renamed brings the watches in step. Those below a directory that was moved
// have the wrong path now; the client's cache of them stays right, since it
// moved its own tree, but is no longer watched: so it is told to forget.
func (s *session) renamed(from, to string, flags uint32) {
	for _, p := range []string{from, to} {
		a, err := s.ops.stat(p)
		if err != nil {
			s.watch.absent(p)
			continue
		}
		if a.IsDir() || flags&unix.RENAME_EXCHANGE != 0 {
			s.watch.forget(p, true)
			s.watch.forget(from, true)
			s.push(Event{Dir: p, Tree: true})
		}
		s.watch.tell(p, a)
	}
	s.mu.Lock()
	for _, h := range s.handles {
		if h.path == from {
			h.path = to
		}
	}
	s.mu.Unlock()
}

func (s *session) open(f *fields, b *buffer) error {
	id, path, flags, mode, owner := f.u64(), f.str(), f.u32(), f.u32(), Owner{f.u32(), f.u32()}
	if f.bad {
		return unix.EINVAL
	}
	watched := s.observe(path)
	file, a, err := s.ops.open(path, flags, mode, owner)
	if err != nil {
		return err
	}
	if err := s.opened(id, path, file, flags); err != nil {
		return err
	}
	s.told(path, &a, watched)
	b.attr(a)
	return nil
}

// opened notes an open file under the id that the client chose. A client that lost
// its connection while it opened its files again begins anew: then the same file
// is there already.
func (s *session) opened(id uint64, path string, file *os.File, flags uint32) error {
	h := &handle{f: file, path: path, flags: flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC), append: flags&unix.O_APPEND != 0}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.handles[id]
	if old == nil {
		s.handles[id] = h
		return nil
	}
	defer file.Close()
	was, err := s.ops.root.attr(int(old.f.Fd()))
	if err != nil {
		return err
	}
	if is, err := s.ops.root.attr(int(file.Fd())); err != nil || !is.SameFile(was) || old.flags != h.flags {
		return unix.EINVAL
	}
	return nil
}

func (s *session) setattr(f *fields, b *buffer) error {
	id, path, set := f.u64(), f.str(), f.setattr()
	if f.bad {
		return unix.EINVAL
	}
	var file *os.File
	if id != 0 {
		h, err := s.handle(id)
		if err != nil {
			return err
		}
		file = h.f
	}
	watched := path != "" && s.watch.has(dirOf(path))
	a, err := s.ops.setattr(path, file, set)
	if err != nil {
		return err
	}
	s.told(path, &a, watched)
	b.attr(a)
	return nil
}

func (s *session) doHandle(o op, f *fields, b buffer) ([]byte, error) {
	h, err := s.handle(f.u64())
	if err != nil {
		return nil, err
	}
	switch o {
	case opRead:
		off, n := f.i64(), f.u32()
		if f.bad || off < 0 || n > MaxIO {
			return nil, unix.EINVAL
		}
		s.watch.asked(h.path)
		return readAt(h.f, int(n), off)
	case opWrite:
		off, data := f.i64(), f.rest()
		if f.bad || off < 0 {
			return nil, unix.EINVAL
		}
		n, err := pwrite(int(h.f.Fd()), data, off)
		a, serr := s.ops.root.attr(int(h.f.Fd()))
		if serr == nil {
			s.watch.tell(h.path, a)
			b.attr(a)
		}
		b.u32(uint32(n))
		return b, err
	case opFsync:
		if f.bool() {
			return b, unix.Fdatasync(int(h.f.Fd()))
		}
		return b, unix.Fsync(int(h.f.Fd()))
	case opFlush: // what close(2) would report, as quota errors of NFS are
		fd, err := unix.Dup(int(h.f.Fd()))
		if err == nil {
			err = unix.Close(fd)
		}
		return b, err
	case opRelease:
		return b, s.release(f, h)
	case opFstat:
		a, err := s.ops.root.attr(int(h.f.Fd()))
		if err == nil {
			watched := a.Nlink == 1 && s.watch.has(dirOf(h.path))
			if watched {
				if p, perr := s.ops.stat(h.path); perr != nil || !p.SameFile(a) {
					watched = false // the name means something else by now
				}
			}
			s.told(h.path, &a, watched)
		}
		b.attr(a)
		return b, err
	case opAllocate:
		err := unix.Fallocate(int(h.f.Fd()), f.u32(), f.i64(), f.i64())
		if a, serr := s.ops.root.attr(int(h.f.Fd())); serr == nil {
			s.watch.tell(h.path, a)
		}
		return b, err
	default: // opSeek
		off, whence := f.i64(), int(f.u32())
		if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
			return nil, unix.EINVAL
		}
		n, err := unix.Seek(int(h.f.Fd()), off, whence)
		b.i64(n)
		return b, err
	}
}

func (s *session) release(_ *fields, h *handle) error {
	s.mu.Lock()
	for id, x := range s.handles {
		if x == h {
			delete(s.handles, id)
		}
	}
	s.mu.Unlock()
	return unwrap(h.f.Close())
}

// pwrite writes all of b. On a file opened with O_APPEND, pwrite(2) appends.
func pwrite(fd int, b []byte, off int64) (n int, err error) {
	for n < len(b) || len(b) == 0 {
		m, err := unix.Pwrite(fd, b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}
