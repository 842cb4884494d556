package mount

import (
	"context"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// SourcePrefix begins what the mount table names a tree; see Tree.
const SourcePrefix = "berth-"

// Tree connects to several volumes and mounts them below dir, which must exist,
// each at the path that it has in its container; single files too. It is one
// mount of the kernel's, so that it comes and goes as a whole, and a volume below
// a read-only one needs no directory that could not be made there.
//
// It is this user's alone (no allow_other), and needs no root: then fusermount3
// mounts. Whoever asks, it is the container's user who may or may not, and owns
// what is made. name is what the mount table shows behind SourcePrefix.
func Tree(ctx context.Context, dir, name string, all []files.Options) (*Mount, error) {
	m := &Mount{dir: dir, volumes: make([]*volume, len(all))}
	g, gctx := errgroup.WithContext(ctx)
	for i, o := range all {
		g.Go(func() (err error) {
			if m.volumes[i], err = dial(gctx, i+1, o); err != nil {
				return fmt.Errorf("volume %s: %w", o.Root, err)
			}
			m.volumes[i].server = true
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		for _, v := range m.volumes {
			if v != nil {
				v.close()
			}
		}
		return nil, err
	}
	root := &folder{}
	readOnly := true
	for i, v := range m.volumes {
		readOnly = readOnly && v.c.Info().ReadOnly
		m.place(root, v, all[i].Root, all)
	}
	opts := options(SourcePrefix + name)
	opts.DirectMount = unix.Geteuid() == 0
	if readOnly {
		opts.Options = append(opts.Options, "ro")
	}
	if opts.DirectMount && readOnly {
		opts.Options, opts.DirectMountFlags = nil, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY
	}
	if err := m.mount(root, nil, opts); err != nil {
		return nil, err
	}
	return m, nil
}

// place puts a volume where it belongs: into the innermost volume that covers its
// path, else into a folder of our own.
func (m *Mount) place(root *folder, v *volume, at string, all []files.Options) {
	var outer *volume
	depth := -1
	for i, o := range all {
		if w := m.volumes[i]; w != v && strings.HasPrefix(at, strings.TrimSuffix(o.Root, "/")+"/") && w.c.Info().Root.IsDir() && len(o.Root) > depth {
			outer, depth = w, len(o.Root)
		}
	}
	if outer != nil {
		if outer.inner == nil {
			outer.inner = map[string]*node{}
		}
		outer.inner[strings.TrimPrefix(at[depth:], "/")] = v.root
		return
	}
	dir, name := path.Split(strings.Trim(path.Clean(at), "/"))
	f := root
	for e := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if e != "" {
			f = f.sub(e)
		}
	}
	if f.volumes == nil {
		f.volumes = map[string]*node{}
	}
	f.volumes[name] = v.root
}

// folder is a directory above the volumes, which holds nothing else.
type folder struct {
	fs.Inode
	folders map[string]*folder
	volumes map[string]*node
}

func (f *folder) sub(name string) *folder {
	if f.folders == nil {
		f.folders = map[string]*folder{}
	}
	if f.folders[name] == nil {
		f.folders[name] = &folder{}
	}
	return f.folders[name]
}

// OnAdd makes the inodes below, once the mount knows this one.
func (f *folder) OnAdd(ctx context.Context) {
	for name, d := range f.folders {
		f.AddChild(name, f.NewPersistentInode(ctx, d, fs.StableAttr{Mode: syscall.S_IFDIR}), true)
	}
	for name, n := range f.volumes {
		f.AddChild(name, n.adopt(ctx, &f.Inode), true)
	}
}

// Getattr says that the folder is its user's own.
func (f *folder) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Uid, out.Gid, out.Nlink = syscall.S_IFDIR|0o555, uint32(unix.Geteuid()), uint32(unix.Getegid()), 2
	out.SetTimeout(longTTL)
	return 0
}

// adopt makes the inode of a volume's root, and of what is mounted below it.
func (n *node) adopt(ctx context.Context, parent *fs.Inode) *fs.Inode {
	in := parent.NewPersistentInode(ctx, n, n.m.stable(n.attr))
	for _, x := range n.m.inner {
		x.adopt(ctx, in)
	}
	return in
}

// mounted answers a lookup of a name at which another volume is mounted.
func (n *node) mounted(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if len(n.m.inner) == 0 {
		return nil, 0
	}
	p, no := n.child(name)
	x := n.m.inner[p]
	if no != 0 || x == nil {
		return nil, 0
	}
	a, no := x.stat(ctx, nil)
	if no != 0 {
		return nil, no
	}
	x.m.fill(a, &out.Attr)
	out.SetEntryTimeout(longTTL)
	out.SetAttrTimeout(time.Second)
	return x.EmbeddedInode(), 0
}

var (
	_ fs.NodeOnAdder   = (*folder)(nil)
	_ fs.NodeGetattrer = (*folder)(nil)
	_ fs.NodeAccesser  = (*node)(nil)
)
