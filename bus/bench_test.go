package bus_test

import (
	"context"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		bustest.Start(b).Stop()
	}
}

// A fact, until it is on disk.
func BenchmarkState(b *testing.B) {
	s := bustest.Start(b)
	c := s.Connect(subject.Connector)
	for b.Loop() {
		if err := c.State(b.Context(), "e1", event.Restoring{Cause: "leave"}); err != nil {
			b.Fatal(err)
		}
	}
}

// A fact, until a tail has it.
func BenchmarkStateToTail(b *testing.B) {
	s := bustest.Start(b)
	c := s.Connect(subject.Connector)
	tail, err := s.Connect(subject.Ctl).TailFacts(b.Context(), time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	defer tail.Stop()
	for b.Loop() {
		if err := c.State(b.Context(), "e1", event.Restoring{Cause: "leave"}); err != nil {
			b.Fatal(err)
		}
		if _, err := tail.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	s := bustest.Start(b)
	svc, err := s.Connect(subject.Runner).Serve(subject.Runner, "1.0.0")
	if err != nil {
		b.Fatal(err)
	}
	defer svc.Stop()
	if err := bus.Handle(svc, command.HandlerStart, "", func(_ context.Context, r command.EngagementRef) (command.Accepted, error) {
		return command.Accepted{ID: r.Engagement}, nil
	}); err != nil {
		b.Fatal(err)
	}
	ctl := s.Connect(subject.Ctl)
	for b.Loop() {
		if _, err := bus.Call(b.Context(), ctl, command.HandlerStart, "", command.EngagementRef{Engagement: "e1"}); err != nil {
			b.Fatal(err)
		}
	}
}
