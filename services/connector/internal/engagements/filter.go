package engagements

import (
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

// filterOf reads which requests an engagement is to have; the zero filter is all.
func filterOf(req command.OpenEngagement) (lease.Filter, error) {
	if req.HTTP == nil {
		return lease.Filter{}, nil
	}
	hint := "ctl " + req.Kind + " --help"
	if !lease.Kind(req.Kind).Diverts() {
		return lease.Filter{}, fault.New(fault.InvalidArgument, "ctl intercept "+req.Workload, "filters by HTTP header and path belong to an intercept or a wiretap, not to a %s", req.Kind)
	}
	var f lease.Filter
	for _, h := range req.HTTP.Headers {
		f.Headers = append(f.Headers, lease.HeaderMatch{Name: h.Name, Value: h.Value})
	}
	for kind, value := range map[lease.PathKind]string{lease.PathPrefix: req.HTTP.PathPrefix, lease.PathEqual: req.HTTP.PathEqual, lease.PathRegex: req.HTTP.PathRegex} {
		switch {
		case value == "":
		case f.Path != nil:
			return f, fault.New(fault.InvalidArgument, hint, "a path is compared in one way: by prefix, by equality or by a regular expression")
		default:
			f.Path = &lease.PathMatch{Kind: kind, Value: value}
		}
	}
	f, err := f.Normal()
	if err != nil {
		return f, fault.New(fault.InvalidArgument, hint, "the filter cannot be: %v", err)
	}
	return f, nil
}

// shareable checks that an engagement can share its ports, if it is to, by this
// manager.
func shareable(spec lease.EngagementSpec, conn Connection) error {
	if !spec.Splits() {
		return nil
	}
	for _, p := range spec.Ports {
		switch {
		case p.Protocol == "TCP":
		case spec.Kind == lease.Wiretap:
			return fault.New(fault.InvalidArgument, "ctl wiretap --help", "copies are made of TCP connections: port %d/%s has none", p.Container, p.Protocol)
		default:
			return fault.New(fault.InvalidArgument, "ctl intercept --help", "filters are of HTTP requests, by TCP: port %d/%s has none", p.Container, p.Protocol)
		}
	}
	const update = "ctl install, then ctl quit and ctl connect"
	switch m := conn.Manager; {
	case !m.Filters:
		return fault.New(fault.FailedPrecondition, update, "the manager in the cluster is of a version that knows neither filters nor wiretaps")
	case !spec.SplitBy(m.Filters, m.CopyFilters):
		return fault.New(fault.FailedPrecondition, update, "the manager in the cluster is of a version that knows no filters of wiretaps")
	}
	return nil
}
