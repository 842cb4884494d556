// Package ports publishes ports of containers that live in a daemon container's
// network, where the engine itself refuses to.
//
// A forwarder is two containers of Berth's own image, which belong to one owner:
// a handler (by its engagement) or a container of docker-run (by its guest's id).
// The front is on the workspace's network and has the owner's ports published by
// the engine, as any container has; it opens a socket for each. The back is in
// the daemon container's network, fetches these sockets from the front through
// a Unix socket in a volume that only the two mount, and carries what arrives
// there to 127.0.0.1. See services/forwarder.
//
// Open returns when the ports can be used, or with the reason why not: nothing
// of the forwarder is left then. Who comes second to a port is told who has it.
// If a part of a forwarder dies, both are made anew with the same ports.
//
// Who removes what after a kill -9: the engine removes containers that end
// (AutoRemove); the next runner adopts forwarders whose owner lives, and a sweep
// removes the others, and the volumes.
//
// Concurrency: Set.mu guards the forwarders; one goroutine follows each from
// when it is open until it is closed.
package ports

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/owner"

	"github.com/docker/docker/api/types/container"
)

// Options are what a Set needs beside the engine.
type Options struct {
	Network string // the workspace's: the front's
	// State states a fact; it returns when the fact is safe.
	State func(ctx context.Context, id string, d event.Data)
	// Go runs f in a goroutine that runner waits for; its context ends after
	// everything has been undone.
	Go  func(f func(context.Context))
	Log *slog.Logger
}

// Set is all forwarders of the workspace.
type Set struct {
	eng   *engine.Engine
	watch *engine.Watch
	opt   Options

	mu  sync.Mutex
	all map[string]*forwarder // by owner
}

// forwarder is a front and its back.
type forwarder struct {
	owner owner.Owner
	asked Want // by the user
	want  Want // the same, with the ports that the engine chose once it has
	since time.Time
	ready chan struct{} // closed when it is open, or has failed to
	end   context.CancelFunc
	ended chan struct{} // closed when nobody follows it any more
	gone  chan struct{} // closed when it is none any more

	// Guarded by Set.mu.
	published []event.Published
	err       error
	ids       [2]string // front, back
	closed    bool
	known     bool // connector knows the engagement, or did
}

// reserved is how long the ports of an engagement are kept that connector does
// not know (yet): between the check of a handler and the record of its
// engagement lies the creation of a Lease.
const reserved = 2 * time.Minute

// New returns an empty set.
func New(e *engine.Engine, w *engine.Watch, o Options) *Set {
	return &Set{eng: e, watch: w, opt: o, all: map[string]*forwarder{}}
}

// Open publishes the ports of an owner. To ask again for what is open is fine;
// nothing to publish is nothing.
func (s *Set) Open(ctx context.Context, o owner.Owner, want Want) ([]event.Published, error) {
	if len(want) == 0 {
		return nil, nil
	}
	if err := check(want); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if f := s.all[o.Key()]; f != nil {
		s.mu.Unlock()
		select {
		case <-f.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if reflect.DeepEqual(f.asked, want) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return f.published, f.err
		}
		if err := s.Close(ctx, o); err != nil { // the next handler of an engagement, with others
			return nil, err
		}
		s.mu.Lock()
	}
	if err := s.clash(o, containerPorts(want)); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	f := newForwarder(o, want)
	s.all[o.Key()] = f
	s.mu.Unlock()

	s.settle(ctx)
	published, err := s.open(ctx, f, true)
	for tries := 0; tries < 3 && fault.CodeOf(err) == fault.AlreadyExists && s.settle(ctx); tries++ {
		// Taken by one that was being closed: a container that is run again at
		// once finds its ports free.
		published, err = s.open(ctx, f, true)
	}
	if err != nil {
		s.drop(f)
		close(f.ended)
	} else {
		s.follow(f)
	}
	s.mu.Lock()
	f.published, f.err = published, err
	s.mu.Unlock()
	close(f.ready)
	return published, err
}

func newForwarder(o owner.Owner, want Want) *forwarder {
	return &forwarder{owner: o, asked: want, want: want, since: time.Now(), ready: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{}), end: func() {}}
}

// settle waits for forwarders that are being closed, and reports whether there
// were any.
func (s *Set) settle(ctx context.Context) bool {
	s.mu.Lock()
	var closing []*forwarder
	for _, f := range s.all {
		if f.closed {
			closing = append(closing, f)
		}
	}
	s.mu.Unlock()
	for _, f := range closing {
		select {
		case <-f.gone:
		case <-ctx.Done():
		}
	}
	return len(closing) > 0
}

// Clash is the fault that names the owner of a port in a connection's network on
// which somebody else's container is to listen.
func (s *Set) Clash(o owner.Owner, want Want) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clash(o, containerPorts(want))
}

// Close takes back what was published for an owner, and returns when the host's
// ports are free again. Nothing open is fine.
func (s *Set) Close(ctx context.Context, o owner.Owner) error {
	s.mu.Lock()
	f := s.all[o.Key()]
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	select {
	case <-f.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	f.closed = true
	end := f.end
	s.mu.Unlock()
	end()
	select {
	case <-f.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := s.remove(ctx, f.owner)
	s.drop(f)
	return err
}

// Holds reports whether a container or volume of a forwarder, by its labels, has
// an owner. known tells of engagements whether connector has them.
func (s *Set) Holds(labels map[string]string, known func(engagement string) bool) bool {
	s.mu.Lock()
	f := s.all[owner.Of(labels).Key()]
	s.mu.Unlock()
	if f == nil {
		return false
	}
	if f.owner.Engagement == "" {
		return true
	}
	s.mu.Lock()
	f.known = f.known || known(f.owner.Engagement)
	early := !f.known && time.Since(f.since) < reserved
	s.mu.Unlock()
	if early || known(f.owner.Engagement) {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if err := s.Close(ctx, f.owner); err != nil {
		s.opt.Log.Warn("the ports of an unknown engagement are left to the next sweep", "engagement", f.owner.Engagement, "err", err)
	}
	return false
}

// closeWithin is long for two containers to be killed.
const closeWithin = 20 * time.Second

// CloseSoon closes on the way out of whoever has no better thing to do with an
// error.
func (s *Set) CloseSoon(ctx context.Context, o owner.Owner) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	if err := s.Close(ctx, o); err != nil {
		s.opt.Log.Warn("published ports are left to the next sweep", "container", o.Name, "err", err)
	}
}

func (s *Set) drop(f *forwarder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[f.owner.Key()] == f {
		delete(s.all, f.owner.Key())
		close(f.gone)
	}
}

// follow watches over f until it is closed, and makes it anew if it dies.
func (s *Set) follow(f *forwarder) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	f.end = cancel
	s.mu.Unlock()
	s.opt.Go(func(life context.Context) {
		defer close(f.ended)
		defer cancel()
		stop := context.AfterFunc(life, cancel)
		defer stop()
		for s.died(ctx, f) {
			s.opt.Log.Warn("a forwarder died and is made anew", "container", f.owner.Name, "connection", f.owner.Connection)
			s.revive(ctx, f)
		}
	})
}

// died waits for one of the two to end; false if ctx ended first.
func (s *Set) died(ctx context.Context, f *forwarder) bool {
	s.mu.Lock()
	ids := f.ids
	s.mu.Unlock()
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan struct{}, len(ids))
	var wg sync.WaitGroup
	for _, id := range ids {
		if id == "" { // an adopted one lacks it
			first <- struct{}{}
			continue
		}
		wait := s.eng.Ended(wctx, id)
		wg.Go(func() {
			if _, err := wait.Exit(wctx, s.watch); err == nil {
				first <- struct{}{}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	select {
	case <-first:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// revive opens f again, with the ports that the engine chose the first time,
// until that succeeds or ctx ends: whoever took a port meanwhile is named.
func (s *Set) revive(ctx context.Context, f *forwarder) {
	s.mu.Lock()
	f.want = wanted(f.published)
	published := f.published
	s.mu.Unlock()
	told := false
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		_, err := s.open(ctx, f, false)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if told {
				s.tell(ctx, f, event.PortsOpened{Container: f.owner.Name, Published: published})
			}
			return
		}
		if !told {
			told = true
			s.tell(ctx, f, event.PortsClosed{Container: f.owner.Name, Published: published, Error: *fault.From(err)})
		}
		s.opt.Log.Error("published ports are closed", "container", f.owner.Name, "connection", f.owner.Connection, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// tell states a fact about an engagement; nobody follows the facts of a guest.
func (s *Set) tell(ctx context.Context, f *forwarder, d event.Data) {
	if f.owner.Engagement != "" {
		s.opt.State(ctx, f.owner.Engagement, d)
	}
}

// remove removes containers and volume of an owner's forwarder by their labels.
func (s *Set) remove(ctx context.Context, o owner.Owner) error {
	labels := []engine.Label{engine.Is(engine.LabelComponent, engine.Forwarder), engine.Is(engine.LabelConnection, o.Connection)}
	if o.Engagement != "" {
		labels = append(labels, engine.Is(engine.LabelEngagement, o.Engagement))
	} else {
		labels = append(labels, engine.Is(engine.LabelGuest, o.Guest))
	}
	list, err := s.eng.List(ctx, labels...)
	if err != nil {
		return err
	}
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { errs[i] = s.eng.Remove(ctx, c.ID) })
	}
	wg.Wait()
	vols, err := s.eng.Volumes(ctx, labels...)
	for _, v := range vols {
		err = errors.Join(err, engine.Fault(s.eng.API.VolumeRemove(ctx, v.Name, true), "remove volume %s", v.Name))
	}
	return errors.Join(append(errs, err)...)
}

// Adopt takes over the forwarders of living owners that an earlier runner left;
// what of one is missing is made anew. It must have returned before commands are
// served.
func (s *Set) Adopt(ctx context.Context) error {
	list, err := s.eng.List(ctx)
	if err != nil {
		return err
	}
	owners, labels := owner.Living(list)
	for i, o := range owners {
		all := Read(labels[i][engine.LabelPublished])
		if len(all) == 0 {
			continue
		}
		f := newForwarder(o, wanted(all))
		f.published = all
		close(f.ready)
		for _, p := range list {
			if p.Labels[engine.LabelComponent] == engine.Forwarder && p.State == container.StateRunning && owner.Of(p.Labels).Key() == o.Key() {
				f.ids[partOf(p)] = p.ID
			}
		}
		s.mu.Lock()
		s.all[o.Key()] = f
		s.mu.Unlock()
		s.follow(f) // a part that is not there has ended
	}
	return nil
}

// clash is Clash; s.mu is held.
func (s *Set) clash(o owner.Owner, ports []port) error {
	for _, f := range s.all {
		if f.owner.Connection != o.Connection || f.owner.Key() == o.Key() || f.closed {
			continue
		}
		for _, p := range ports {
			if _, ok := f.want[p]; ok {
				return fault.New(fault.AlreadyExists, f.owner.Hint(), "port %s is the port of %s already, and all containers of a connection share one network", p, f.owner.Name)
			}
		}
	}
	return nil
}
