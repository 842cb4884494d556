package engagements

import (
	"testing"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

func TestFilterOf(t *testing.T) {
	header := func(name, value string) *command.HTTPFilter {
		return &command.HTTPFilter{Headers: []command.HTTPHeader{{Name: name, Value: value}}}
	}
	for _, x := range []struct {
		kind lease.Kind
		http *command.HTTPFilter
		want string
		ok   bool
	}{
		{lease.Replace, nil, "", true},
		{lease.Intercept, &command.HTTPFilter{}, "", true},
		{lease.Intercept, header("x-dev", "alice"), "X-Dev=alice", true},
		{lease.Intercept, header("authorization", "Bearer x"), "Authorization=***", true},
		{lease.Intercept, &command.HTTPFilter{PathPrefix: "/api"}, "path-prefix=/api/", true},
		{lease.Intercept, &command.HTTPFilter{PathPrefix: "/api", PathRegex: "/.*"}, "", false},
		{lease.Intercept, header("x-dev", "a("), "", false},
		{lease.Replace, header("x-dev", "alice"), "", false},
		{lease.Ingest, header("x-dev", "alice"), "", false},
		{lease.Wiretap, header("x-dev", "alice"), "X-Dev=alice", true},
		{lease.Wiretap, header("x-dev", "a("), "", false},
	} {
		f, err := filterOf(command.OpenEngagement{Kind: string(x.kind), Workload: "w", HTTP: x.http})
		if x.ok != (err == nil) || x.ok && f.String() != x.want || err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s %+v: %v, %v", x.kind, x.http, f, err)
		}
	}
}

// What shares a port needs TCP, and a manager that would not divert all of it.
func TestShareable(t *testing.T) {
	tcp, udp := []lease.Port{{Container: 80, Protocol: "TCP"}}, []lease.Port{{Container: 80, Protocol: "UDP"}}
	filter := lease.Filter{Path: &lease.PathMatch{Kind: lease.PathEqual, Value: "/"}}
	for _, x := range []struct {
		spec lease.EngagementSpec
		old  bool // the manager is
		want fault.Code
	}{
		{lease.EngagementSpec{Kind: lease.Intercept, Ports: udp}, true, ""},
		{lease.EngagementSpec{Kind: lease.Intercept, Ports: tcp, Filter: filter}, false, ""},
		{lease.EngagementSpec{Kind: lease.Intercept, Ports: udp, Filter: filter}, false, fault.InvalidArgument},
		{lease.EngagementSpec{Kind: lease.Intercept, Ports: tcp, Filter: filter}, true, fault.FailedPrecondition},
		{lease.EngagementSpec{Kind: lease.Wiretap, Ports: udp}, false, fault.InvalidArgument},
		{lease.EngagementSpec{Kind: lease.Wiretap, Ports: tcp}, true, fault.FailedPrecondition},
		{lease.EngagementSpec{Kind: lease.Wiretap, Ports: tcp, Filter: filter}, false, ""},
	} {
		if err := shareable(x.spec, Connection{Manager: lease.Info{Filters: !x.old, CopyFilters: !x.old}}); (err != nil || x.want != "") && fault.CodeOf(err) != x.want {
			t.Errorf("%+v, old %v: %v, want %s", x.spec, x.old, err, x.want)
		}
	}
	before := Connection{Manager: lease.Info{Filters: true}} // of a version that would copy all
	for want, spec := range map[fault.Code]lease.EngagementSpec{
		"": {Kind: lease.Wiretap, Ports: tcp}, fault.FailedPrecondition: {Kind: lease.Wiretap, Ports: tcp, Filter: filter},
	} {
		if err := shareable(spec, before); (err != nil || want != "") && fault.CodeOf(err) != want {
			t.Errorf("%+v: %v, want %s", spec, err, want)
		}
	}
}
