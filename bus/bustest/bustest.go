// Package bustest gives tests a real bus: the embedded server in a directory of
// the test's own, with an identity for every service, in some ten milliseconds.
// Nothing is simulated, so what the real server refuses is refused here.
//
//	b := bustest.Start(t)
//	conn := b.Connect(subject.Ctl)
//	go runner.Run(ctx, b.Config(subject.Runner))
//	exited := bustest.Wait[event.HandlerExited](t, conn, engagement)
//
// [Conformance] is what every service has to pass.
package bustest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/embed"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

// Patience is how long the helpers wait for what should come at once. It is
// generous, since it passes only in a test that fails.
const Patience = time.Minute

// Tester is the name of an identity with connector's rights, for the test itself.
const Tester = "tester"

// Bus is a running bus. Its methods end the test when they fail, so they belong
// to the test's goroutine.
type Bus struct {
	t     testing.TB
	opts  embed.Options
	srv   *embed.Server
	seeds map[string]string
	ids   map[string]bus.Identity
}

// Start starts a bus that stops with the test.
func Start(t testing.TB) *Bus {
	t.Helper()
	b := &Bus{
		t: t, seeds: map[string]string{}, ids: map[string]bus.Identity{},
		opts: embed.Options{StoreDir: t.TempDir(), Port: embed.RandomPort, Logger: logger(t)},
	}
	b.identity(Tester, subject.Connector, "")
	for _, s := range []subject.Service{subject.Connector, subject.Builder, subject.Runner, subject.Telemount, subject.Ctl} {
		b.identity(string(s), s, "")
	}
	b.run()
	t.Cleanup(b.Stop)
	return b
}

// logger shows the server's errors with -v only: a test that provokes refusals
// would otherwise look as if it had failed.
func logger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// identity makes one, and admits it from the next start on.
func (b *Bus) identity(name string, s subject.Service, connection string) bus.Identity {
	b.t.Helper()
	seed, id, err := bus.NewIdentity(name, s, connection)
	if err != nil {
		b.t.Fatal(err)
	}
	b.seeds[name], b.ids[name] = seed, id
	b.opts.Identities = append(b.opts.Identities, id)
	return id
}

func (b *Bus) run() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	srv, err := embed.Start(ctx, b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.srv = srv
	b.opts.Port = srv.Port()
}

// Server is the server that runs now.
func (b *Bus) Server() *embed.Server { return b.srv }

// Config is the configuration with which a service would be started. For vif
// use VIF.
func (b *Bus) Config(s subject.Service) bus.Config { return b.config(string(s)) }

// VIF is the configuration of the vif of a connection, whose identity is made
// if it is not there.
func (b *Bus) VIF(connection string) bus.Config {
	b.t.Helper()
	name := "vif-" + connection
	if _, ok := b.ids[name]; !ok {
		if err := b.srv.Add(b.identity(name, subject.VIF, connection)); err != nil {
			b.t.Fatal(err)
		}
	}
	return b.config(name)
}

func (b *Bus) config(name string) bus.Config {
	b.t.Helper()
	id, ok := b.ids[name]
	if !ok {
		b.t.Fatalf("bustest: no identity %q", name)
	}
	return bus.Config{
		URL:  fmt.Sprintf("nats://127.0.0.1:%d", b.opts.Port),
		Seed: b.seeds[name], Identity: name, Service: id.Service,
	}
}

// Connect connects as a service, until the test ends.
func (b *Bus) Connect(s subject.Service) *bus.Conn { b.t.Helper(); return b.ConnectWith(b.Config(s)) }

// Tester connects with connector's rights, until the test ends.
func (b *Bus) Tester() *bus.Conn { b.t.Helper(); return b.ConnectWith(b.config(Tester)) }

// ConnectWith connects with a configuration, until the test ends.
func (b *Bus) ConnectWith(cfg bus.Config) *bus.Conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	c, err := bus.Connect(ctx, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// Stop stops the server; connections see it go. Restart brings it back.
func (b *Bus) Stop() {
	if b.srv != nil {
		b.srv.Shutdown()
		b.srv = nil
	}
}

// Restart stops the server, if it runs, and starts it on the same port and the
// same files.
func (b *Bus) Restart() {
	b.t.Helper()
	b.Stop()
	b.run()
}

// Within is a context for the test that ends after d.
func Within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Wait waits for the first T about id, whether it has been stated already or
// not. It fails the test after Patience, with the facts that came instead.
func Wait[T event.Data](t testing.TB, conn *bus.Conn, id string) T {
	t.Helper()
	var zero T
	scope, _, _ := zero.Fact()
	for _, env := range Collect(t, conn, scope, id, func(env event.Envelope) bool { return env.Type == event.TypeOf(zero) }) {
		if v, ok := event.Decode[T](env); ok {
			return v
		}
	}
	t.Fatalf("a %s about %s does not decode", event.TypeOf(zero), id)
	return zero
}

// Collect reads the facts about id from the first on, up to and including the
// one that until says yes to. event.Terminal is a common choice.
func Collect(t testing.TB, conn *bus.Conn, scope subject.Scope, id string, until func(event.Envelope) bool) []event.Envelope {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	tail, err := conn.TailFacts(ctx, time.Time{}, subject.FactsOf(scope, id))
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Stop()
	var seen []event.Envelope
	for {
		env, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for a fact about %s %s: %v; seen:\n%s", scope, id, err, list(seen))
		}
		seen = append(seen, env)
		if until(env) {
			return seen
		}
	}
}

// list is facts for people.
func list(facts []event.Envelope) string {
	var b strings.Builder
	if len(facts) == 0 {
		_, _ = io.WriteString(&b, "  none\n")
	}
	for _, e := range facts {
		fmt.Fprintf(&b, "  %s %s\n", e.Type, e.Data)
	}
	return b.String()
}
