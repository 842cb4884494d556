package lease

import (
	"cmp"
	"fmt"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
)

// Filter says which HTTP requests of an engagement's ports are its own: those
// that match all of it. The zero Filter is no filter: all is its own, what is
// not HTTP too.
type Filter struct {
	Headers []HeaderMatch `json:"headers,omitempty"`
	Path    *PathMatch    `json:"path,omitempty"`
}

// HeaderMatch is a header that a request must have. A header that it has several
// times matches if one of them does.
type HeaderMatch struct {
	Name string `json:"name"`
	// Value is what the header's whole value must be, or a regular expression
	// (RE2) for the whole of it.
	Value string `json:"value"`
}

// PathMatch is what the path of a request must be, without its query.
type PathMatch struct {
	Kind  PathKind `json:"kind"`
	Value string   `json:"value"`
}

// PathKind says how a path is compared.
type PathKind string

// The kinds of PathMatch. A prefix is one of whole elements, as of a Kubernetes
// Ingress: /api is one of /api and /api/x, not of /apis. A regular expression is
// for the whole path.
const (
	PathPrefix PathKind = "prefix"
	PathEqual  PathKind = "equal"
	PathRegex  PathKind = "regex"
)

// Filtered reports whether f is a filter at all.
func (f Filter) Filtered() bool { return len(f.Headers) > 0 || f.Path != nil }

// Normal is f with its headers by name, and the names as HTTP writes them; an
// error says which part of it cannot be.
func (f Filter) Normal() (Filter, error) {
	out := Filter{Headers: slices.Clone(f.Headers)}
	for i, h := range out.Headers {
		if !token(h.Name) {
			return f, fmt.Errorf("%q is no name of a header", h.Name)
		}
		out.Headers[i].Name = textproto.CanonicalMIMEHeaderKey(h.Name)
		if _, err := Whole(h.Value); err != nil {
			return f, fmt.Errorf("the value for header %s is no regular expression: %w", out.Headers[i].Name, err)
		}
	}
	slices.SortFunc(out.Headers, func(a, b HeaderMatch) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value)) })
	out.Headers = slices.Compact(out.Headers)
	if f.Path == nil {
		return out, nil
	}
	p := *f.Path
	out.Path = &p
	switch p.Kind {
	case PathPrefix, PathEqual:
		if !strings.HasPrefix(p.Value, "/") {
			return f, fmt.Errorf("the path %q does not begin with a slash", p.Value)
		}
		if strings.ContainsAny(p.Value, "?#") {
			return f, fmt.Errorf("the path %q has a query, which is not compared", p.Value)
		}
		if p.Kind == PathPrefix {
			out.Path.Value = strings.TrimRight(p.Value, "/") + "/"
		}
	case PathRegex:
		if _, err := Whole(p.Value); err != nil {
			return f, fmt.Errorf("the path is no regular expression: %w", err)
		}
	default:
		return f, fmt.Errorf("a path is compared by %s, %s or %s, not %q", PathPrefix, PathEqual, PathRegex, p.Kind)
	}
	return out, nil
}

// Whole compiles a regular expression for the whole of a text.
func Whole(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // what is wrong in the user's own words
		return nil, err
	}
	return regexp.Compile(`^(?:` + expr + `)$`)
}

// token reports whether s is one of RFC 9110, section 5.6.2: a header's name.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		letter := r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// Same reports whether two filters, as of Normal, have the same requests.
func (f Filter) Same(o Filter) bool {
	samePath := f.Path == nil && o.Path == nil || f.Path != nil && o.Path != nil && *f.Path == *o.Path
	return samePath && slices.Equal(f.Headers, o.Headers)
}

// Before orders filters by which is asked first, the more specific one: negative
// if f is. More headers come first, then a path compared by equality, the longer
// prefix, a regular expression, no path. What is equal in that the caller orders,
// by age.
func (f Filter) Before(o Filter) int {
	return cmp.Or(-cmp.Compare(len(f.Headers), len(o.Headers)), -slices.Compare(f.Path.rank(), o.Path.rank()))
}

func (p *PathMatch) rank() []int {
	switch {
	case p == nil:
		return []int{0, 0}
	case p.Kind == PathEqual:
		return []int{3, 0}
	case p.Kind == PathPrefix:
		return []int{2, len(p.Value)}
	}
	return []int{1, 0}
}

// secret are names of headers whose values are credentials, or likely to be.
var secret = regexp.MustCompile(`(?i)auth|cookie|token|secret|passw|api-?key|credential|session|signature`)

// String is for people, and for facts, which are kept: without values that may be
// credentials.
func (f Filter) String() string {
	var parts []string
	for _, h := range f.Headers {
		v := h.Value
		if secret.MatchString(h.Name) {
			v = "***"
		}
		parts = append(parts, h.Name+"="+v)
	}
	if p := f.Path; p != nil {
		parts = append(parts, "path-"+string(p.Kind)+"="+p.Value)
	}
	return strings.Join(parts, ", ")
}

// Clash says on what two intercepts of one workload cannot both be: a port that
// both take all of, or the same requests of. Where one of them takes all of a port
// and the other has a filter, the filter is asked first and the rest is the
// other's. A wiretap, which is one of the two, takes nothing. One agent in the pod
// has to see all of a port, so that all are of one container.
func Clash(a, b EngagementSpec) (what string, clash bool) {
	for _, p := range a.Ports {
		for _, q := range b.Ports {
			if p.Container != q.Container || p.Protocol != q.Protocol {
				continue
			}
			what = fmt.Sprintf("port %d/%s", p.Container, p.Protocol)
			same := a.Filter.Same(b.Filter) && a.Kind != Wiretap && b.Kind != Wiretap
			switch {
			case same && a.Filter.Filtered():
				return what + " with " + a.Filter.String(), true
			case same:
				return what, true
			case a.Container != b.Container:
				return what + " with the environment of container " + a.Container, true
			}
		}
	}
	return "", false
}
