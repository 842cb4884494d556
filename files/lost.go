package files

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// For how long, and how many, files are kept whose name a client took: long enough
// for opens that were under way, too short to keep a disk full.
const (
	lostKeep = 2 * time.Second
	lostMax  = 64
)

// lost holds the files that lost their name to the session's own client, oldest
// first. The zero value is ready.
type lost struct {
	mu     sync.Mutex
	all    []lostFile
	timer  *time.Timer
	closed bool
}

type lostFile struct {
	fd int // O_PATH
	a  Attr
	at time.Time
}

// keep is called before path loses its name. What it returns undoes it, if it
// did not.
func (l *lost) keep(o *ops, path string) (undo func()) {
	fd, err := o.root.open(path, unix.O_PATH, 0)
	if err != nil {
		return func() {}
	}
	a, err := o.root.attr(fd)
	if t := a.Mode & unix.S_IFMT; err != nil || t != unix.S_IFREG && t != unix.S_IFLNK {
		_ = unix.Close(fd)
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = unix.Close(fd)
		return func() {}
	}
	if len(l.all) >= lostMax {
		l.drop(1)
	}
	l.all = append(l.all, lostFile{fd, a, time.Now()})
	if l.timer == nil {
		l.timer = time.AfterFunc(lostKeep, l.expire)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, f := range l.all {
			if f.fd == fd && f.a == a {
				_ = unix.Close(fd)
				l.all = append(l.all[:i], l.all[i+1:]...)
				return
			}
		}
	}
}

// find returns another descriptor of the file that a is of.
func (l *lost) find(a Attr) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.all {
		if f.a.SameFile(a) {
			return unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
		}
	}
	return -1, unix.ESTALE
}

func (l *lost) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.all) && time.Since(l.all[n].at) >= lostKeep {
		n++
	}
	l.drop(n)
	l.timer = nil
	if len(l.all) > 0 {
		l.timer = time.AfterFunc(lostKeep-time.Since(l.all[0].at), l.expire)
	}
}

// drop closes the oldest n; mu is held.
func (l *lost) drop(n int) {
	for _, f := range l.all[:n] {
		_ = unix.Close(f.fd)
	}
	l.all = append(l.all[:0], l.all[n:]...)
}

func (l *lost) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.drop(len(l.all))
}

// recall answers for a file without a name, and opens it where an id is given.
func (s *session) recall(f *fields, b *buffer) error {
	id, want, flags := f.u64(), f.attr(), f.u32()
	if f.bad {
		return unix.EINVAL
	}
	fd, err := s.lost.find(want)
	return with(fd, err, func(fd int) error {
		if id != 0 {
			if want.Mode&unix.S_IFMT != unix.S_IFREG {
				return unix.EINVAL
			}
			fl := int(flags)&openFlags&^(unix.O_CREAT|unix.O_EXCL) | unix.O_CLOEXEC
			w, err := retry(func() (int, error) { return unix.Open(procFD(fd), fl, 0) })
			if err != nil {
				return err
			}
			if err := s.opened(id, "", os.NewFile(uintptr(w), ""), flags); err != nil {
				return err
			}
		}
		a, err := s.ops.root.attr(fd)
		if err != nil {
			return err
		}
		t := ""
		if want.Mode&unix.S_IFMT == unix.S_IFLNK {
			if t, err = target(fd); err != nil {
				return err
			}
		}
		b.attr(a)
		b.str(t)
		return nil
	})
}
