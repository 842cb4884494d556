package build

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/buildstream"
	"berth.dev/bus/fault"

	"github.com/fsnotify/fsnotify"
)

// quiet is how long nothing may happen in a context before what happened is a
// change: editors and compilers write in several steps.
const quiet = 150 * time.Millisecond

// Watcher tells of changes in a build context, of what is built from it: what
// .dockerignore names is no change, nor is a file that was written as it was.
//
// Changes that come while one is being dealt with are told as one afterwards.
// Close it.
type Watcher struct {
	src     *source
	fs      *fsnotify.Watcher
	changes chan []string
	stop    context.CancelFunc
	done    chan struct{}
	seen    map[string]buildstream.Entry
	err     error
}

// Watch begins to watch the context that Build would build with the same words.
// It has to be a directory here.
func Watch(word string, options []string) (*Watcher, error) {
	own, err := split(options)
	if err != nil {
		return nil, err
	}
	src, err := locate(word, own.file)
	if err != nil {
		return nil, err
	}
	if src.kind != "directory" {
		return nil, fault.New(fault.InvalidArgument, "--docker-build DIRECTORY --watch", "only a directory can be watched, not %s", word)
	}
	w := &Watcher{src: src, changes: make(chan []string), done: make(chan struct{})}
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		return nil, limits(err)
	}
	// The directories first: what changes while they are listed is an event then.
	if err := w.follow(""); err != nil {
		_ = w.fs.Close()
		return nil, err
	}
	if src.outside != "" {
		if err := w.fs.Add(filepath.Dir(src.outside)); err != nil {
			_ = w.fs.Close()
			return nil, limits(err)
		}
	}
	if w.seen, err = w.list(); err != nil {
		_ = w.fs.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go w.run(ctx)
	return w, nil
}

// Changes gives the paths that have changed since the last ones were taken. It
// is closed when watching has become impossible; Err says why.
func (w *Watcher) Changes() <-chan []string { return w.changes }

// Err is why Changes was closed.
func (w *Watcher) Err() error { return w.err }

// Close ends it.
func (w *Watcher) Close() {
	w.stop()
	<-w.done
}

// limits explains the one failure that a user can do something about.
func limits(err error) error {
	return fault.New(fault.FailedPrecondition, "sudo sysctl fs.inotify.max_user_watches=524288", "watch the build context: %v", err)
}

// follow adds the directories from dir on, but those that are ignored: inotify
// knows no trees.
func (w *Watcher) follow(dir string) error {
	verdict, err := w.src.sieve()
	if err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(w.src.dir, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // gone meanwhile, or not to be read: the build will say
		}
		rel, err := filepath.Rel(w.src.dir, path)
		if err != nil {
			return nil
		}
		if rel != "." {
			for _, above := range append(parents(rel), filepath.ToSlash(rel)) { // the sieve wants them in order
				if v, err := verdict(above, true); err == nil && v == buildstream.Skip {
					return filepath.SkipDir
				}
			}
		}
		if err := w.fs.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return limits(err)
		}
		return nil
	})
}

// parents are the directories above a path of the context, from the top.
func parents(rel string) (all []string) {
	rel = filepath.ToSlash(rel)
	for i, c := range rel {
		if c == '/' {
			all = append(all, rel[:i])
		}
	}
	return all
}

// list is what would be built from.
func (w *Watcher) list() (map[string]buildstream.Entry, error) {
	entries, err := w.src.list()
	if err != nil {
		return nil, err
	}
	m := map[string]buildstream.Entry{}
	for _, e := range entries {
		if e.Outside {
			e.Path = filepath.Base(w.src.outside) // the name in the context is another each time
		}
		if e.Mode.IsDir() {
			e.MTime, e.Size = 0, 0 // of entries that may be ignored
		}
		m[e.Path] = e
	}
	return m, nil
}

func (w *Watcher) run(ctx context.Context) {
	defer close(w.done)
	defer close(w.changes)
	defer w.fs.Close()
	timer := time.NewTimer(quiet)
	timer.Stop()
	var pending []string
	var out chan []string // nil while there is nothing to tell
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.fs.Events:
			if !ok {
				return
			}
			if e.Has(fsnotify.Create) && !w.outsideOnly(e.Name) {
				if rel, err := filepath.Rel(w.src.dir, e.Name); err == nil {
					if err := w.follow(rel); err != nil {
						w.err = err
						return
					}
				}
			}
			if e.Op != fsnotify.Chmod || !w.outsideOnly(e.Name) {
				timer.Reset(quiet)
			}
		case <-w.fs.Errors: // an overflow: something happened
			timer.Reset(quiet)
		case <-timer.C:
			now, err := w.list()
			if err != nil {
				timer.Reset(time.Second) // the Dockerfile is being replaced, or gone
				continue
			}
			for _, p := range differing(w.seen, now) {
				if strings.HasSuffix(p, ".dockerignore") { // what was ignored may count now
					if err := w.follow(""); err != nil {
						w.err = err
						return
					}
				}
				if !slices.Contains(pending, p) {
					pending = append(pending, p)
				}
			}
			w.seen = now
			if len(pending) > 0 {
				out = w.changes
			}
		case out <- pending:
			pending, out = nil, nil
		}
	}
}

// outsideOnly: the path is beside a Dockerfile outside of the context, not in it.
func (w *Watcher) outsideOnly(path string) bool {
	return path != w.src.dir && !strings.HasPrefix(path, w.src.dir+string(filepath.Separator))
}

func differing(a, b map[string]buildstream.Entry) (paths []string) {
	for p, e := range b {
		if was, ok := a[p]; !ok || was != e {
			paths = append(paths, p)
		}
	}
	for p := range a {
		if _, ok := b[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}
