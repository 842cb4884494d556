package event_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/subject"
)

// golden is the envelope in testdata/<type>.json.
func golden(t *testing.T, eventType string) (event.Envelope, []byte) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", eventType+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var env event.Envelope
	strict(t, body, &env)
	return env, body
}

// strict reads JSON and refuses unknown fields: a field that was taken out of a
// fact, or renamed, is found here.
func strict(t *testing.T, body []byte, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
}

// TestGolden holds every fact against a fully populated example. An example is
// a promise to readers: it may gain fields and must not lose or change any.
func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range event.All() {
		eventType := event.TypeOf(d)
		t.Run(eventType, func(t *testing.T) {
			if seen[eventType] {
				t.Fatal("two facts have this type")
			}
			seen[eventType] = true
			env, body := golden(t, eventType)
			v := reflect.New(reflect.TypeOf(d))
			strict(t, env.Data, v.Interface())
			for _, path := range zeros(v.Elem(), "data") {
				t.Errorf("%s is not populated in the example", path)
			}
			scope, service, fact := d.Fact()
			if env.Type != eventType || env.Source != "/services/"+string(service) || env.DataSchema != eventType+".json" {
				t.Errorf("envelope: %+v", env)
			}
			parsed, err := subject.ParseFact(subject.Fact(scope, env.Subject, service, fact))
			if err != nil || parsed != (subject.ParsedFact{Scope: scope, ID: env.Subject, Service: service, Fact: fact}) {
				t.Errorf("subject: %+v, %v", parsed, err)
			}
			again, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			env.Data = again
			if again, err = json.MarshalIndent(env, "", "  "); err != nil {
				t.Fatal(err)
			}
			if again = append(again, '\n'); !bytes.Equal(again, body) {
				t.Errorf("came back as\n%swant\n%s", again, body)
			}
		})
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(seen) {
		t.Errorf("%d examples of %d facts", len(files), len(seen))
	}
}

// zeros are the paths of fields without a value.
func zeros(v reflect.Value, path string) (out []string) {
	if v.IsZero() {
		return []string{path}
	}
	switch v.Kind() {
	case reflect.Pointer:
		return zeros(v.Elem(), path)
	case reflect.Struct:
		for i := range v.NumField() {
			out = append(out, zeros(v.Field(i), path+"."+v.Type().Field(i).Name)...)
		}
	case reflect.Slice:
		if v.Len() == 0 {
			return []string{path}
		}
		return zeros(v.Index(0), path+"[0]")
	}
	return out
}

func TestNewMakesWhatDecodeReads(t *testing.T) {
	code := 3
	subj, env, err := event.New("e-1", event.EngagementEnded{Cause: "leave", ExitCode: &code})
	if err != nil {
		t.Fatal(err)
	}
	if subj != "berth.v1.evt.engagement.e-1.connector.ended" {
		t.Errorf("subject %s", subj)
	}
	got, ok := event.Decode[event.EngagementEnded](env)
	if !ok || got.Cause != "leave" || got.ExitCode == nil || *got.ExitCode != 3 {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := event.Decode[event.EngagementFailed](env); ok {
		t.Error("decoded as another fact")
	}
	_, other, err := event.New("e-1", event.EngagementEnded{})
	if err != nil || other.ID == env.ID || env.ID == "" {
		t.Errorf("ids %q and %q, %v", env.ID, other.ID, err)
	}
}

func TestTerminal(t *testing.T) {
	want := map[string]bool{
		"dev.berth.engagement.connector.ended.v1":         true,
		"dev.berth.engagement.connector.failed.v1":        true,
		"dev.berth.connection.connector.disconnected.v1":  true,
		"dev.berth.connection.connector.failed.v1":        true,
		"dev.berth.build.builder.finished.v1":             true,
		"dev.berth.build.builder.failed.v1":               true,
		"dev.berth.installation.connector.installed.v1":   true,
		"dev.berth.installation.connector.uninstalled.v1": true,
		"dev.berth.installation.connector.failed.v1":      true,
	}
	for _, d := range event.All() {
		env := event.Envelope{Type: event.TypeOf(d)}
		if event.Terminal(env) != want[env.Type] {
			t.Errorf("%s: terminal %v", env.Type, event.Terminal(env))
		}
	}
}
