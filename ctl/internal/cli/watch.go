package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/build"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/interrupt"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
)

// watching is an engagement whose handler is built again, and switched, whenever
// its build context changes.
//
// A build that fails, or a handler that connector refuses, changes nothing. One
// that is switched to and does not come about (it exits, say) has taken the
// place of the one before, which then takes it back. The handler's own end is
// the engagement's, as without --watch.
type watching struct {
	*handling
	f       *engageFlags
	args    []string // the user's, with IMAGE
	current *run
	image   string          // ID of what runs
	good    []string        // its arguments
	had     map[string]bool // images that were there before: not ours to remove
	stale   []string        // images that are to be removed
}

// watch makes the engagement with the first build, and follows the context.
func (h *handling) watch(ctx context.Context, req command.OpenEngagement, f *engageFlags, args []string) error {
	w := &watching{handling: h, f: f, args: args}
	changes, err := build.Watch(f.build.from(), f.build.options)
	if err != nil {
		return err
	}
	defer changes.Close()
	if w.had, err = w.images(ctx); err != nil {
		return err
	}
	if w.good, w.image, err = h.app.built(ctx, h.s, &f.build, h.eng.ID(), args); err != nil {
		return err
	}
	h.kill = h.stop
	w.current = h.container(ctx, w.good, func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
		return h.create(ctx, req, f, spec)
	})
	go w.loop(ctx, changes)
	return h.wait(ctx)
}

// loop is the local half: it ends with the handler that is there then.
func (w *watching) loop(ctx context.Context, changes *build.Watcher) {
	defer close(w.ran)
	defer func() {
		<-w.current.done
		if w.err == nil {
			w.code, w.err = w.current.code, w.current.err
		}
		w.prune("") // what its container still used when it was tried
	}()
	// What changes before is built when it is.
	if _, err := w.eng.Active(ctx); err != nil {
		return
	}
	for {
		select {
		case <-w.current.done:
			return
		case <-ctx.Done():
			return
		case <-w.eng.Ended():
			return
		case paths, ok := <-changes.Changes():
			if !ok {
				w.app.print.Notice("ctl: no longer watching: %v", changes.Err())
				<-w.current.done
				return
			}
			if err := w.changed(ctx, paths); err != nil {
				w.err = err
				return
			}
		}
	}
}

// changed builds and switches. An error ends the engagement.
func (w *watching) changed(ctx context.Context, paths []string) error {
	w.app.print.Progress("changed: %s", few(paths))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer afterDone(w.current.done, cancel)() // what is built for nobody is cancelled
	start := time.Now()
	args, id, err := w.app.built(ctx, w.s, &w.f.build, w.eng.ID(), w.args)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		w.app.print.Notice("ctl: the handler stays as it is: %v", err)
		return nil
	case id == w.image:
		w.app.print.Progress("the image is the same")
		return nil
	}
	cancel() // the old handler's end is wanted from here on
	old := w.image
	touched, err := w.switchTo(w.app.sig.First, args)
	switch {
	case err == nil:
		w.image, w.good = id, args
		w.app.print.Progress("  from change to switched      %5d ms", time.Since(start).Milliseconds())
		w.prune(old)
		return nil
	case w.over():
		return nil // a consequence
	case !touched:
		w.app.print.Notice("ctl: the handler stays as it is: %v", err)
		w.prune(id)
		return nil
	}
	w.app.print.Notice("ctl: %v; the handler before takes its place again", err)
	if _, err := w.switchTo(w.app.sig.First, w.good); err != nil && !w.over() {
		return fault.New(fault.FailedPrecondition, "", "neither the new handler runs nor, again, the one before: %v", err)
	}
	w.prune(id)
	return nil
}

// over reports whether the engagement has ended or is about to.
func (w *watching) over() bool {
	select {
	case <-w.eng.Ended():
		return true
	default:
		return interrupt.Is(w.app.sig.First)
	}
}

// switchTo puts another handler in the place of the one there is. touched says
// whether that one was; with an error nobody runs then.
func (w *watching) switchTo(ctx context.Context, args []string) (bool, error) {
	var touched atomic.Bool
	next := w.container(ctx, args, func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
		if err := w.eng.Switch(ctx, spec.Handler); err != nil {
			return "", nil, err
		}
		touched.Store(true)
		c, err := w.eng.NextCreated(ctx)
		return c.ContainerID, nil, err
	})
	ended := make(chan error, 1)
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		o, err := w.eng.SwitchEnd(wait)
		if err == nil && o.Failed != nil {
			err = &o.Failed.Error
		}
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-next.done:
		if !touched.Load() {
			return false, next.err
		}
		err = <-ended // it has been created, so connector tells
	}
	if err != nil {
		<-next.done
		return true, err
	}
	w.current = next
	return true, nil
}

// images are the IDs of those on the engine.
func (w *watching) images(ctx context.Context) (map[string]bool, error) {
	list, err := w.docker.ImageList(ctx, image.ListOptions{All: true})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ctl doctor", "list images: %v", err)
	}
	had := map[string]bool{}
	for _, i := range list {
		had[i.ID] = true
	}
	return had, nil
}

// prune removes an image that this command built and nobody has named, and those
// that could not be removed before: the engine refuses where a container has it,
// be it one that is about to go. What was there before stays, and what runs.
func (w *watching) prune(id string) {
	if id != "" && !w.had[id] {
		w.stale = append(w.stale, id)
	}
	ctx, cancel := context.WithTimeout(w.app.sig.Second, answerWithin)
	defer cancel()
	api := w.docker
	w.stale = slices.DeleteFunc(w.stale, func(id string) bool {
		if id == w.image {
			return true // built again meanwhile
		}
		in, err := api.ImageInspect(ctx, id)
		if err != nil || len(in.RepoTags) > 0 {
			return errdefs.IsNotFound(err) || err == nil
		}
		_, err = api.ImageRemove(ctx, id, image.RemoveOptions{PruneChildren: true})
		return err == nil || errdefs.IsNotFound(err)
	})
}

// few are some of the paths, for people.
func few(paths []string) string {
	const show = 3
	if len(paths) <= show {
		return strings.Join(paths, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(slices.Clone(paths)[:show], ", "), len(paths)-show)
}

// afterDone calls f when c is closed, unless stop comes first.
func afterDone(c <-chan struct{}, f func()) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-c:
			f()
		case <-over:
		}
	}()
	return func() { close(over) }
}
