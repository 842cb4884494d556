package bustest_test

import (
	"context"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// run is the smallest service that conforms: what a new one can start from.
func run(ctx context.Context, cfg bus.Config) error {
	conn, err := bus.Await(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	svc, err := conn.Serve(subject.Runner, "0.1.0")
	if err != nil {
		return err
	}
	defer svc.Stop()
	err = bus.Handle(svc, command.HandlerStart, "", func(ctx context.Context, r command.EngagementRef) (command.Accepted, error) {
		if !subject.Valid(r.Engagement) {
			return command.Accepted{}, fault.New(fault.InvalidArgument, "", "%q is no id of an engagement", r.Engagement)
		}
		return command.Accepted{ID: r.Engagement}, conn.State(ctx, r.Engagement, event.HandlerStarted{Container: "c"})
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-conn.Lost():
		return fault.New(fault.Unavailable, "", "the bus is lost")
	}
}

func TestConformance(t *testing.T) {
	repeated := false
	bustest.Conformance(t, run, bustest.Spec{
		Service: subject.Runner,
		Commands: []bustest.Command{{
			Verb:  command.HandlerStart.Verb,
			Valid: command.EngagementRef{Engagement: "e1"},
			Bad:   []any{command.EngagementRef{}, command.EngagementRef{Engagement: "a.>"}},
		}},
		Repeated: func(t *testing.T, b *bustest.Bus) {
			repeated = true
			bustest.Wait[event.HandlerStarted](t, b.Connect(subject.Ctl), "e1")
		},
	})
	if !repeated {
		t.Error("Repeated was not called")
	}
}
