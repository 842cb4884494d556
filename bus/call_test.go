package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go/micro"
)

func TestFaultsCrossTheBus(t *testing.T) {
	b := bustest.Start(t)
	want := &fault.Error{Code: fault.AlreadyExists, Message: "held by another\nsecond line", Hint: "ctl leave x", Stage: "tunnel"}
	answers := map[string]error{
		"fault":   fmt.Errorf("create: %w", want),
		"plain":   errors.New("disk full"),
		"empty":   &fault.Error{},
		"missing": nil,
	}
	serve(t, b, func(_ context.Context, r command.EngagementRef) (command.Accepted, error) {
		return command.Accepted{ID: r.Engagement}, answers[r.Engagement]
	})
	ctl := b.Connect(subject.Ctl)
	call := func(id string) (command.Accepted, error) {
		return bus.Call(bustest.Within(t, bustest.Patience), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: id})
	}
	_, err := call("fault")
	var got *fault.Error
	if !errors.As(err, &got) || *got != *want {
		t.Errorf("got %#v, want %#v", err, want)
	}
	_, err = call("plain")
	if wantCode(t, "plain error", err, fault.Internal); err == nil || err.Error() != "disk full" {
		t.Errorf("plain error: %v", err)
	}
	_, err = call("empty")
	wantCode(t, "a fault without content", err, fault.Internal)
	if rep, err := call("missing"); err != nil || rep.ID != "missing" {
		t.Errorf("no fault: %+v, %v", rep, err)
	}
}

func TestCallThatNobodyAnswers(t *testing.T) {
	b := bustest.Start(t)
	ctl := b.Connect(subject.Ctl)
	ctx := bustest.Within(t, bustest.Patience)
	ref := command.EngagementRef{Engagement: "e1"}

	_, err := bus.Call(ctx, ctl, command.HandlerStart, "", ref)
	wantCode(t, "no service", err, fault.Unavailable)

	start := time.Now()
	_, err = bus.Call(ctx, ctl, command.HandlerStop, "", ref)
	wantCode(t, "a command that ctl may not send", err, fault.PermissionDenied)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the refusal took %v: it was a time-out", d)
	}

	_, err = bus.Call(ctx, ctl, command.VIFState, "", command.None{})
	wantCode(t, "a command per connection without one", err, fault.InvalidArgument)

	_, err = bus.Call(ctx, ctl, command.HandlerStart, "", command.EngagementRef{Engagement: strings.Repeat("x", 9<<20)})
	wantCode(t, "a request that is too large", err, fault.InvalidArgument)

	release := make(chan struct{})
	serve(t, b, func(context.Context, command.EngagementRef) (command.Accepted, error) {
		<-release
		return command.Accepted{}, nil
	})
	defer close(release)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = bus.Call(short, ctl, command.HandlerStart, "", ref)
	wantCode(t, "a service that hangs", err, fault.Unavailable)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err = bus.Call(cancelled, ctl, command.HandlerStart, "", ref); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that the caller gave up: %v", err)
	}
}

func TestCallThatTheBusCutsOff(t *testing.T) {
	b := bustest.Start(t)
	entered := make(chan struct{})
	serve(t, b, func(ctx context.Context, _ command.EngagementRef) (command.Accepted, error) {
		close(entered)
		<-ctx.Done()
		return command.Accepted{}, ctx.Err()
	})
	ctl := b.Connect(subject.Ctl)
	failed := make(chan error, 1)
	go func() {
		_, err := bus.Call(context.Background(), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: "e1"})
		failed <- err
	}()
	soon(t, "the call", entered)
	ctl.NC.Close()
	select {
	case err := <-failed:
		wantCode(t, "a call whose connection closed", err, fault.Unavailable)
	case <-time.After(5 * time.Second):
		t.Error("a call outlives its connection")
	}
}

func TestHandleRunsCallsBesideEachOther(t *testing.T) {
	b := bustest.Start(t)
	const n = 16
	var all sync.WaitGroup
	all.Add(n)
	serve(t, b, func(ctx context.Context, r command.EngagementRef) (command.Accepted, error) {
		all.Done()
		all.Wait() // every call is in its handler at the same time, or nobody returns
		return command.Accepted{ID: r.Engagement}, nil
	})
	ctl := b.Connect(subject.Ctl)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprint("e", i)
			rep, err := bus.Call(bustest.Within(t, bustest.Patience), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: id})
			if err != nil || rep.ID != id {
				t.Errorf("%s: %+v, %v", id, rep, err)
			}
		})
	}
	wg.Wait()
}

func TestStopCancelsAndWaits(t *testing.T) {
	b := bustest.Start(t)
	entered, left := make(chan struct{}), make(chan struct{})
	svc := serve(t, b, func(ctx context.Context, _ command.EngagementRef) (command.Accepted, error) {
		close(entered)
		<-ctx.Done()
		close(left)
		return command.Accepted{ID: "was cancelled"}, nil
	})
	ctl := b.Connect(subject.Ctl)
	answer := make(chan string, 1)
	go func() {
		rep, err := bus.Call(context.Background(), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: "e1"})
		answer <- fmt.Sprint(rep.ID, err)
	}()
	soon(t, "the call", entered)
	svc.Stop()
	select {
	case <-left:
	default:
		t.Error("Stop returned while a handler ran")
	}
	if got := <-answer; got != "was cancelled<nil>" {
		t.Errorf("the last call got %q", got)
	}
	svc.Stop()
	_, err := bus.Call(bustest.Within(t, bustest.Patience), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: "e1"})
	wantCode(t, "after Stop", err, fault.Unavailable)
}

func TestRequestsAreReadStrictly(t *testing.T) {
	b := bustest.Start(t)
	serve(t, b, accept)
	ctl := b.Connect(subject.Ctl)
	subj := subject.Command(subject.Runner, command.HandlerStart.Verb)
	for body, want := range map[string]fault.Code{
		`{"engagement":"e1"}`:         "",
		``:                            "",
		`{}`:                          "",
		`{"engagement":"e1","x":1}`:   fault.InvalidArgument,
		`{"engagement":"e1"} {}`:      fault.InvalidArgument,
		`{"engagement":1}`:            fault.InvalidArgument,
		`{"engagement":"e1"`:          fault.InvalidArgument,
		"\xff":                        fault.InvalidArgument,
		`{"engagement":"e1"}` + "\n ": "",
	} {
		msg, err := ctl.NC.RequestWithContext(bustest.Within(t, bustest.Patience), subj, []byte(body))
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if got := msg.Header.Get(micro.ErrorCodeHeader); got != string(want) {
			t.Errorf("%q: %q %s, want %q", body, got, msg.Data, want)
		}
	}
}

func TestAnAnswerThatCannotBeSentIsAFault(t *testing.T) {
	b := bustest.Start(t)
	serve(t, b, func(context.Context, command.EngagementRef) (command.Accepted, error) {
		return command.Accepted{ID: strings.Repeat("x", 9<<20)}, nil
	})
	_, err := bus.Call(bustest.Within(t, bustest.Patience), b.Connect(subject.Ctl), command.HandlerStart, "", command.EngagementRef{})
	wantCode(t, "an answer that is too large", err, fault.Internal)
}

func TestServeAndHandleHearARefusal(t *testing.T) {
	b := bustest.Start(t)
	_, err := b.Connect(subject.Ctl).Serve(subject.Runner, "1.0.0")
	wantCode(t, "ctl that serves", err, fault.PermissionDenied)
	svc, err := b.Connect(subject.Builder).Serve(subject.Builder, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Stop()
	wantCode(t, "builder that takes a command of runner", bus.Handle(svc, command.HandlerStart, "", accept), fault.PermissionDenied)
	wantCode(t, "a command per connection without one",
		bus.Handle(svc, command.VIFState, "", func(context.Context, command.None) (command.VIFStatus, error) { return command.VIFStatus{}, nil }), fault.InvalidArgument)
}

func TestServicesAreDiscoverable(t *testing.T) {
	b := bustest.Start(t)
	serve(t, b, accept)
	msg, err := b.Connect(subject.Ctl).NC.RequestWithContext(bustest.Within(t, bustest.Patience), "$SRV.INFO.runner", nil)
	if err != nil {
		t.Fatal(err)
	}
	var info micro.Info
	if err := json.Unmarshal(msg.Data, &info); err != nil {
		t.Fatal(err)
	}
	if info.Version != "0.0.0" || len(info.Endpoints) != 1 || info.Endpoints[0].Subject != "berth.v1.cmd.runner.handler-start" {
		t.Errorf("%s", msg.Data)
	}
}

func TestEachVIFTakesItsOwnConnectionsCommands(t *testing.T) {
	b := bustest.Start(t)
	for _, c := range []string{"c1", "c2"} {
		svc, err := b.ConnectWith(b.VIF(c)).Serve(subject.VIF, "1.0.0")
		if err != nil {
			t.Fatal(err)
		}
		defer svc.Stop()
		if err := bus.Handle(svc, command.VIFState, c, func(context.Context, command.None) (command.VIFStatus, error) {
			return command.VIFStatus{Transport: c}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	conn := b.Connect(subject.Connector)
	for _, c := range []string{"c1", "c2"} {
		st, err := bus.Call(bustest.Within(t, bustest.Patience), conn, command.VIFState, c, command.None{})
		if err != nil || st.Transport != c {
			t.Errorf("%s: %+v, %v", c, st, err)
		}
	}
	vif2 := b.ConnectWith(b.VIF("c2"))
	wantCode(t, "a fact about another's connection",
		vif2.State(bustest.Within(t, bustest.Patience), "c1", event.VIFStarted{}), fault.PermissionDenied)
}
