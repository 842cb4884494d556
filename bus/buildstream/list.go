package buildstream

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Verdict is what a filter says of a path of the context.
type Verdict int

// The verdicts. Skip is for a directory of which nothing is kept; Look for one
// that is not kept itself, but may have something below it that is.
const (
	Keep Verdict = iota
	Skip
	Look
)

// List lists a directory in the order in which BuildKit wants it: by path, a
// directory before what is in it. Symbolic links are listed as such, never
// followed; sockets, pipes and devices are left out, since no image is built of
// them. A directory of which only something below is kept is listed as well.
func List(root string, filter func(path string, dir bool) (Verdict, error)) ([]Entry, error) {
	var list []Entry
	var parents []Entry // that are listed when something below them is
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		rel = filepath.ToSlash(rel)
		v, err := filter(rel, d.IsDir())
		switch {
		case err != nil:
			return err
		case v != Keep && d.IsDir() && v == Skip:
			return fs.SkipDir
		case v != Keep && !d.IsDir():
			return nil
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil // gone since the directory was read
		}
		if err != nil {
			return err
		}
		e := Entry{Path: rel, Mode: info.Mode(), MTime: info.ModTime().UnixNano()}
		switch {
		case info.Mode().IsRegular():
			e.Size = info.Size()
		case info.Mode()&fs.ModeSymlink != 0:
			if e.Link, err = os.Readlink(name); err != nil {
				return err
			}
		case !info.IsDir():
			return nil
		}
		for len(parents) > 0 && !inside(rel, parents[len(parents)-1].Path) {
			parents = parents[:len(parents)-1]
		}
		if v == Look {
			parents = append(parents, e)
			return nil
		}
		list = append(append(list, parents...), e)
		parents = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the context %s: %w", root, err)
	}
	return list, nil
}

func inside(path, dir string) bool {
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}
