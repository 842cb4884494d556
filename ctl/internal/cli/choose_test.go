package cli

import (
	"testing"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
)

func TestChooseEngagement(t *testing.T) {
	all := []command.Engagement{
		{ID: "e1", Name: "web", WorkloadKind: "Deployment", Workload: "web", Container: "app"},
		{ID: "e2", Name: "db/app", WorkloadKind: "StatefulSet", Workload: "db", Container: "app"},
		{ID: "e3", Name: "db/proxy", WorkloadKind: "StatefulSet", Workload: "db", Container: "proxy"},
		{ID: "e4", Name: "web2", WorkloadKind: "ReplicaSet", Workload: "web2", Container: "app"},
	}
	for name, want := range map[string]string{
		"web": "e1", "e1": "e1", "deploy/web": "e1", "deployments.apps/web": "e1", "db/app": "e2", "rs/web2": "e4",
		"sts/web": "not_found", "we": "not_found", "db": "invalid_argument", "sts/db": "invalid_argument",
	} {
		e, err := chooseEngagement(all, name)
		if got := e.ID + string(fault.CodeOf(err)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
