package nodeimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// imageArchive writes an image of a single static binary in the format of
// `docker save`, which containerd imports as well. No builder is needed for
// that: an image is a tar file of a layer and two JSON files.
func imageArchive(path, reference, binary string) error {
	entry := "/" + filepath.Base(binary)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := addFile(w, entry[1:], binary, 0o755); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	diffID := sha256.Sum256(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{entry}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diffID[:])}},
	})
	if err != nil {
		return fmt.Errorf("encode image config: %w", err)
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{reference}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return fmt.Errorf("encode image manifest: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	defer f.Close()
	w = tar.NewWriter(f)
	for _, part := range []struct {
		name    string
		content []byte
	}{{"config.json", config}, {"layer.tar", layer.Bytes()}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.content))}); err != nil {
			return fmt.Errorf("write image archive: %w", err)
		}
		if _, err := w.Write(part.content); err != nil {
			return fmt.Errorf("write image archive: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return f.Close()
}

// addFile adds one file to a tar stream, owned by root and without a time, so
// that equal content makes equal bytes.
func addFile(w *tar.Writer, name, path string, mode int64) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: info.Size()}); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return nil
}
