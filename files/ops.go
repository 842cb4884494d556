package files

import (
	"io"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// ops carries out requests below a root, as the identity that the server has.
// It knows of no connection; the session around it adds order, record and watches.
type ops struct {
	root  *root
	super bool // may change owners
}

func with(fd int, err error, f func(int) error) error {
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

func (o *ops) stat(path string) (a Attr, err error) {
	fd, err := o.root.open(path, unix.O_PATH, 0)
	err = with(fd, err, func(fd int) error { a, err = o.root.attr(fd); return err })
	return a, err
}

// allowed flags of an open; all others are the client kernel's business.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_EXCL | unix.O_CREAT | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME

// open opens regular files only: opening a device or a FIFO has effects that a
// volume is not to have.
func (o *ops) open(path string, flags uint32, mode uint32, owner Owner) (f *os.File, a Attr, err error) {
	fl := int(flags) & openFlags
	var fd int
	created := false
	if fl&unix.O_CREAT == 0 {
		fd, err = o.root.open(path, fl|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	} else {
		dir, name, perr := o.root.parent(path)
		if perr != nil {
			return nil, a, perr
		}
		defer unix.Close(dir)
		// First exclusively, to know whether it is ours to give away.
		fd, err = o.root.at(dir, name, fl|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, mode)
		created = err == nil
		if err == unix.EEXIST && fl&unix.O_EXCL == 0 {
			fd, err = o.root.at(dir, name, fl&^unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		}
		if created {
			o.give(dir, fd, "", owner)
			_ = unix.Fchmod(fd, mode&0o7777) // the umask was the client's to apply
		}
	}
	if err == unix.EPERM && fl&unix.O_NOATIME != 0 {
		return o.open(path, flags&^unix.O_NOATIME, mode, owner)
	}
	if err != nil {
		return nil, a, err
	}
	if a, err = o.root.attr(fd); err == nil && !a.IsRegular() {
		err = unix.EINVAL
		if a.IsDir() {
			err = unix.EISDIR
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, a, err
	}
	_ = unix.SetNonblock(fd, false)
	return os.NewFile(uintptr(fd), ""), a, nil
}

// give makes owner the owner of what was created in dir. A directory with the
// set-group-ID bit has given its group already.
func (o *ops) give(dir, fd int, name string, owner Owner) {
	if !o.super {
		return
	}
	gid := int(owner.GID)
	var st unix.Stat_t
	if unix.Fstat(dir, &st) == nil && st.Mode&unix.S_ISGID != 0 {
		gid = -1
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	_ = unix.Fchownat(fd, name, int(owner.UID), gid, flags)
}

// make runs f in the parent of path, gives the result away and stats it.
func (o *ops) make(path string, owner Owner, f func(dir int, name string) error) (a Attr, err error) {
	dir, name, err := o.root.parent(path)
	err = with(dir, err, func(dir int) error {
		if err := f(dir, name); err != nil {
			return err
		}
		o.give(dir, dir, name, owner)
		a, err = o.root.attrAt(dir, name)
		return err
	})
	return a, err
}

func (o *ops) mkdir(path string, mode uint32, owner Owner) (Attr, error) {
	return o.make(path, owner, func(dir int, name string) error {
		if err := unix.Mkdirat(dir, name, mode&0o7777); err != nil {
			return err
		}
		var st unix.Stat_t
		sgid := uint32(0)
		if unix.Fstat(dir, &st) == nil {
			sgid = st.Mode & unix.S_ISGID
		}
		fd, err := o.root.at(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil // made without permission to read: nothing to mend
		}
		defer unix.Close(fd)
		_ = unix.Fchmod(fd, mode&0o7777|sgid)
		return nil
	})
}

func (o *ops) mknod(path string, mode, rdev uint32, owner Owner) (Attr, error) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return Attr{}, unix.EPERM // devices have no place in a volume
	}
	return o.make(path, owner, func(dir int, name string) error { return unix.Mknodat(dir, name, mode, 0) })
}

func (o *ops) symlink(target, path string, owner Owner) (Attr, error) {
	return o.make(path, owner, func(dir int, name string) error { return unix.Symlinkat(target, dir, name) })
}

func (o *ops) link(from, to string) (a Attr, err error) {
	src, name, err := o.root.parent(from)
	err = with(src, err, func(src int) error {
		dst, to, err := o.root.parent(to)
		return with(dst, err, func(dst int) error {
			if err := unix.Linkat(src, name, dst, to, 0); err != nil {
				return err
			}
			a, err = o.root.attrAt(dst, to)
			return err
		})
	})
	return a, err
}

func (o *ops) remove(path string, flags int) error {
	dir, name, err := o.root.parent(path)
	return with(dir, err, func(dir int) error { return unix.Unlinkat(dir, name, flags) })
}

func (o *ops) rename(from, to string, flags uint32) error {
	src, name, err := o.root.parent(from)
	return with(src, err, func(src int) error {
		dst, to, err := o.root.parent(to)
		return with(dst, err, func(dst int) error {
			if flags == 0 {
				return unix.Renameat(src, name, dst, to)
			}
			return unix.Renameat2(src, name, dst, to, uint(flags))
		})
	})
}

// readlink tells which link it read too: names change hands.
func (o *ops) readlink(path string) (s string, a Attr, err error) {
	fd, err := o.root.open(path, unix.O_PATH, 0)
	err = with(fd, err, func(fd int) error {
		if a, err = o.root.attr(fd); err == nil {
			s, err = target(fd)
		}
		return err
	})
	return s, a, err
}

// target of a link that is open with O_PATH.
func target(fd int) (string, error) {
	b := make([]byte, maxPath)
	n, err := unix.Readlinkat(fd, "", b)
	if err == unix.ENOENT { // what an O_PATH file that is no link answers
		err = unix.EINVAL
	}
	return string(b[:max(n, 0)]), err
}

// setattr changes f, or what lies at path when f is nil.
func (o *ops) setattr(path string, f *os.File, s Setattr) (a Attr, err error) {
	var fd int
	if f != nil {
		fd = int(f.Fd())
	} else {
		if fd, err = o.root.open(path, unix.O_PATH, 0); err != nil {
			return a, err
		}
		defer unix.Close(fd)
	}
	if s.Valid&SetSize != 0 {
		if f != nil && writable(fd) {
			err = unix.Ftruncate(fd, int64(s.Size))
		} else {
			var w int
			w, err = o.root.open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
			err = with(w, err, func(w int) error { return unix.Ftruncate(w, int64(s.Size)) })
		}
		if err != nil {
			return a, err
		}
	}
	if s.Valid&(SetUID|SetGID) != 0 {
		uid, gid := -1, -1
		if s.Valid&SetUID != 0 {
			uid = int(s.UID)
		}
		if s.Valid&SetGID != 0 {
			gid = int(s.GID)
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return a, err
		}
	}
	if s.Valid&SetMode != 0 {
		if err := unix.Chmod(procFD(fd), s.Mode&0o7777); err != nil {
			return a, err
		}
	}
	if s.Valid&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) != 0 {
		ts := []unix.Timespec{when(s.Valid, SetAtime, SetAtimeNow, s.Atime), when(s.Valid, SetMtime, SetMtimeNow, s.Mtime)}
		err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
		if err == unix.EINVAL || err == unix.ENOENT { // before 5.8
			err = unix.UtimesNanoAt(unix.AT_FDCWD, procFD(fd), ts, 0)
		}
		if err != nil {
			return a, err
		}
	}
	return o.root.attr(fd)
}

func writable(fd int) bool {
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && fl&unix.O_ACCMODE != unix.O_RDONLY
}

func when(valid uint32, set, now uint32, t int64) unix.Timespec {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case valid&set != 0:
		return unix.NsecToTimespec(t)
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// page lists the names of path after the name after, with small bodies if wanted,
// until budget bytes are full.
func (o *ops) page(path, after string, bodies bool, budget int) (p Page, err error) {
	fd, err := o.root.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return p, err
	}
	d := os.NewFile(uintptr(fd), "")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return p, unwrap(err)
	}
	sort.Strings(names)
	names = names[sort.Search(len(names), func(i int) bool { return names[i] > after }):]
	for _, n := range names {
		a, err := o.root.attrAt(fd, n)
		if err != nil {
			continue // gone since
		}
		e := Entry{Name: n, Attr: a}
		budget -= len(n) + 96
		if bodies && a.IsRegular() && a.Size <= bodyMax {
			if budget-int(a.Size) < 0 && len(p.Entries) > 0 {
				return p, nil
			}
			if b, a, ok := o.body(fd, n); ok {
				e.Body, e.Attr = b, a
				budget -= len(b)
			}
		}
		p.Entries = append(p.Entries, e)
		if budget <= 0 {
			return p, nil
		}
	}
	p.End = true
	return p, nil
}

// body reads a whole small file, with attributes that fit it: a file that is
// written meanwhile is not told.
func (o *ops) body(dir int, name string) ([]byte, Attr, bool) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := o.root.at(dir, name, flags|unix.O_NOATIME, 0) // reading ahead is no access
	if err == unix.EPERM {
		fd, err = o.root.at(dir, name, flags, 0)
	}
	if err != nil {
		return nil, Attr{}, false
	}
	defer unix.Close(fd)
	before, err := o.root.attr(fd)
	if err != nil || !before.IsRegular() || before.Size > bodyMax {
		return nil, before, false
	}
	b := make([]byte, before.Size+1)
	n := 0
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, before, false
		}
		if m == 0 {
			break
		}
		n += m
	}
	after, err := o.root.attr(fd)
	return b[:n:n], after, err == nil && uint64(n) == after.Size && before.SameContent(after)
}

func (o *ops) get(path string) (b []byte, a Attr, err error) {
	dir, name, err := o.root.parent(path)
	err = with(dir, err, func(dir int) error {
		if a, err = o.root.attrAt(dir, name); err != nil {
			return err
		}
		if x, xa, ok := o.body(dir, name); ok {
			b, a = x, xa
		}
		return nil
	})
	return b, a, err
}

func (o *ops) statfs() (Statfs, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(o.root.fd, &s); err != nil {
		return Statfs{}, err
	}
	return Statfs{Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: uint32(s.Bsize), Namelen: uint32(s.Namelen), Frsize: uint32(s.Frsize)}, nil
}

func readAt(f *os.File, n int, off int64) ([]byte, error) {
	b := make([]byte, answerHead+n)
	m, err := f.ReadAt(b[answerHead:], off)
	if err == io.EOF {
		err = nil
	}
	return b[:answerHead+m], unwrap(err)
}

// xattr runs f with a name of path that getxattr and its kin take.
func (o *ops) xattr(path string, f func(p string) error) error {
	fd, err := o.root.open(path, unix.O_PATH, 0)
	return with(fd, err, func(fd int) error {
		if a, err := o.root.attr(fd); err != nil || a.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		return f(procFD(fd))
	})
}

func (o *ops) getxattr(path, name string) (v []byte, err error) {
	err = o.xattr(path, func(p string) error {
		v, err = sized(func(b []byte) (int, error) { return unix.Getxattr(p, name, b) })
		return err
	})
	return v, err
}

func (o *ops) listxattr(path string) (v []byte, err error) {
	err = o.xattr(path, func(p string) error {
		v, err = sized(func(b []byte) (int, error) { return unix.Listxattr(p, b) })
		return err
	})
	return v, err
}

func sized(f func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := f(b)
	return b[:max(n, 0)], err
}

func (o *ops) syncdir(path string) error {
	fd, err := o.root.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	return with(fd, err, unix.Fsync)
}
