package remote

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"berth.dev/bus/buildstream"
)

// Tar writes the context as the classic builder wants it, the same for the same
// context,. A Dockerfile from
// outside travels under its own random name; .dockerignore tells the engine to
// take both out again, as with docker build.
func Tar(ctx context.Context, p *Peer, entries []buildstream.Entry, out io.Writer) error {
	w := tar.NewWriter(out)
	outside, ignored := "", false
	for i, e := range entries {
		if e.Outside {
			outside = e.Path
		}
		h := &tar.Header{Name: e.Path, Mode: int64(e.Mode.Perm()), ModTime: time.Unix(0, e.MTime), Format: tar.FormatPAX}
		h.ModTime = h.ModTime.Truncate(time.Second)
		if e.Mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		if e.Mode&fs.ModeSetgid != 0 {
			h.Mode |= 0o2000
		}
		if e.Mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		var body io.ReadCloser
		switch {
		case e.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		case e.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		default:
			h.Typeflag, h.Size = tar.TypeReg, e.Size
			body = p.file(ctx, i, e.Size)
		}
		if e.Path == ".dockerignore" && outside != "" && body != nil {
			ignored = true
			b, err := io.ReadAll(body)
			if err != nil {
				return fmt.Errorf("read .dockerignore: %w", err)
			}
			b = append(b, "\n"+outside+"\n"...)
			h.Size, body = int64(len(b)), io.NopCloser(bytes.NewReader(b))
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("pack %s: %w", e.Path, err)
		}
		if body != nil {
			_, err := io.Copy(w, body)
			_ = body.Close()
			if err != nil {
				return fmt.Errorf("pack %s: %w", e.Path, err)
			}
		}
	}
	if outside != "" && !ignored {
		b := ".dockerignore\n" + outside + "\n"
		if err := w.WriteHeader(&tar.Header{Name: ".dockerignore", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(b))}); err != nil {
			return fmt.Errorf("pack .dockerignore: %w", err)
		}
		if _, err := io.WriteString(w, b); err != nil {
			return fmt.Errorf("pack .dockerignore: %w", err)
		}
	}
	return w.Close()
}
