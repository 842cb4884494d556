package bustest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"go.uber.org/goleak"
)

// Command is one of a service's commands, as Conformance tries it.
type Command struct {
	Verb string
	// Valid is a request that the service accepts, also when it is repeated, or
	// nil if there is none in this test's surroundings.
	Valid any
	// Bad are requests that must be refused as invalid_argument: an id that is
	// no token, a field that is missing.
	Bad []any
}

// Spec says what a service claims.
type Spec struct {
	Service    subject.Service
	Connection string // of a service that belongs to one (vif)
	Commands   []Command
	// Repeated, if given, is called after each Valid command has been sent
	// several times, in order and at once: the place to check that it had its
	// effect once.
	Repeated func(t *testing.T, b *Bus)
	// Gone, if given, is called after the service has ended: the place to check
	// that nothing of it is left at the engine or in the kernel.
	Gone func(t *testing.T)
	// Leaks are options for goleak, for goroutines that a library cannot end.
	Leaks []goleak.Option
}

// Run is a service's main function: it serves until ctx ends or the bus is
// lost, and returns when everything is undone.
type Run = func(ctx context.Context, cfg bus.Config) error

// StopWithin is what a service has to undo everything when it is told to end.
const StopWithin = 5 * time.Second

// Conformance checks what every service promises on the bus, each time with a
// bus and a run of its own:
//
//	ping        it answers $SRV.PING and lists the commands of the spec
//	strict      unknown fields, bad JSON and bad requests are invalid_argument
//	repeat      a command that is sent again is accepted again
//	restart     the bus restarts; facts stay in order, the service answers again
//	stop        it ends within StopWithin of its context, without an error
//	lost        it ends by itself when the bus is away for good (not with -short)
//
// and after each that no goroutine is left.
func Conformance(t *testing.T, run Run, spec Spec) {
	for _, c := range []struct {
		name string
		f    func(*trial, *testing.T)
	}{
		{"ping", (*trial).ping}, {"strict", (*trial).strict}, {"repeat", (*trial).repeat},
		{"restart", (*trial).restart}, {"stop", (*trial).stop}, {"lost", (*trial).lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "lost" && testing.Short() {
				t.Skip("lost takes more than ten seconds: skipped with -short")
			}
			before := goleak.IgnoreCurrent()
			t.Run("run", func(t *testing.T) {
				tr := begin(t, run, spec)
				c.f(tr, t)
			})
			if spec.Gone != nil {
				spec.Gone(t)
			}
			goleak.VerifyNone(t, append(slices.Clone(spec.Leaks), before)...)
		})
	}
}

// trial is one run of the service on a bus of its own.
type trial struct {
	b     *Bus
	conn  *bus.Conn
	spec  Spec
	end   context.CancelFunc
	ended chan struct{}
	err   error // of Run, once ended is closed
}

// begin starts the service and waits until it serves its commands.
func begin(t *testing.T, run Run, spec Spec) *trial {
	t.Helper()
	b := Start(t)
	cfg := bus.Config{}
	if spec.Service == subject.VIF {
		cfg = b.VIF(spec.Connection)
	} else {
		cfg = b.Config(spec.Service)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr := &trial{b: b, conn: b.Tester(), spec: spec, end: cancel, ended: make(chan struct{})}
	go func() {
		defer close(tr.ended)
		tr.err = run(ctx, cfg)
	}()
	t.Cleanup(func() {
		cancel()
		<-tr.ended
	})
	tr.ready(t)
	return tr
}

// ready waits until the service lists every command of the spec.
func (tr *trial) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var missing []string
	for {
		info, err := tr.info(ctx)
		if err == nil {
			if missing = tr.missing(info); len(missing) == 0 {
				return
			}
		}
		select {
		case <-tr.ended:
			t.Fatalf("the service ended: %v", tr.err)
		case <-ctx.Done():
			t.Fatalf("the service does not serve in time: %v, missing %q", err, missing)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (tr *trial) info(ctx context.Context) (micro.Info, error) {
	var info micro.Info
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	msg, err := tr.conn.NC.RequestWithContext(ctx, "$SRV.INFO."+string(tr.spec.Service), nil)
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(msg.Data, &info)
}

func (tr *trial) missing(info micro.Info) (missing []string) {
	for _, c := range tr.spec.Commands {
		if !slices.ContainsFunc(info.Endpoints, func(e micro.EndpointInfo) bool { return e.Subject == tr.subject(c.Verb) }) {
			missing = append(missing, c.Verb)
		}
	}
	return missing
}

func (tr *trial) subject(verb string) string {
	if tr.spec.Connection != "" {
		return subject.CommandTo(tr.spec.Service, verb, tr.spec.Connection)
	}
	return subject.Command(tr.spec.Service, verb)
}

// send sends a raw request; a fault comes back as such.
func (tr *trial) send(verb string, body []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	msg, err := tr.conn.NC.RequestWithContext(ctx, tr.subject(verb), body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, body, err)
	}
	if msg.Header.Get(micro.ErrorCodeHeader) == "" {
		return nil
	}
	f := new(fault.Error)
	if err := json.Unmarshal(msg.Data, f); err != nil {
		return fmt.Errorf("%s: the fault %q is none: %w", verb, msg.Data, err)
	}
	return f
}

func (tr *trial) ping(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	for _, subj := range []string{"$SRV.PING", "$SRV.PING." + string(tr.spec.Service)} {
		msg, err := tr.conn.NC.RequestWithContext(ctx, subj, nil)
		if err != nil {
			t.Fatalf("%s: %v", subj, err)
		}
		var pong micro.Ping
		if err := json.Unmarshal(msg.Data, &pong); err != nil || pong.Name != string(tr.spec.Service) {
			t.Errorf("%s: %s (%v), want the name %s", subj, msg.Data, err, tr.spec.Service)
		}
	}
}

func (tr *trial) strict(t *testing.T) {
	refused := func(verb string, body []byte) {
		t.Helper()
		if err := tr.send(verb, body); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s %.200s: %v, want invalid_argument", verb, body, err)
		}
	}
	for _, c := range tr.spec.Commands {
		for _, bad := range []string{"{", "[]", `"x"`, `{}{}`, "\xff\xfe"} {
			refused(c.Verb, []byte(bad))
		}
		refused(c.Verb, withUnknownField(t, c.Valid))
		for _, bad := range c.Bad {
			refused(c.Verb, marshal(t, bad))
		}
	}
	if _, err := tr.info(t.Context()); err != nil {
		t.Errorf("after bad requests the service does not answer: %v", err)
	}
}

// withUnknownField is req as JSON with one field too many.
func withUnknownField(t *testing.T, req any) []byte {
	const extra = `"noSuchField":1}`
	if req == nil {
		return []byte("{" + extra)
	}
	body := bytes.TrimSuffix(marshal(t, req), []byte("}"))
	if len(body) > 1 {
		body = append(body, ',')
	}
	return append(body, extra...)
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (tr *trial) repeat(t *testing.T) {
	for _, c := range tr.spec.Commands {
		if c.Valid == nil {
			continue
		}
		body := marshal(t, c.Valid)
		for n := range 3 {
			if err := tr.send(c.Verb, body); err != nil {
				t.Errorf("%s, time %d: %v", c.Verb, n+1, err)
			}
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := tr.send(c.Verb, body); err != nil {
					t.Errorf("%s, beside itself: %v", c.Verb, err)
				}
			})
		}
		wg.Wait()
	}
	if tr.spec.Repeated != nil {
		tr.spec.Repeated(t, tr.b)
	}
}

func (tr *trial) restart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	tail, err := tr.conn.TailFacts(ctx, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Stop()
	sendAll := func() {
		for _, c := range tr.spec.Commands {
			if c.Valid == nil {
				continue
			}
			if err := tr.send(c.Verb, marshal(t, c.Valid)); err != nil {
				t.Errorf("%s: %v", c.Verb, err)
			}
		}
	}
	// A fact of the test's own marks the end of each half.
	mark := func(cause string) {
		if err := tr.conn.State(ctx, "bustest-mark", event.Restoring{Cause: cause}); err != nil {
			t.Fatal(err)
		}
	}
	until := func(tail *bus.Tail, cause string) (ids []string) {
		for {
			env, err := tail.Next(ctx)
			if err != nil {
				t.Fatalf("tail until %q: %v", cause, err)
			}
			ids = append(ids, env.ID)
			if r, ok := event.Decode[event.Restoring](env); ok && env.Subject == "bustest-mark" && r.Cause == cause {
				return ids
			}
		}
	}
	sendAll()
	mark("before")
	live := until(tail, "before")
	tr.b.Restart()
	tr.ready(t)
	sendAll()
	mark("after")
	live = append(live, until(tail, "after")...)

	late, err := tr.conn.TailFacts(ctx, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Stop()
	if all := until(late, "after"); !slices.Equal(all, live) {
		t.Errorf("a tail over the restart saw %d facts, one from the beginning %d:\n%q\n%q", len(live), len(all), live, all)
	}
}

func (tr *trial) stop(t *testing.T) {
	tr.end()
	select {
	case <-tr.ended:
	case <-time.After(StopWithin):
		t.Fatalf("not ended %v after its context", StopWithin)
	}
	if tr.err != nil && !errors.Is(tr.err, context.Canceled) {
		t.Errorf("ended with %v", tr.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if _, err := tr.info(ctx); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("after its end the service answers, or: %v", err)
	}
}

func (tr *trial) lost(t *testing.T) {
	tr.b.Stop()
	select {
	case <-tr.ended:
	case <-time.After(bus.GiveUp + StopWithin):
		t.Fatalf("not ended %v after the bus went away for good", bus.GiveUp+StopWithin)
	}
}
