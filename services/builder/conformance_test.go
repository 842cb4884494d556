package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

func TestConformance(t *testing.T) {
	needDocker(t)
	door := filepath.Join(t.TempDir(), "door")
	run := func(ctx context.Context, b bus.Config) error {
		return serve(ctx, config{door: door, bus: b}, slog.New(slog.DiscardHandler))
	}
	bustest.Conformance(t, run, bustest.Spec{
		Service: subject.Builder,
		Commands: []bustest.Command{
			{Verb: "build-start",
				// Accepted, and then fails, since nobody is there.
				Valid: command.StartBuild{ID: "b-1", Context: "remote", Remote: "http://127.0.0.1:9/none.tar"},
				Bad: []any{command.StartBuild{}, command.StartBuild{ID: "a.b", Context: "stdin"}, command.StartBuild{ID: "b", Context: "remote"},
					command.StartBuild{ID: "b", Context: "disk"}, command.StartBuild{ID: "b", Context: "stdin", Remote: "x"},
					command.StartBuild{ID: "b", Context: "stdin", Options: []string{"tagg=x"}}, command.StartBuild{ID: "b", Context: "stdin", Builder: "x"}}},
			{Verb: "build-cancel", Valid: command.BuildRef{ID: "nobody"}, Bad: []any{command.BuildRef{}, command.BuildRef{ID: "*"}}},
		},
		Repeated: func(t *testing.T, b *bustest.Bus) {
			bustest.Wait[event.BuildFailed](t, b.Tester(), "b-1")
		},
	})
}
