package until

import (
	"strings"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

func envelope(t *testing.T, d event.Data) event.Envelope {
	t.Helper()
	_, e, err := event.New("e1", d)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestMet(t *testing.T) {
	active := event.EngagementActive{Pods: []string{"a", "b"}, Millis: 700}
	cases := []struct {
		cond string
		fact event.Data
		want bool
	}{
		{"active", active, true},
		{"engagement.active", active, true},
		{"connector.active", active, true},
		{"dev.berth.engagement.connector.active.v1", active, true},
		{"ended", active, false},
		{"engagement.failed", event.ConnectionFailed{}, false},
		{"connection.failed", event.ConnectionFailed{}, true},
		{"failed", event.ConnectionFailed{}, true},
		{`fact == "active" && len(data.pods) > 1`, active, true},
		{`data.millis < 500`, active, false},
		{`data.millis < 500`, event.Restoring{}, false}, // has no such field
		{`scope == "engagement" && service == "connector"`, active, true},
		{`subject == "e2"`, active, false},
		{"", active, false},
	}
	for _, c := range cases {
		cond, err := Parse(c.cond)
		if err != nil {
			t.Errorf("%s: %v", c.cond, err)
			continue
		}
		if got, err := cond.Met(envelope(t, c.fact)); err != nil || got != c.want {
			t.Errorf("%q on %T: %v, %v", c.cond, c.fact, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for in, says := range map[string]string{"activ": `"active"`, "nonsense": "there are", `fact ==`: "--until", `fact`: "there is no fact", `nope == 1`: "nope", `data.x + 1 == "a" +`: "--until", `len(type)`: "bool"} {
		_, err := Parse(in)
		if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want a usage fault with %q", in, err, says)
		}
	}
}
