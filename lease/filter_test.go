package lease

import (
	"slices"
	"strings"
	"testing"
)

func headers(pairs ...string) (out []HeaderMatch) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, HeaderMatch{pairs[i], pairs[i+1]})
	}
	return out
}

func TestNormal(t *testing.T) {
	path := func(k PathKind, v string) *PathMatch { return &PathMatch{k, v} }
	for _, tt := range []struct {
		in   Filter
		want string // of String, or what the error has
		ok   bool
	}{
		{Filter{}, "", true},
		{Filter{Headers: headers("x-b", "2", "X-A", "1|one", "x-b", "2")}, "X-A=1|one, X-B=2", true},
		{Filter{Path: path(PathPrefix, "/api")}, "path-prefix=/api/", true},
		{Filter{Path: path(PathPrefix, "/")}, "path-prefix=/", true},
		{Filter{Headers: headers("cookie", "id=1"), Path: path(PathRegex, "/v[12]/.*")}, "Cookie=***, path-regex=/v[12]/.*", true},
		{Filter{Headers: headers("x dev", "1")}, `"x dev" is no name`, false},
		{Filter{Headers: headers("", "1")}, `"" is no name`, false},
		{Filter{Headers: headers("x", "a(")}, "header X is no regular expression", false},
		{Filter{Headers: headers("x", "a)(b")}, "header X is no regular expression", false},
		{Filter{Path: path(PathEqual, "api")}, "begin with a slash", false},
		{Filter{Path: path(PathPrefix, "/a?b")}, "query", false},
		{Filter{Path: path(PathRegex, "[")}, "no regular expression", false},
		{Filter{Path: path("glob", "/*")}, "glob", false},
	} {
		got, err := tt.in.Normal()
		switch {
		case tt.ok && (err != nil || got.String() != tt.want):
			t.Errorf("%+v: %v, %v, want %s", tt.in, got, err, tt.want)
		case !tt.ok && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: error %v, want %s", tt.in, err, tt.want)
		}
	}
}

func TestBefore(t *testing.T) {
	in := []Filter{ // the order in which they are asked
		{Headers: headers("A", "1", "B", "2")},
		{Headers: headers("A", "1"), Path: &PathMatch{PathEqual, "/x"}},
		{Headers: headers("A", "1"), Path: &PathMatch{PathPrefix, "/long/er/"}},
		{Headers: headers("A", "1"), Path: &PathMatch{PathPrefix, "/long/"}},
		{Headers: headers("A", "1"), Path: &PathMatch{PathRegex, "/.*"}},
		{Headers: headers("A", "1")},
		{Path: &PathMatch{PathEqual, "/x"}},
		{},
	}
	for i := range in {
		for j := range in {
			if got, want := in[i].Before(in[j]), i-j; got < 0 != (want < 0) || got > 0 != (want > 0) {
				t.Errorf("%v before %v: %d", in[i], in[j], got)
			}
		}
	}
	got := slices.Clone(in)
	slices.Reverse(got)
	slices.SortStableFunc(got, Filter.Before)
	for i := range in {
		if !got[i].Same(in[i]) {
			t.Errorf("%d: %v, want %v", i, got[i], in[i])
		}
	}
	if in[1].Same(in[2]) || in[0].Same(in[5]) {
		t.Error("the same")
	}
}

func TestClash(t *testing.T) {
	spec := func(container string, port uint16, dev string) EngagementSpec {
		s := EngagementSpec{Container: container, Ports: []Port{{Container: 1, Protocol: "UDP"}, {Container: port, Protocol: "TCP"}}}
		if port == 0 {
			s.Ports = nil
		}
		if dev != "" {
			s.Filter.Headers = headers("X-Dev", dev)
		}
		return s
	}
	for _, tt := range []struct {
		a, b EngagementSpec
		want string
	}{
		{spec("app", 0, ""), spec("app", 80, ""), ""},
		{spec("app", 80, ""), EngagementSpec{Ports: []Port{{Container: 80, Protocol: "UDP"}}}, ""},
		{spec("app", 80, ""), EngagementSpec{Ports: []Port{{Container: 80, Protocol: "TCP"}}}, "port 80/TCP"},
		{spec("app", 80, "a"), spec("app", 80, "b"), ""},
		{spec("app", 80, "a"), spec("app", 80, ""), ""},
		{spec("app", 80, "a"), spec("app", 80, "a"), "port 1/UDP with X-Dev=a"},
		{spec("app", 80, "a"), spec("other", 80, "b"), "port 1/UDP with the environment of container app"},
	} {
		if got, clash := Clash(tt.a, tt.b); got != tt.want || clash != (tt.want != "") {
			t.Errorf("%+v, %+v: %q, want %q", tt.a, tt.b, got, tt.want)
		}
	}
}
