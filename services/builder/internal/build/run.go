package build

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/builder/internal/option"
	"berth.dev/services/builder/internal/remote"

	"berth.dev/bus/buildstream"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// stateWithin bounds the statement of a terminal fact.
const stateWithin = 15 * time.Second

// job is one build at work.
type job struct {
	*record
	api  client.APIClient
	tell *teller
	from *remote.Peer // nil without a stream
	list []buildstream.Entry
	made []string // images that steps of the classic builder made, oldest first
	id   string   // of the image, once there is one
}

// run takes a build from its acceptance to its terminal fact.
func (s *Set) run(r *record) {
	start := time.Now()
	j := &job{record: r, api: s.opt.API}
	j.tell = newTeller(r.req.ID, s.opt.State, s.opt.Output(r.req.ID))
	err := s.prepare(j)
	listed := time.Now()
	var steps time.Duration
	if err == nil {
		err = j.build()
		steps = time.Since(listed)
	}
	cause := context.Cause(r.ctx)
	if err != nil && cause != nil && j.which == option.Classic {
		j.takeBack()
	}
	ctx, cancel := context.WithTimeout(context.Background(), stateWithin)
	defer cancel()
	j.tell.close(ctx)
	var last event.Data
	if err == nil {
		last = event.BuildFinished{ImageID: j.id, Tags: r.parsed.Build.Tags, Builder: j.which, Phases: []event.Phase{
			{Name: "context", Millis: listed.Sub(start).Milliseconds()},
			{Name: "steps", Millis: steps.Milliseconds()},
			{Name: "total", Millis: time.Since(start).Milliseconds()},
		}}
	} else {
		last = j.failed(err, cause)
	}
	s.opt.State(ctx, r.req.ID, last)
	s.opt.Log.Info("a build ended", "build", r.req.ID, "builder", j.which, "ok", err == nil, "took", time.Since(start).String())
	if j.from != nil {
		j.from.Done()
	}
	if !j.admit() {
		return
	}
	select { // a stream that came when it was too late
	case p := <-r.peer:
		p.Done()
	default:
	}
}

// admit reports whether a stream may lie unread in the record.
func (j *job) admit() bool { return j.from == nil && j.streamed() }

// prepare waits for the stream and the list of the context, and chooses the builder.
func (s *Set) prepare(j *job) error {
	if j.which == "" {
		j.which = option.BuildKit
	}
	if j.streamed() {
		late := time.NewTimer(s.opt.Await)
		defer late.Stop()
		select {
		case j.from = <-j.peer:
		case <-late.C:
			return fault.New(fault.Unavailable, "", "the caller of the build did not open its stream within %v", s.opt.Await)
		case <-j.ctx.Done():
			return context.Cause(j.ctx)
		}
		j.tell.to(j.from)
	}
	if j.req.Context == contextDirectory {
		var err error
		if j.list, err = j.from.Entries(j.ctx); err != nil {
			return fmt.Errorf("list the context: %w", err)
		}
	}
	return nil
}

// build builds with the chosen builder. BuildKit that the engine has not, or
// does not let us have, is replaced by the classic builder where the user did
// not ask for what only BuildKit can do.
func (j *job) build() error {
	wanted := j.req.Builder == option.BuildKit || j.parsed.NeedsBuildKit()
	if j.which == option.BuildKit {
		err := j.buildkit()
		var no *refusedSession
		if !errors.As(err, &no) {
			return j.checked(err)
		}
		if wanted {
			return fault.New(fault.FailedPrecondition, "docker version", "the engine has no BuildKit for us: %v", no.err)
		}
		j.tell.notice("the engine has no BuildKit for us (%v): building with the classic builder", no.err)
		j.which = option.Classic
	}
	return j.checked(j.classic())
}

// checked is err, or why an image that was built is not one of the context.
func (j *job) checked(err error) error {
	if err == nil && j.from != nil {
		err = j.from.Failed()
	}
	if err == nil && !strings.HasPrefix(j.id, "sha256:") {
		err = fault.New(fault.Unavailable, "docker info", "the engine ended the build without an image: it may have been stopped")
	}
	return err
}

// started states that the engine is about to build.
func (j *job) started() {
	of := j.req.Context
	if of == contextRemote {
		of = withoutPassword(j.req.Remote)
	}
	j.tell.fact(j.ctx, event.BuildStarted{Engagement: j.req.Engagement, Context: of, Builder: j.which})
}

// failed is the terminal fact of a build that came to nothing.
func (j *job) failed(err, cause error) event.BuildFailed {
	switch {
	case errors.Is(cause, ErrCancelled), errors.Is(cause, errStopping):
		return event.BuildFailed{Cancelled: true, Error: *fault.New(fault.FailedPrecondition, "", "the build was cancelled: %v", cause)}
	case errors.Is(cause, remote.ErrGone):
		return event.BuildFailed{Cancelled: true, Error: *fault.New(fault.FailedPrecondition, "", "the build was cancelled: its caller is gone")}
	}
	if read := j.readFailure(); read != nil {
		err = read
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.From(engineFault(err, "build"))
	}
	step, output := j.tell.broken()
	return event.BuildFailed{Error: *fault.At(step, f), Output: output}
}

// readFailure is what went wrong at the caller, of which the engine tells an
// effect only.
func (j *job) readFailure() error {
	if j.from == nil {
		return nil
	}
	if err := j.from.Failed(); err != nil {
		return fault.New(fault.FailedPrecondition, "", "read the context: %v", err)
	}
	return nil
}

// engineFault is err of the engine as a fault.
func engineFault(err error, doing string) error {
	var f *fault.Error
	code, hint := fault.FailedPrecondition, ""
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return f
	case client.IsErrConnectionFailed(err), errdefs.IsUnavailable(err), errors.Is(err, errCut):
		code, hint = fault.Unavailable, "ctl doctor"
	case errdefs.IsInvalidArgument(err):
		code = fault.InvalidArgument
	case errdefs.IsNotFound(err):
		code = fault.NotFound
	}
	return fault.New(code, hint, "%s: %v", doing, err)
}

// errCut says that the engine's answer broke off.
var errCut = errors.New("the engine's answer broke off")

// withoutPassword is a URL without what stands before the @ of its host.
func withoutPassword(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	host, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	return scheme + "://" + strings.TrimSuffix(host+"/"+path, "/")
}
