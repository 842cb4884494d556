package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

func TestConformance(t *testing.T) {
	r := newRig(t)
	cfg := r.cfg
	run := func(ctx context.Context, b bus.Config) error {
		c := cfg
		c.bus = b
		return serve(ctx, c, slog.New(slog.DiscardHandler))
	}
	bustest.Conformance(t, run, bustest.Spec{
		Service: subject.Runner,
		Commands: []bustest.Command{
			{Verb: "network-join", Bad: []any{command.JoinNetwork{}, command.JoinNetwork{Component: "vif", Network: "x"}}},
			{Verb: "daemon-start", Valid: r.daemon("c-one"), Bad: []any{command.StartDaemon{}, command.StartDaemon{Connection: "No Token", Name: "x", Bus: json.RawMessage("{}")}, command.StartDaemon{Connection: "c", Name: "x"}}},
			{Verb: "handler-check", Bad: []any{command.CheckHandler{}, command.CheckHandler{Connection: "c", Handler: command.Handler{Config: json.RawMessage("[]")}}}},
			{Verb: "handler-create", Bad: []any{command.CreateHandler{}, command.CreateHandler{Engagement: "a.b", Connection: "c"}, command.CreateHandler{Engagement: "e", Connection: "c"}}},
			{Verb: "handler-start", Bad: []any{command.EngagementRef{}}},
			{Verb: "handler-stop", Valid: command.EngagementRef{Engagement: "nobody"}, Bad: []any{command.EngagementRef{}, command.EngagementRef{Engagement: "*"}}},
			{Verb: "container-create", Bad: []any{command.CreateContainer{}, command.CreateContainer{Component: "curl"}}},
			{Verb: "daemon-stop", Bad: []any{command.StopDaemon{}, command.StopDaemon{Connection: ">"}}},
		},
		Repeated: func(t *testing.T, b *bustest.Bus) {
			bustest.Wait[event.DaemonStarted](t, b.Tester(), "c-one")
			if l := r.containers(); len(l) != 1 {
				t.Errorf("%d daemon containers of one connection", len(l))
			}
		},
		Gone: func(t *testing.T) {
			if l := r.containers(); len(l) != 0 {
				t.Errorf("%d containers are left", len(l))
			}
		},
	})
}
