// Package until is the condition of `ctl events --until`: the name of a fact, or
// an expression over one.
package until

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/usage"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
)

// Condition is what is waited for; the zero Condition never comes true.
type Condition struct {
	types   map[string]bool // of facts, if it is a name
	program *vm.Program     // if it is an expression
}

// fields is what an expression sees.
type fields struct {
	Type    string         `expr:"type"`
	Scope   string         `expr:"scope"`
	Service string         `expr:"service"`
	Fact    string         `expr:"fact"`
	Subject string         `expr:"subject"`
	ID      string         `expr:"id"`
	Time    time.Time      `expr:"time"`
	Data    map[string]any `expr:"data"`
}

// Parse reads a condition. What is no known name and no expression that yields
// true or false is an InvalidArgument fault.
func Parse(s string) (Condition, error) {
	if s == "" {
		return Condition{}, nil
	}
	if regexp.MustCompile(`^[a-z0-9.-]+$`).MatchString(s) && s != "true" && s != "false" {
		return parseName(s)
	}
	p, err := expr.Compile(s, expr.Env(fields{}), expr.AsBool())
	if err != nil {
		return Condition{}, fault.New(fault.InvalidArgument, `ctl events --until 'fact == "active"'`, "--until: %v", err)
	}
	return Condition{program: p}, nil
}

// parseName understands active, connector.active, engagement.active,
// engagement.connector.active and the whole type.
func parseName(s string) (Condition, error) {
	c := Condition{types: map[string]bool{}}
	known := map[string]bool{}
	for _, d := range event.All() {
		scope, service, name := d.Fact()
		known[name] = true
		if slices.Contains([]string{name, fmt.Sprintf("%s.%s", service, name), fmt.Sprintf("%s.%s", scope, name), fmt.Sprintf("%s.%s.%s", scope, service, name), event.TypeOf(d)}, s) {
			c.types[event.TypeOf(d)] = true
		}
	}
	if len(c.types) > 0 {
		return c, nil
	}
	names := slices.Sorted(maps.Keys(known))
	msg := fmt.Sprintf("--until: there is no fact %q", s)
	if near := usage.Nearest(s[strings.LastIndex(s, ".")+1:], names); near != "" {
		msg += fmt.Sprintf("; did you mean %q?", near)
	}
	return c, fault.New(fault.InvalidArgument, "ctl events --until active", "%s; there are: %s", msg, strings.Join(names, ", "))
}

// Met reports whether the fact fulfils the condition.
func (c Condition) Met(e event.Envelope) (bool, error) {
	if c.program == nil {
		return c.types[e.Type], nil
	}
	f := fields{Type: e.Type, Subject: e.Subject, ID: e.ID, Time: e.Time, Data: map[string]any{}}
	if parts := strings.Split(e.Type, "."); len(parts) == 6 {
		f.Scope, f.Service, f.Fact = parts[2], parts[3], parts[4]
	}
	if err := json.Unmarshal(e.Data, &f.Data); err != nil {
		return false, fmt.Errorf("read the data of %s: %w", e.Type, err)
	}
	v, err := expr.Run(c.program, f)
	if err != nil {
		// A field that this fact does not have: not fulfilled.
		return false, nil
	}
	ok, _ := v.(bool)
	return ok, nil
}
