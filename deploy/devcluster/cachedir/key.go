package cachedir

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Key collects the inputs of a build. Equal inputs in the same order give an
// equal String; each input is framed by its length, so no two lists of inputs
// can run together into the same bytes.
type Key struct{ h hash.Hash }

// NewKey starts a key. The kind keeps keys of different builds apart.
func NewKey(kind string) *Key {
	k := &Key{h: sha256.New()}
	k.Add(kind)
	return k
}

// Add adds plain values.
func (k *Key) Add(values ...string) {
	for _, v := range values {
		fmt.Fprintf(k.h, "%d:", len(v))
		io.WriteString(k.h, v)
	}
}

// AddGo adds the Go files, go.mod, go.sum and embedded YAML under dir, by path
// relative to dir. Tests and nested modules are no part of what is built, so
// they are left out.
func (k *Key) AddGo(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == dir {
				return nil
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		name := d.Name()
		switch {
		case strings.HasSuffix(name, "_test.go"):
			return nil
		case strings.HasSuffix(name, ".go"), strings.HasSuffix(name, ".yaml"), name == "go.mod", name == "go.sum":
		default:
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		k.Add(filepath.ToSlash(rel), string(content))
		return nil
	})
	if err != nil {
		return fmt.Errorf("hash sources of %s: %w", dir, err)
	}
	return nil
}

// String is the key so far: 16 hexadecimal digits, good in file names and tags.
func (k *Key) String() string { return hex.EncodeToString(k.h.Sum(nil))[:16] }
