// Package build owns the builds: one record for each, from the command that
// asks for it to its terminal fact, of which there is exactly one.
//
//	started, step…, finished
//	failed in the place of what did not come about; cancelled is a kind of failed
//
// A build with a caller's stream ends with that stream, so that whoever asked
// and died leaves nothing running; the engine ends the build when builder's
// request ends, so neither does a builder that is killed. Intermediate
// containers are removed by the engine (rm, forcerm).
//
// What the classic builder's successful steps made stays after a failed build,
// as its cache; after a cancelled one it is removed again.
//
// Concurrency: Set.mu guards the records; each build runs in one goroutine.
package build

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"log/slog"
	"sync"
	"time"

	"berth.dev/bus/buildstream"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/builder/internal/option"
	"berth.dev/services/builder/internal/remote"

	"github.com/docker/docker/client"
)

// Options are what a Set needs.
type Options struct {
	API client.APIClient
	// State states a fact; it returns when the fact is safe.
	State func(ctx context.Context, id string, d event.Data)
	// Output opens the record of a build's output.
	Output func(build string) Output
	// Await is how long a caller may take to open its stream.
	Await time.Duration
	Log   *slog.Logger
}

// Output is where a build's output goes, as plain lines.
type Output interface {
	Write([]byte) (int, error)
	Close(ctx context.Context) error
}

// Causes for which a build is cancelled.
var (
	ErrCancelled = errors.New("cancelled")
	errStopping  = errors.New("builder is stopping")
)

// Set is all builds of the workspace.
type Set struct {
	opt Options

	mu      sync.Mutex
	builds  map[string]*record
	stopped bool
	wg      sync.WaitGroup
}

// keep is for how long a build is remembered, so that a late repeat of its
// command builds nothing.
const keep = 10 * time.Minute

type record struct {
	req    command.StartBuild
	parsed *option.Parsed
	which  string // builder, "" for the best
	token  string
	peer   chan *remote.Peer // the caller's stream, once
	ctx    context.Context
	cancel context.CancelCauseFunc

	// Guarded by Set.mu.
	admitted bool
	ended    time.Time
}

// New returns an empty set.
func New(o Options) *Set {
	if o.Await == 0 {
		o.Await = 15 * time.Second
	}
	return &Set{opt: o, builds: map[string]*record{}}
}

// Start serves BuildStart.
func (s *Set) Start(ctx context.Context, req command.StartBuild) (command.StartedBuild, error) {
	rep := command.StartedBuild{ID: req.ID}
	if !subject.Valid(req.ID) || req.Engagement != "" && !subject.Valid(req.Engagement) {
		return rep, fault.New(fault.InvalidArgument, "", "%q is not the id of a build", req.ID)
	}
	switch {
	case req.Context == contextRemote && req.Remote == "":
		return rep, fault.New(fault.InvalidArgument, "", "a remote context needs a URL")
	case req.Context != contextRemote && req.Remote != "":
		return rep, fault.New(fault.InvalidArgument, "", "a URL is given, and the context is %q", req.Context)
	case req.Context != contextRemote && req.Context != contextDirectory && req.Context != contextStdin:
		return rep, fault.New(fault.InvalidArgument, "", "the context is directory, stdin or remote, not %q", req.Context)
	}
	if _, err := s.opt.API.Ping(ctx); err != nil {
		return rep, engineFault(err, "reach the Docker Engine")
	}
	parsed, err := option.Parse(req.Options, s.opt.API.ClientVersion())
	if err != nil {
		return rep, err
	}
	which, err := parsed.Builder(req.Builder)
	if err != nil {
		return rep, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return rep, fault.New(fault.Unavailable, "", "builder is stopping")
	}
	s.forget()
	if r := s.builds[req.ID]; r != nil {
		rep.Already, rep.Token = true, r.token
		return rep, nil
	}
	r := &record{req: req, parsed: parsed, which: which, token: rand.Text(), peer: make(chan *remote.Peer, 1)}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	s.builds[req.ID] = r
	rep.Token = r.token
	s.wg.Go(func() {
		s.run(r)
		r.cancel(nil)
		s.mu.Lock()
		r.ended = time.Now()
		s.mu.Unlock()
	})
	return rep, nil
}

// The contexts that a command may name.
const (
	contextRemote    = "remote"
	contextDirectory = "directory"
	contextStdin     = "stdin"
)

// streamed reports whether the build waits for its caller's stream.
func (r *record) streamed() bool { return r.req.Stream || r.req.Context != contextRemote }

// Cancel serves BuildCancel. Already says that there is nothing to cancel.
func (s *Set) Cancel(_ context.Context, req command.BuildRef) (command.Accepted, error) {
	rep := command.Accepted{ID: req.ID}
	if !subject.Valid(req.ID) {
		return rep, fault.New(fault.InvalidArgument, "", "%q is not the id of a build", req.ID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.builds[req.ID]
	if r == nil || !r.ended.IsZero() {
		rep.Already = true
		return rep, nil
	}
	r.cancel(ErrCancelled)
	return rep, nil
}

// helloWithin is what a new stream has to say who it is.
const helloWithin = 10 * time.Second

// Admit takes a caller's stream and returns when it has ended.
func (s *Set) Admit(ctx context.Context, conn *buildstream.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	late := time.AfterFunc(helloWithin, func() { _ = conn.Close() })
	hello, err := receiveHello(conn)
	late.Stop()
	if err != nil {
		return err
	}
	s.mu.Lock()
	r := s.builds[hello.ID]
	ok := r != nil && r.ended.IsZero() && !r.admitted && r.streamed() && subtle.ConstantTimeCompare([]byte(hello.Token), []byte(r.token)) == 1
	if ok {
		r.admitted = true
	}
	s.mu.Unlock()
	if !ok {
		return errors.New("a stream for no build, with a wrong token, or a second one was refused")
	}
	p := remote.NewPeer(conn, hello)
	r.peer <- p
	p.Serve()
	r.cancel(remote.ErrGone)
	return nil
}

// Stop cancels all builds and waits until their facts are stated, or for ctx.
func (s *Set) Stop(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	for _, r := range s.builds {
		r.cancel(errStopping)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		s.opt.Log.Error("builds are left to the engine, which ends them with our connection")
		<-done // every request of theirs has ended with its context
	}
}

// forget drops what ended long ago. s.mu is held.
func (s *Set) forget() {
	for id, r := range s.builds {
		if !r.ended.IsZero() && time.Since(r.ended) > keep {
			delete(s.builds, id)
		}
	}
}
