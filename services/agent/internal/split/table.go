package split

import (
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/probe"
)

// Route is an engagement that has requests of a port.
type Route struct {
	To     port.To
	Filter lease.Filter
	match  matcher
}

// table is what holds for a port at a time.
type table struct {
	routes []Route     // those with a filter, in the order in which they are asked
	all    *port.To    // whose the rest is; nil: the app's
	taps   []*tap      // who have copies
	probes *probe.Port // kubelet's, which are the app's
}

// newTable orders routes, which come oldest first. A filter that does not compile
// is an error of that engagement.
func newTable(number uint16, routes []Route, probes []lease.Probe, node []netip.Addr) (*table, map[string]error) {
	t := &table{probes: &probe.Port{Number: number, Probes: probes, Node: node}}
	errs := map[string]error{}
	for _, r := range routes {
		if !r.Filter.Filtered() {
			if t.all == nil {
				t.all = &r.To
			}
			continue
		}
		var err error
		if r.match, err = r.matcher(); err != nil {
			errs[r.To.Engagement] = err
			continue
		}
		t.routes = append(t.routes, r)
	}
	slices.SortStableFunc(t.routes, func(a, b Route) int { return a.Filter.Before(b.Filter) })
	return t, errs
}

// sifting are the wiretaps that have a filter.
func (t *table) sifting() []*tap {
	var out []*tap
	for _, k := range t.taps {
		if k.match != nil {
			out = append(out, k)
		}
	}
	return out
}

// sifted are those whose wiretaps have a filter.
func (t *table) sifted() []port.To {
	var out []port.To
	for _, k := range t.sifting() {
		out = append(out, k.to)
	}
	return out
}

// filtering are those that have requests by a filter.
func (t *table) filtering() []port.To {
	var out []port.To
	for _, r := range t.routes {
		out = append(out, r.To)
	}
	return out
}

// filtered reports whether requests have to be looked at.
func (t *table) filtered() bool { return len(t.routes) > 0 }

// holds reports whether the engagement still has requests of this port.
func (t *table) holds(to port.To) bool {
	return t.all != nil && *t.all == to || slices.ContainsFunc(t.routes, func(r Route) bool { return r.To == to })
}

// of is where a request goes; ok is false for the app.
func (t *table) of(r *http.Request) (to port.To, ok bool) {
	if t.probes.Asks(r.RequestURI, r.UserAgent()) {
		return port.To{}, false
	}
	for _, route := range t.routes {
		if route.match.matches(r) {
			return route.To, true
		}
	}
	if t.all != nil {
		return *t.all, true
	}
	return port.To{}, false
}

// matcher is a filter made ready.
type matcher struct {
	headers []header
	kind    lease.PathKind
	path    string
	expr    *regexp.Regexp
}

type header struct {
	name, value string
	expr        *regexp.Regexp
}

// matcher makes the route's filter ready, and leaves it in its normal form.
func (r *Route) matcher() (m matcher, err error) {
	f, err := r.Filter.Normal()
	if err != nil {
		return m, err
	}
	r.Filter = f
	for _, h := range f.Headers {
		expr, err := lease.Whole(h.Value)
		if err != nil {
			return m, err
		}
		m.headers = append(m.headers, header{h.Name, h.Value, expr})
	}
	if f.Path == nil {
		return m, nil
	}
	m.kind, m.path = f.Path.Kind, f.Path.Value
	if m.kind == lease.PathRegex {
		m.expr, err = lease.Whole(m.path)
	}
	return m, err
}

func (m matcher) matches(r *http.Request) bool {
	for _, h := range m.headers {
		values := r.Header[h.name]
		if h.name == "Host" { // which net/http keeps apart, :authority too
			values = []string{r.Host}
		}
		if !slices.ContainsFunc(values, func(v string) bool { return v == h.value || h.expr.MatchString(v) }) {
			return false
		}
	}
	switch m.kind {
	case lease.PathEqual:
		return r.URL.Path == m.path
	case lease.PathPrefix: // which ends in a slash
		return strings.HasPrefix(r.URL.Path, m.path) || r.URL.Path == strings.TrimSuffix(m.path, "/")
	case lease.PathRegex:
		return m.expr.MatchString(r.URL.Path)
	}
	return true
}
