package service

import (
	"context"
	"log/slog"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/subject"
)

// admission is that of a bus of which connector is only a guest: the suite's.
type admission struct{}

func (admission) Add(bus.Identity) error { return nil }
func (admission) Remove(string)          {}

func TestConformance(t *testing.T) {
	run := func(ctx context.Context, cfg bus.Config) error {
		conn, err := bus.Await(ctx, cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		return Run(ctx, Options{Bus: conn, Admission: admission{}, BusURL: cfg.URL, Version: "0.1.0", Image: "berth-cluster:0.1.0", Log: slog.New(slog.DiscardHandler)})
	}
	// There is no runner and no cluster: what is accepted fails soon after, by facts.
	open := command.OpenConnection{ID: "c1", Name: "dev", Namespace: "shop", Kubeconfig: []byte(kubeconfig)}
	bustest.Conformance(t, run, bustest.Spec{
		Service: subject.Connector,
		Commands: []bustest.Command{
			{Verb: command.ConnectionOpen.Verb, Valid: open, Bad: []any{
				command.OpenConnection{ID: "no token", Name: "dev", Namespace: "shop", Kubeconfig: []byte(kubeconfig)},
				command.OpenConnection{ID: "c2", Name: "No Token", Namespace: "shop", Kubeconfig: []byte(kubeconfig)},
				command.OpenConnection{ID: "c2", Name: "dev", Kubeconfig: []byte(kubeconfig)},
				command.OpenConnection{ID: "c2", Name: "dev", Namespace: "shop"},
				command.OpenConnection{ID: "c2", Name: "dev", Namespace: "shop", Kubeconfig: []byte(`{"clusters":1}`)},
				command.OpenConnection{ID: "c2", Name: "dev", Namespace: "shop", Kubeconfig: []byte(kubeconfig), AlsoProxy: []string{"x"}},
			}},
			{Verb: command.ConnectionClose.Verb, Valid: command.CloseConnection{ID: "c9", Cause: "quit"}, Bad: []any{command.CloseConnection{}}},
			{Verb: command.EngagementOpen.Verb, Bad: []any{
				command.OpenEngagement{ID: "no token", Connection: "c1", Kind: "replace", Workload: "web"},
				command.OpenEngagement{ID: "e1", Connection: "", Kind: "replace", Workload: "web"},
				command.OpenEngagement{ID: "e1", Connection: "c1", Kind: "eat", Workload: "web"},
				command.OpenEngagement{ID: "e1", Connection: "c1", Kind: "replace"},
			}},
			{Verb: command.EngagementClose.Verb, Valid: command.CloseEngagement{ID: "e9"}, Bad: []any{command.CloseEngagement{}, command.CloseEngagement{ID: "no token"}}},
			{Verb: command.StateGet.Verb, Valid: command.None{}},
			{Verb: command.WorkloadsList.Verb, Bad: []any{command.ListWorkloads{}}},
			{Verb: command.Install.Verb, Valid: command.InstallCluster{ID: "i1", Kubeconfig: []byte(kubeconfig), Namespace: "berth"}, Bad: []any{
				command.InstallCluster{Kubeconfig: []byte(kubeconfig)}, command.InstallCluster{ID: "i2"},
			}},
			{Verb: command.Uninstall.Verb, Valid: command.InstallCluster{ID: "u1", Kubeconfig: []byte(kubeconfig), Namespace: "berth"}, Bad: []any{
				command.InstallCluster{Kubeconfig: []byte(kubeconfig)},
			}},
		},
	})
}
