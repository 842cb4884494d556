// Package mount is a FUSE file system over a files.Client: one volume, one
// mount, one connection.
//
// # Coherence
//
// What the server promises to tell of changes is kept for ten minutes (names,
// attributes, pages); what it does not, for one second. An open compares
// attributes with those under which the kernel's pages were read and keeps the
// pages only if they are the same (close-to-open). O_APPEND goes to the server's
// end of file, past the page cache.
//
// # Writes
//
// A write returns when it has been queued; up to 64 are under way per mount, in
// order per file. The first error is returned by the next write, and by fsync or
// close, which wait for all that was queued. Any read or stat of a file waits for
// its writes first. Nothing is written back later than close.
//
// # Concurrency
//
// Invalidations arrive while requests run. An answer that was asked for before an
// invalidation arrived is not kept (epoch); and since the kernel may get that
// answer after the invalidation, that one is repeated if any request was under
// way. Lock order: node.mu before Mount.mu; neither is held during a call.
package mount

import (
	"context"
	"fmt"
	"os"
	"time"

	"berth.dev/files"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	longTTL  = 10 * time.Minute
	shortTTL = time.Second
	bodyRoom = 64 << 20 // bytes of small files that were read ahead
	inFlight = 64       // writes
)

// Mount is one mount point: of a volume, or of several below it.
type Mount struct {
	volumes []*volume
	server  *fuse.Server
	dir     string
}

// New connects with o and mounts the volume at dir, which must exist.
func New(ctx context.Context, dir string, o files.Options) (*Mount, error) {
	v, err := dial(ctx, 0, o)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, volumes: []*volume{v}}
	info := v.c.Info()
	if !info.Root.IsDir() {
		v.close()
		return nil, fmt.Errorf("mount %s: it is a single file; a Docker volume is a directory", o.Root)
	}
	opts := options("telemount")
	opts.AllowOther, opts.DirectMountStrict = true, true
	if info.Super {
		// The server may do everything, so this kernel checks modes and owners as
		// the pod's would. Otherwise it is the pod's user who may or may not.
		opts.Options = append(opts.Options, "default_permissions")
	}
	v.server = !info.Super
	if info.ReadOnly {
		opts.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
	}
	stable := v.stable(info.Root)
	if err := m.mount(v.root, &stable, opts); err != nil {
		return nil, err
	}
	return m, nil
}

// options are those of every mount; source is what the mount table names it.
func options(source string) fuse.MountOptions {
	return fuse.MountOptions{
		FsName: source, Name: "berth",
		MaxWrite: files.MaxIO, MaxReadAhead: files.MaxIO, MaxBackground: 64, DisableSplice: true, // our megabytes and a header exceed the largest pipe
	}
}

// mount mounts root; if that fails, the volumes are closed.
func (m *Mount) mount(root fs.InodeEmbedder, stable *fs.StableAttr, opts fuse.MountOptions) (err error) {
	negative := longTTL
	m.server, err = fs.Mount(m.dir, root, &fs.Options{MountOptions: opts, NullPermissions: true, NegativeTimeout: &negative, RootStableAttr: stable})
	if err != nil {
		for _, v := range m.volumes {
			v.close()
		}
		return fmt.Errorf("mount at %s: %w", m.dir, err)
	}
	m.readahead()
	for _, v := range m.volumes {
		go v.invalidate()
	}
	return nil
}

// readahead lets the kernel ask for whole megabytes, where it may be told to.
func (m *Mount) readahead() {
	var st unix.Stat_t
	if unix.Stat(m.dir, &st) == nil {
		p := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
		_ = os.WriteFile(p, []byte("1024"), 0)
	}
}

// Close unmounts, lazily if the mount is busy, and ends the connection.
func (m *Mount) Close() error {
	err := Unmount(m.dir)
	for _, v := range m.volumes {
		v.close()
	}
	if err == nil {
		gone := make(chan struct{})
		go func() { m.server.Wait(); close(gone) }()
		select {
		case <-gone:
		case <-time.After(time.Second): // files are open: the kernel ends it with the last
		}
	}
	return err
}
