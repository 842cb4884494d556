package files

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// root resolves paths below one directory (or is one single file) and nowhere
// else. No symbolic link is ever followed: a path with one in it fails with
// ELOOP. With openat2(2) the kernel guarantees that in one call; where it is
// missing (before 5.6, or filtered) each element is opened on its own with
// O_NOFOLLOW, which cannot leave the root either, since ".." is refused.
type root struct {
	fd      int
	dev     uint64
	openat2 bool
	dir     bool
}

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openRoot(path string) (*root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", path, err)
	}
	r := &root{fd: fd}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("stat root %s: %w", path, err)
	}
	r.dev, r.dir = uint64(st.Dev), st.Mode&unix.S_IFMT == unix.S_IFDIR
	if r.dir {
		if x, err := unix.Openat2(fd, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: beneath}); err == nil {
			_ = unix.Close(x)
			r.openat2 = true
		}
	}
	return r, nil
}

func (r *root) close() { _ = unix.Close(r.fd) }

// open opens path with flags; O_NOFOLLOW and O_CLOEXEC are added.
func (r *root) open(path string, flags int, mode uint32) (int, error) {
	if !ValidPath(path) {
		return -1, unix.EINVAL
	}
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if path == "" {
		if flags&unix.O_PATH != 0 {
			return unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		if !r.dir { // the root was chosen by who runs the server: reopening it follows no foreign link
			return unix.Open(procFD(r.fd), flags&^unix.O_NOFOLLOW, mode)
		}
		return r.at(r.fd, ".", flags, mode)
	}
	if !r.dir {
		return -1, unix.ENOTDIR
	}
	if r.openat2 {
		return r.at(r.fd, path, flags, mode)
	}
	dir, own := r.fd, false
	for {
		e, rest, more := strings.Cut(path, "/")
		f, m := flags, mode
		if more {
			f, m = unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0
		}
		fd, err := retry(func() (int, error) { return unix.Openat(dir, e, f, m) })
		if own {
			_ = unix.Close(dir)
		}
		if err != nil || !more {
			return fd, err
		}
		dir, own, path = fd, true, rest
	}
}

func (r *root) at(dir int, path string, flags int, mode uint32) (int, error) {
	if !r.openat2 {
		return retry(func() (int, error) { return unix.Openat(dir, path, flags, mode) })
	}
	if flags&(unix.O_CREAT) == 0 {
		mode = 0
	}
	how := unix.OpenHow{Flags: uint64(uint32(flags)), Mode: uint64(mode & 0o7777), Resolve: beneath}
	return retry(func() (int, error) { return unix.Openat2(dir, path, &how) })
}

// parent opens the directory in which path lies. The caller then names the last
// element only to calls that do not follow it.
func (r *root) parent(path string) (fd int, name string, err error) {
	if path == "" {
		return -1, "", unix.EBUSY
	}
	if !ValidPath(path) {
		return -1, "", unix.EINVAL
	}
	dir, name := split(path)
	fd, err = r.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, name, err
}

// attr of an open file, O_PATH too. Inode numbers of other file systems below
// the root are made different from the root's by their device; the root's own
// device does not count, since it changes when a volume moves to another node.
func (r *root) attr(fd int) (Attr, error) {
	return r.attrAt(fd, "")
}

func (r *root) attrAt(fd int, name string) (Attr, error) {
	var x unix.Statx_t
	err := unix.Statx(fd, name, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x)
	if err != nil {
		return Attr{}, err
	}
	dev := unix.Mkdev(x.Dev_major, x.Dev_minor)
	swap := func(d uint64) uint64 { return d<<32 | d>>32 }
	a := Attr{
		Ino:  x.Ino ^ swap(dev) ^ swap(r.dev),
		Mode: uint32(x.Mode), Nlink: x.Nlink, UID: x.Uid, GID: x.Gid,
		Rdev: uint32(unix.Mkdev(x.Rdev_major, x.Rdev_minor)), Blksize: x.Blksize,
		Size: x.Size, Blocks: x.Blocks,
		Atime: nanos(x.Atime), Mtime: nanos(x.Mtime), Ctime: nanos(x.Ctime),
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		a.Birth = uint64(nanos(x.Btime))
	}
	return a, nil
}

func nanos(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// procFD names an open file, for the calls that take no descriptor or refuse an
// O_PATH one. It leads to that very file: no link is followed behind it.
func procFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// retry repeats what a signal cut short, or a race with a rename (openat2(2)).
func retry(f func() (int, error)) (int, error) {
	for i := 0; ; i++ {
		fd, err := f()
		if i < 10 && (errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)) {
			continue
		}
		return fd, err
	}
}
