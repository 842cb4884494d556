package cli

import (
	"flag"
	"fmt"
	"strings"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

// httpFlags say which HTTP requests are to come to the handler.
type httpFlags struct {
	headers             usage.List
	prefix, equal, expr string
}

func (f *httpFlags) register(fs *flag.FlagSet) {
	fs.Var(&f.headers, "http-header", "only HTTP requests that have the header `NAME=VALUE`, or one that the regular expression VALUE matches as a whole; repeatable, all must match")
	fs.StringVar(&f.prefix, "http-path-prefix", "", "only HTTP requests for `PATH` or what is below it")
	fs.StringVar(&f.equal, "http-path-equal", "", "only HTTP requests for `PATH`")
	fs.StringVar(&f.expr, "http-path-regex", "", "only HTTP requests whose path the regular expression `EXPR` matches as a whole")
}

// check finds what is wrong with them; name is the command that they were given to.
func (f *httpFlags) check(name string) error {
	var paths []lease.PathMatch
	for _, p := range []struct {
		flag string
		lease.PathMatch
	}{
		{"prefix", lease.PathMatch{Kind: lease.PathPrefix, Value: f.prefix}},
		{"equal", lease.PathMatch{Kind: lease.PathEqual, Value: f.equal}},
		{"regex", lease.PathMatch{Kind: lease.PathRegex, Value: f.expr}},
	} {
		if p.Value == "" {
			continue
		}
		if _, err := (lease.Filter{Path: &p.PathMatch}).Normal(); err != nil {
			return fault.New(fault.InvalidArgument, name+" --http-path-prefix /api", "--http-path-%s: %v", p.flag, err)
		}
		paths = append(paths, p.PathMatch)
	}
	if len(paths) > 1 {
		return fault.New(fault.InvalidArgument, fmt.Sprintf("%s --http-path-%s %s", name, paths[0].Kind, paths[0].Value), "at most one of --http-path-prefix, --http-path-equal and --http-path-regex can be given")
	}
	for _, given := range f.headers {
		header, value, ok := strings.Cut(given, "=")
		if !ok {
			return fault.New(fault.InvalidArgument, name+" --http-header x-dev=alice", "--http-header %s: not like NAME=VALUE", given)
		}
		if _, err := (lease.Filter{Headers: []lease.HeaderMatch{{Name: header, Value: value}}}).Normal(); err != nil {
			return fault.New(fault.InvalidArgument, name+" --http-header x-dev=alice", "--http-header %s: %v", given, err)
		}
	}
	return nil
}

// filter is what they ask for, nil if none is given.
func (f *httpFlags) filter() *command.HTTPFilter {
	if len(f.headers) == 0 && f.prefix+f.equal+f.expr == "" {
		return nil
	}
	out := &command.HTTPFilter{PathPrefix: f.prefix, PathEqual: f.equal, PathRegex: f.expr}
	for _, given := range f.headers {
		header, value, _ := strings.Cut(given, "=")
		out.Headers = append(out.Headers, command.HTTPHeader{Name: header, Value: value})
	}
	return out
}
