package bus_test

import (
	"context"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves HandlerStart as runner, until the test ends.
func serve(t *testing.T, b *bustest.Bus, h func(context.Context, command.EngagementRef) (command.Accepted, error)) *bus.Service {
	t.Helper()
	svc, err := b.Connect(subject.Runner).Serve(subject.Runner, "v1.2.3-dirty")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(svc.Stop)
	if err := bus.Handle(svc, command.HandlerStart, "", h); err != nil {
		t.Fatal(err)
	}
	return svc
}

func accept(_ context.Context, r command.EngagementRef) (command.Accepted, error) {
	return command.Accepted{ID: r.Engagement}, nil
}

// soon fails the test unless ch is closed or yields within Patience.
func soon[T any](t *testing.T, what string, ch <-chan T) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(bustest.Patience):
		t.Fatalf("%s: not in time", what)
	}
}

func wantCode(t *testing.T, what string, err error, want fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != want {
		t.Errorf("%s: %v (%s), want %s", what, err, fault.CodeOf(err), want)
	}
}
