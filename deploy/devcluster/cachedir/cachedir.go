// Package cachedir owns what is built once per machine and kept outside the
// checkout: binaries and root file systems, each in a directory named by a hash
// of everything that went into it.
//
//	$XDG_CACHE_HOME/berth/devcluster/<key>/
//
// It promises that a directory which exists is whole: Fill builds into a
// temporary directory beside it and renames, so a build killed half-way leaves
// only rubbish that the next Fill sweeps up. It does not guard against two
// builders at once; take Lock for that, which other processes respect too.
package cachedir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Root is the folder of all entries. It is not created.
func Root() (string, error) {
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the cache directory: %w", err)
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "berth", "devcluster"), nil
}

const partial = ".partial-"

// Fill returns dir at once if it exists. Otherwise it calls build with an empty
// temporary directory and moves that to dir when build succeeds.
func Fill(dir string, build func(tmp string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("create cache: %w", err)
	}
	stale, _ := filepath.Glob(dir + partial + "*")
	for _, s := range stale {
		os.RemoveAll(s)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+partial)
	if err != nil {
		return fmt.Errorf("create cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("finish cache entry: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("finish cache entry: %w", err)
	}
	return nil
}

// Lock makes this process the only one that changes the cache and the cluster.
// It calls waiting once if it has to wait. The kernel frees the lock when the
// process ends, however it ends.
func Lock(root string, waiting func()) (unlock func(), err error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("create cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		waiting()
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("take lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// IsPartial tells a temporary directory of Fill from an entry.
func IsPartial(name string) bool { return strings.Contains(name, partial) }
