// Package build builds an image from the caller's context and returns its ID:
// never a tag, which may have moved by the time it is used.
//
// Builder, in a container of its own, builds through the engine; this package is
// its counterpart (see bus/buildstream): it lists the context, hands over what
// builder asks for, shows the progress, and waits for the terminal fact. The
// first build on a workspace starts builder. When Build's context ends, so does
// the build on the engine, and Build returns when that is told.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/buildstream"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"

	"github.com/docker/cli/cli/config"
	"golang.org/x/sync/errgroup"
)

// Options is one build.
type Options struct {
	// Builder opens a stream to builder, and starts it if need be.
	Builder    func(context.Context, *bus.Conn) (io.ReadWriteCloser, error)
	Conn       *bus.Conn            // the bus that builder is on
	Context    string               // directory, Dockerfile, URL or -
	Options    []string             // key=value, as with --docker-build-opt
	Engagement string               // id, where it is built for one
	Stdin      io.Reader            // for the context -
	Stderr     io.Writer            // for the progress; live if it is a terminal
	See        func(event.Envelope) // is given every fact; may be nil
	Quiet      bool
}

// Stage is the stage of faults that have none of their own.
const Stage = "build"

// cancelWithin bounds the wait for a cancelled build.
const cancelWithin = 10 * time.Second

// Build builds and returns the image's ID.
func Build(ctx context.Context, o Options) (string, error) {
	id, err := run(ctx, o)
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return id, err
	}
	return id, fault.At(Stage, err)
}

func run(ctx context.Context, o Options) (string, error) {
	own, err := split(o.Options)
	if err != nil {
		return "", err
	}
	src, err := locate(o.Context, own.file)
	if err != nil {
		return "", err
	}
	var caller *buildstream.Caller
	closeRoot := func() {}
	var auths map[string]buildstream.Auth
	var wire io.ReadWriteCloser
	defer func() {
		closeRoot()
		if wire != nil {
			_ = wire.Close()
		}
	}()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		caller, closeRoot, err = src.caller(o.Stdin)
		if err != nil {
			closeRoot = func() {}
		}
		return err
	})
	group.Go(func() error {
		auths = credentials()
		return nil
	})
	group.Go(func() (err error) {
		wire, err = o.Builder(gctx, o.Conn)
		return err
	})
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", err
	}
	show := newScreen(o.Stderr, own.plain, own.quiet || o.Quiet)
	defer show.end()
	caller.Progress, caller.Secret, caller.Agent = show.see, own.secret, own.agent
	b := &building{o: o, own: own, src: src, caller: caller, show: show}
	return b.do(ctx, wire, buildstream.Hello{Key: src.key(), Auths: auths})
}

// credentials are what the user's configuration has for registries. None is no
// obstacle: most images are public or here.
func credentials() map[string]buildstream.Auth {
	all, err := config.LoadDefaultConfigFile(io.Discard).GetAllCredentials()
	if err != nil {
		return nil
	}
	m := map[string]buildstream.Auth{}
	for k, c := range all {
		m[k] = buildstream.Auth{Username: c.Username, Password: c.Password, Auth: c.Auth, ServerAddress: c.ServerAddress, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	}
	return m
}

// building is a build that was asked for.
type building struct {
	o      Options
	own    *own
	src    *source
	caller *buildstream.Caller
	show   *screen
}

// wanted is the builder that Docker's own variable asks for.
func wanted() string {
	switch os.Getenv("DOCKER_BUILDKIT") {
	case "0":
		return "classic"
	case "1":
		return "buildkit"
	}
	return ""
}

func (b *building) do(ctx context.Context, wire io.ReadWriteCloser, hello buildstream.Hello) (string, error) {
	id := busclient.NewID("b")
	conn := b.o.Conn
	tail, err := conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Build, id))
	if err != nil {
		return "", err
	}
	defer tail.Stop()
	rep, err := bus.Call(ctx, conn, command.BuildStart, "", command.StartBuild{
		ID: id, Engagement: b.o.Engagement, Context: b.src.kind, Remote: b.src.remote, Dockerfile: b.src.dockerfile,
		Options: b.own.rest, Builder: wanted(), Stream: true,
	})
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx) // without a stream it does not begin
		}
		return "", err
	}
	hello.ID, hello.Token = rep.ID, rep.Token
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	served := make(chan error, 1)
	go func() { served <- b.caller.Serve(life, buildstream.New(wire), hello) }()
	defer func() { end(); <-served }()
	stop := context.AfterFunc(ctx, func() { b.cancel(life, id) })
	defer stop()

	wait, done := context.WithCancel(context.WithoutCancel(ctx))
	defer done()
	context.AfterFunc(ctx, func() { time.AfterFunc(cancelWithin, done) })
	last, err := busclient.Terminal(wait, conn, tail, b.o.See)
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", err
	}
	select { // the last progress comes before the end of the stream
	case err := <-served:
		served <- err
	case <-time.After(time.Second):
	}
	b.show.end()
	return b.verdict(ctx, last)
}

// cancel asks builder to cancel, and closes the stream where it cannot.
func (b *building) cancel(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, cancelWithin)
	defer cancel()
	_, _ = bus.Call(ctx, b.o.Conn, command.BuildCancel, "", command.BuildRef{ID: id}) // the end of our stream cancels as well
}

func (b *building) verdict(ctx context.Context, last event.Envelope) (string, error) {
	if f, ok := event.Decode[event.BuildFailed](last); ok {
		if f.Cancelled && ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		b.show.failed(f)
		return "", &f.Error
	}
	f, ok := event.Decode[event.BuildFinished](last)
	if !ok {
		return "", fault.New(fault.Internal, "", "the build ended in %s", last.Type)
	}
	b.show.finished(f)
	if b.own.iidfile != "" {
		if err := os.WriteFile(b.own.iidfile, []byte(f.ImageID), 0o666); err != nil {
			return "", fmt.Errorf("write the image's ID: %w", err)
		}
	}
	return f.ImageID, nil
}
