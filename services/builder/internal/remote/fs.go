package remote

import (
	"context"
	"fmt"
	"io"
	gofs "io/fs"
	"os"
	"path"
	"strings"

	"berth.dev/bus/buildstream"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// FS is the context as BuildKit's file transfer wants it. Owners are root, as
// with docker build.
type FS struct {
	ctx   context.Context
	peer  *Peer
	list  []item
	index map[string]int // in list, by path
}

type item struct {
	buildstream.Entry
	index int // among all entries
}

// newFS makes a tree of the entries that pick selects and names.
func newFS(ctx context.Context, p *Peer, entries []buildstream.Entry, pick func(buildstream.Entry) (path string, ok bool)) (*FS, error) {
	f := &FS{ctx: ctx, peer: p, index: map[string]int{}}
	for i, e := range entries {
		name, ok := pick(e)
		if !ok {
			continue
		}
		if !gofs.ValidPath(name) || name == "." {
			return nil, fmt.Errorf("the context lists %q, which is no path in it", name)
		}
		if _, twice := f.index[name]; twice {
			return nil, fmt.Errorf("the context lists %q twice", name)
		}
		e.Path = name
		f.index[name] = len(f.list)
		f.list = append(f.list, item{e, i})
	}
	return f, nil
}

// Context is the tree of the context itself.
func Context(ctx context.Context, p *Peer, entries []buildstream.Entry) (*FS, error) {
	return newFS(ctx, p, entries, func(e buildstream.Entry) (string, bool) { return e.Path, !e.Outside })
}

// Dockerfile is the tree in which BuildKit finds the Dockerfile: the context,
// or the one file that lies outside.
func Dockerfile(ctx context.Context, p *Peer, entries []buildstream.Entry) (*FS, error) {
	if len(entries) == 0 || !entries[0].Outside {
		return Context(ctx, p, entries)
	}
	return newFS(ctx, p, entries, func(e buildstream.Entry) (string, bool) { return e.Path, e.Outside })
}

func (i item) stat() *types.Stat {
	s := &types.Stat{Path: i.Path, Mode: uint32(i.Mode), ModTime: i.MTime, Linkname: i.Link}
	if i.Mode.IsRegular() {
		s.Size = i.Size
	}
	return s
}

// Walk implements fsutil.FS: in the order of the list, which is that of paths.
func (f *FS) Walk(ctx context.Context, target string, fn gofs.WalkDirFunc) error {
	target = strings.Trim(path.Clean("/"+target), "/")
	skip := ""
	for _, i := range f.list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if target != "" && i.Path != target && !strings.HasPrefix(i.Path, target+"/") {
			continue
		}
		if skip != "" && strings.HasPrefix(i.Path, skip) {
			continue
		}
		err := fn(i.Path, &fsutil.DirEntryInfo{Stat: i.stat()}, nil)
		switch {
		case err == gofs.SkipDir && i.Mode.IsDir():
			skip = i.Path + "/"
		case err == gofs.SkipDir:
			skip = path.Dir(i.Path) + "/"
		case err == gofs.SkipAll:
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// Open implements fsutil.FS.
func (f *FS) Open(name string) (io.ReadCloser, error) {
	n, ok := f.index[strings.Trim(path.Clean("/"+name), "/")]
	if !ok {
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	}
	i := f.list[n]
	return f.peer.file(f.ctx, i.index, i.Size), nil
}
