package files

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxWatches = 4096    // directories; more are served unwatched
	maxTold    = 400_000 // names in them
	settle     = 3 * time.Millisecond
	watchMask  = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_ATTRIB |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
)

// watcher tells one session's client what changed under it. For each name it
// remembers what the client was last told (as a hash); an event after which the
// truth is still that, as it is after the client's own changes, is not passed
// on. A name whose change was passed on is quiet until the client asks again.
//
// Lock order: mu is innermost; push is called without it.
type watcher struct {
	stat func(path string) (Attr, error)
	push func(Event)
	f    *os.File

	mu    sync.Mutex
	paths map[string]*watched
	wds   map[int32]*watched
	told  int
	done  chan struct{}
}

type watched struct {
	wd   int32
	path string
	told map[string]uint64
}

// What told holds beside hashes.
const (
	toldAbsent = 1 // there is no such name
	toldQuiet  = 2 // the change was passed on, nothing was asked since
)

func newWatcher(stat func(string) (Attr, error), push func(Event)) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watcher{stat: stat, push: push, f: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}),
		paths: map[string]*watched{}, wds: map[int32]*watched{}}
	go w.run()
	return w, nil
}

func (w *watcher) close() {
	if w == nil {
		return
	}
	_ = w.f.Close()
	<-w.done
}

// observable: file systems whose every change passes through this kernel. For
// all others, inotify sees only this node's part of the truth.
func observable(fd int) bool {
	var s unix.Statfs_t
	if unix.Fstatfs(fd, &s) != nil {
		return false
	}
	switch uint32(s.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.RAMFS_MAGIC,
		unix.OVERLAYFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, 0x2fc12fc1 /* ZFS */ :
		return true
	}
	return false
}

// watch makes sure that the directory dir is watched, before its content is
// read. fd is the directory, or -1 to have it opened by open.
func (w *watcher) watch(dir string, open func() (int, error)) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.paths[dir]; ok {
		return true
	}
	if len(w.paths) >= maxWatches || w.told >= maxTold {
		return false
	}
	fd, err := open()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if !observable(fd) {
		return false
	}
	raw, err := w.f.SyscallConn()
	if err != nil {
		return false
	}
	var wd int
	if cerr := raw.Control(func(in uintptr) { wd, err = unix.InotifyAddWatch(int(in), procFD(fd), watchMask) }); cerr != nil || err != nil {
		return false
	}
	if old := w.wds[int32(wd)]; old != nil { // renamed, and the event is still under way
		w.told -= len(old.told)
		delete(w.paths, old.path)
	}
	x := &watched{wd: int32(wd), path: dir, told: map[string]uint64{}}
	w.paths[dir], w.wds[x.wd] = x, x
	return true
}

// has tells whether dir itself is watched.
func (w *watcher) has(dir string) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.paths[dir] != nil
}

func (w *watcher) set(path string, v uint64) {
	if w == nil || path == "" {
		return
	}
	dir, name := split(path)
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.paths[dir]; x != nil {
		if _, ok := x.told[name]; !ok {
			w.told++
		}
		x.told[name] = v
	}
}

// tell notes that the client has learnt a of path; absent: that there is nothing.
func (w *watcher) tell(path string, a Attr) { w.set(path, hash(a)) }
func (w *watcher) absent(path string)       { w.set(path, toldAbsent) }

// asked ends the quiet of a name: the client has read again.
func (w *watcher) asked(path string) {
	if w == nil || path == "" {
		return
	}
	dir, name := split(path)
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.paths[dir]; x != nil && x.told[name] == toldQuiet {
		delete(x.told, name)
		w.told--
	}
}

func hash(a Attr) uint64 {
	var b [64]byte
	for i, v := range []uint64{a.Ino, a.Birth, uint64(a.Mode)<<32 | uint64(a.Nlink), uint64(a.UID)<<32 | uint64(a.GID), a.Size, uint64(a.Mtime), uint64(a.Ctime)} {
		binary.LittleEndian.PutUint64(b[i*8:], v)
	}
	h := fnv.New64a()
	_, _ = h.Write(b[:])
	return h.Sum64() | 4 // none of the constants
}

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 256<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		time.Sleep(settle) // one change is several events, and the answer to our own may be under way
		if m, err := w.more(buf[n:]); err == nil {
			n += m
		}
		w.handle(buf[:n])
	}
}

// more takes what else is there, without waiting.
func (w *watcher) more(b []byte) (n int, err error) {
	if len(b) < unix.SizeofInotifyEvent+unix.NAME_MAX+1 {
		return 0, nil
	}
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) })
	if cerr != nil {
		return 0, cerr
	}
	return max(n, 0), err
}

func (w *watcher) handle(b []byte) {
	type key struct {
		x    *watched
		name string
	}
	seen := map[key]bool{}
	var order []key
	for len(b) >= unix.SizeofInotifyEvent {
		e := *(*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		b = b[unix.SizeofInotifyEvent:]
		name := strings.TrimRight(string(b[:e.Len]), "\x00")
		b = b[e.Len:]
		if e.Mask&unix.IN_Q_OVERFLOW != 0 {
			w.forget("", true)
			w.push(Event{Tree: true})
			continue
		}
		w.mu.Lock()
		x := w.wds[e.Wd]
		w.mu.Unlock()
		switch {
		case x == nil:
		case e.Mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED) != 0:
			w.forget(x.path, e.Mask&unix.IN_IGNORED == 0)
			w.push(Event{Dir: x.path, Tree: true})
		case !seen[key{x, name}]:
			seen[key{x, name}] = true
			order = append(order, key{x, name})
		}
	}
	for _, k := range order {
		if k.name == "" { // the directory's own attributes
			w.push(Event{Dir: k.x.path})
			continue
		}
		p := join(k.x.path, k.name)
		now := uint64(toldAbsent)
		if a, err := w.stat(p); err == nil {
			now = hash(a)
		}
		w.mu.Lock()
		told, ok := k.x.told[k.name]
		tell := !ok || told != toldQuiet && told != now
		if tell {
			if !ok {
				w.told++
			}
			k.x.told[k.name] = toldQuiet
		}
		w.mu.Unlock()
		if tell {
			w.push(Event{Dir: k.x.path, Name: k.name})
		}
	}
}

// forget ends the watches of dir and all below; the client is told so by who calls.
func (w *watcher) forget(dir string, remove bool) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	raw, err := w.f.SyscallConn()
	for p, x := range w.paths {
		if p != dir && dir != "" && !strings.HasPrefix(p, dir+"/") {
			continue
		}
		if remove && err == nil {
			_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(x.wd)) })
		}
		w.told -= len(x.told)
		delete(w.paths, p)
		delete(w.wds, x.wd)
	}
}
