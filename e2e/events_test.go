package e2e

import (
	"bytes"
	"strings"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/schema"
	"berth.dev/e2e/rig"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// canaries are values of the remote environment: no fact may hold one.
var canaries = []string{"not-so-secret-canary", "hello from the cluster's config map"}

// The facts of a finished engagement can be read afterwards, in order, each
// valid against its published schema, none with a value of the environment.
func TestEvents(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	if r := ctl.Run(t, "replace", "frontend-v1", "--docker-run", "--", probeImage, "exit", "3"); r.Code != 3 {
		t.Fatalf("%v", r)
	}
	r := ctl.Must(t, "events", "--since", "start", "--no-follow", "--output", "json")
	for _, c := range canaries {
		if strings.Contains(r.Stdout, c) {
			t.Errorf("a fact holds the value %q of the environment", c)
		}
	}
	var types []string
	terminal := 0
	var id string
	for _, e := range rig.Lines[event.Envelope](t, r.Stdout) {
		valid(t, e)
		if !strings.Contains(e.Type, ".engagement.") {
			continue
		}
		if id == "" {
			id = e.Subject
		}
		if e.Subject != id {
			continue
		}
		if terminal > 0 {
			t.Errorf("%s after the terminal fact", e.Type)
		}
		if event.Terminal(e) {
			terminal++
		}
		types = append(types, strings.TrimSuffix(strings.TrimPrefix(e.Type, "dev.berth.engagement."), ".v1"))
	}
	if terminal != 1 {
		t.Errorf("%d terminal facts", terminal)
	}
	want := []string{"connector.requested", "connector.workload-prepared", "runner.handler-created", "runner.handler-started", "runner.handler-exited", "connector.restoring", "connector.ended"}
	i := 0
	for _, got := range types {
		if i < len(want) && got == want[i] {
			i++
		}
	}
	if i < len(want) {
		t.Errorf("want the facts %v in this order, got %v", want, types)
	}
	// The same by the engagement's name, up to a fact, as scripts do it.
	u := ctl.Must(t, "events", "--engagement", id, "--until", "ended", "--output", "json")
	if got := len(rig.Lines[event.Envelope](t, u.Stdout)); got != len(types) {
		t.Errorf("%d facts by --engagement, %d in all", got, len(types))
	}
}

// valid validates an envelope and its data against the published schemas.
func valid(t *testing.T, e event.Envelope) {
	t.Helper()
	body, err := schema.Of(e.Type)
	if err != nil {
		t.Error(err)
		return
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(e.DataSchema, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(e.DataSchema)
	if err != nil {
		t.Fatal(err)
	}
	data, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Data))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(data); err != nil {
		t.Errorf("%s is not valid: %v\n%s", e.Type, err, e.Data)
	}
}
