package files

import (
	"strings"
	"syscall"
	"time"
)

const (
	magic   = "berth.files"
	version = 2
)

type op byte

// Operations. Numbers are part of the protocol: add at the end.
const (
	opPing op = iota + 1
	opStat
	opFstat
	opSetattr
	opReaddir
	opGet
	opOpen
	opRead
	opWrite
	opFsync
	opFlush
	opRelease
	opMkdir
	opUnlink
	opRmdir
	opRename
	opSymlink
	opReadlink
	opLink
	opMknod
	opStatfs
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opAllocate
	opSeek
	opSyncdir
	opBye // the client will not come back: its session ends with its connections
	opRecall
	opLast
)

// changes: the answer is recorded until the client has acknowledged it, so that
// a request that is sent again is not done again.
func (o op) changes() bool {
	switch o {
	case opOpen, opRecall, opSetattr, opWrite, opRelease, opMkdir, opUnlink, opRmdir, opRename, opSymlink, opLink, opMknod, opSetxattr, opRemovexattr, opAllocate:
		return true
	}
	return false
}

// Kinds of push.
const (
	pushEntry = 1 // name in dir: another file, other attributes or other content
	pushTree  = 2 // all below and including dir
)

// Event is an invalidation: what the client was told of Name in the directory
// Dir no longer holds. Tree: of all that lies below Dir.
type Event struct {
	Dir, Name string
	Tree      bool
}

// Attr is what stat tells, with times in nanoseconds since 1970.
type Attr struct {
	Ino, Birth            uint64 // together they identify a file; Birth is 0 where the file system knows none
	Mode, Nlink, UID, GID uint32
	Rdev, Blksize         uint32
	Size, Blocks          uint64
	Atime, Mtime, Ctime   int64
	// Watched: the server will tell when any of this changes. Named: it will tell
	// when the name that was asked for comes to mean another file, or none.
	Watched, Named bool
}

// SameFile tells whether both are attributes of one file, not only of one path.
func (a Attr) SameFile(b Attr) bool {
	return a.Ino == b.Ino && a.Birth == b.Birth && a.Mode&syscall.S_IFMT == b.Mode&syscall.S_IFMT
}

// SameContent tells whether nothing was written in between.
func (a Attr) SameContent(b Attr) bool {
	return a.SameFile(b) && a.Size == b.Size && a.Mtime == b.Mtime && a.Ctime == b.Ctime
}

// IsRegular tells whether it is a plain file.
func (a Attr) IsRegular() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFREG }

// IsDir tells whether it is a directory.
func (a Attr) IsDir() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }

func (b *buffer) attr(a Attr) {
	b.u64(a.Ino)
	b.u64(a.Birth)
	for _, x := range []uint32{a.Mode, a.Nlink, a.UID, a.GID, a.Rdev, a.Blksize} {
		b.u32(x)
	}
	b.u64(a.Size)
	b.u64(a.Blocks)
	b.i64(a.Atime)
	b.i64(a.Mtime)
	b.i64(a.Ctime)
	b.bool(a.Watched)
	b.bool(a.Named)
}

func (f *fields) attr() Attr {
	return Attr{
		Ino: f.u64(), Birth: f.u64(),
		Mode: f.u32(), Nlink: f.u32(), UID: f.u32(), GID: f.u32(), Rdev: f.u32(), Blksize: f.u32(),
		Size: f.u64(), Blocks: f.u64(),
		Atime: f.i64(), Mtime: f.i64(), Ctime: f.i64(),
		Watched: f.bool(), Named: f.bool(),
	}
}

// Entry is one name of a directory. Body is the whole content of a small file,
// where it was asked for and fitted; else nil.
type Entry struct {
	Name string
	Attr Attr
	Body []byte
}

func (b *buffer) entry(e Entry) {
	b.str(e.Name)
	b.attr(e.Attr)
	b.bool(e.Body != nil)
	if e.Body != nil {
		b.bytes(e.Body)
	}
}

func (f *fields) entry() Entry {
	e := Entry{Name: f.str(), Attr: f.attr()}
	if f.bool() {
		e.Body = f.bytes()
	}
	return e
}

// Page is a part of a directory in the order of its names.
type Page struct {
	Entries []Entry
	// End: there is nothing after the last entry.
	End bool
	// Watched: the server will tell of names that appear and disappear.
	Watched bool
}

// Fields of Setattr.
const (
	SetMode = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
)

// Setattr says which attributes become what.
type Setattr struct {
	Valid          uint32
	Mode, UID, GID uint32
	Size           uint64
	Atime, Mtime   int64
}

func (b *buffer) setattr(s Setattr) {
	b.u32(s.Valid)
	b.u32(s.Mode)
	b.u32(s.UID)
	b.u32(s.GID)
	b.u64(s.Size)
	b.i64(s.Atime)
	b.i64(s.Mtime)
}

func (f *fields) setattr() Setattr {
	return Setattr{Valid: f.u32(), Mode: f.u32(), UID: f.u32(), GID: f.u32(), Size: f.u64(), Atime: f.i64(), Mtime: f.i64()}
}

// Owner is who shall own what is created. A server that may not change owners
// ignores it.
type Owner struct{ UID, GID uint32 }

// Statfs is what statfs(2) tells.
type Statfs struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Bsize, Namelen, Frsize              uint32
}

// Info is what the server says of itself and the root in its hello.
type Info struct {
	Root     Attr
	ReadOnly bool // Kubernetes mounted it so, or the client asked for it
	Watches  bool // invalidations will be pushed
	Super    bool // the server runs as root: it sets the owners of new files
	// Resumed: the session was found, open files are still open.
	Resumed bool
	session string
	boot    string
}

type hello struct {
	token    string
	client   string
	root     string
	readOnly bool
}

func (b *buffer) hello(h hello) {
	b.str(magic)
	b.u32(version)
	b.str(h.token)
	b.str(h.client)
	b.str(h.root)
	b.bool(h.readOnly)
}

func (f *fields) hello() (h hello, ver uint32, ok bool) {
	if f.str() != magic {
		return h, 0, false
	}
	ver = f.u32()
	h = hello{token: f.str(), client: f.str(), root: f.str(), readOnly: f.bool()}
	return h, ver, !f.bad
}

// ValidPath tells whether p may be sent: relative, without empty, "." and ".."
// elements; "" is the root.
func ValidPath(p string) bool {
	if p == "" {
		return true
	}
	if len(p) >= maxPath {
		return false
	}
	for p != "" {
		var e string
		var more bool
		if e, p, more = strings.Cut(p, "/"); !validName(e) || more && p == "" {
			return false
		}
	}
	return true
}

func validName(n string) bool {
	return n != "" && n != "." && n != ".." && len(n) <= 255 && strings.IndexByte(n, 0) < 0 && strings.IndexByte(n, '/') < 0
}

func split(p string) (dir, name string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p
	}
	return p[:i], p[i+1:]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Default times; each can be changed in Options or Server.
const (
	DefaultTimeout = 30 * time.Second // for which calls block without a connection
	sessionKeep    = time.Minute      // for which a server keeps the open files of a client that is away
)
