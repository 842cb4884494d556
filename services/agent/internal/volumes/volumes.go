// Package volumes gives the volumes of the engaged container, and nothing else,
// to who shows the engagement's token: one files.Server for as long as the agent
// lives, so that open files survive every connection.
//
// Nothing is configured but the paths. What is there is found out by looking:
// whether Kubernetes mounted it read-only (statfs), and whether it is a single
// file (subPath), so that it does not matter how the agent came to these mounts.
// Which token to accept comes with each stream, from the manager, which the
// agent trusts.
//
// A Volumes may be used concurrently.
package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"berth.dev/files"
	"berth.dev/lease"
	"berth.dev/tunnel"

	"golang.org/x/sys/unix"
)

// Volumes serves the mounts of a container.
type Volumes struct {
	paths []string
	srv   *files.Server
	log   *slog.Logger
}

// New serves what is mounted at paths.
func New(paths []string, log *slog.Logger) *Volumes {
	var e files.Export
	for _, p := range paths {
		e.Roots = append(e.Roots, files.Root{Path: p})
	}
	return &Volumes{paths: paths, srv: files.NewServer(e, nil, log), log: log}
}

// List says what is mounted. A path where nothing can be found is left out.
func (v *Volumes) List() []lease.Volume {
	var all []lease.Volume
	for _, p := range v.paths {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Stat(p, &st), unix.Statfs(p, &fs)); err != nil {
			v.log.Warn("a mount path cannot be read", "path", p, "err", err)
			continue
		}
		all = append(all, lease.Volume{
			Path: p, ReadOnly: fs.Flags&unix.ST_RDONLY != 0, File: st.Mode&unix.S_IFMT != unix.S_IFDIR,
		})
	}
	return all
}

// Serve answers a KindFiles request and serves its stream to the end.
func (v *Volumes) Serve(ctx context.Context, r *tunnel.Request) {
	a, err := access(r.Header.Method)
	if err != nil {
		r.Refuse(tunnel.CodeDenied, err.Error())
		return
	}
	s, err := r.Accept()
	if err != nil {
		return
	}
	if err := v.srv.ServeAs(ctx, s, a); err != nil {
		v.log.Info("volumes: connection ended", "engagement", r.Header.Engagement, "err", err)
	}
}

func access(method string) (files.Access, error) {
	var a lease.FilesAccess
	if err := json.Unmarshal([]byte(method), &a); err != nil {
		return files.Access{}, fmt.Errorf("the manager does not say who may use the volumes: %w", err)
	}
	if a.TokenHash == "" {
		return files.Access{}, errors.New("nobody may use the volumes")
	}
	return files.Access{Check: files.TokenHashIs(a.TokenHash), ReadOnly: a.ReadOnly}, nil
}

// Close ends all connections and closes what is open.
func (v *Volumes) Close() { v.srv.Close() }
