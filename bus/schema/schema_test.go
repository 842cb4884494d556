package schema_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/internal/schemagen"
	"berth.dev/bus/schema"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func TestSchemasAreFresh(t *testing.T) {
	want, err := schemagen.Generate("..")
	if err != nil {
		t.Fatal(err)
	}
	have, err := fs.Glob(schema.Files(), "*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range have {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is of no fact: go generate ./schema", name)
		}
	}
	for name, body := range want {
		got, err := fs.ReadFile(schema.Files(), name)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s is stale: go generate ./schema (%v)", name, err)
		}
	}
}

// compile compiles the schema in a file.
func compile(t *testing.T, body []byte, name string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, body []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

func TestExamplesAreValid(t *testing.T) {
	body, err := fs.ReadFile(schema.Files(), schema.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	envelope := compile(t, body, schema.Envelope)
	for _, d := range event.All() {
		eventType := event.TypeOf(d)
		t.Run(eventType, func(t *testing.T) {
			body, err := schema.Of(eventType)
			if err != nil {
				t.Fatal(err)
			}
			s := compile(t, body, eventType+".json")
			example, err := os.ReadFile(filepath.Join("..", "event", "testdata", eventType+".json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(t, envelope, example); err != nil {
				t.Error(err)
			}
			var env event.Envelope
			if err := json.Unmarshal(example, &env); err != nil {
				t.Fatal(err)
			}
			if err := validate(t, s, env.Data); err != nil {
				t.Error(err)
			}
			// What a service states with everything left out is valid too.
			zero, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(t, s, zero); err != nil {
				t.Errorf("%s: %v", zero, err)
			}
			// A reader must not mind a field that it does not know.
			var fields map[string]any
			if err := json.Unmarshal(env.Data, &fields); err != nil {
				t.Fatal(err)
			}
			fields["gainedLater"] = true
			more, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(t, s, more); err != nil {
				t.Error(err)
			}
			// But every field that it knows is of the type that it knows.
			delete(fields, "gainedLater")
			for k := range fields {
				fields[k] = map[string]any{"not": "this"}
			}
			wrong, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			if validate(t, s, wrong) == nil {
				t.Errorf("%s is valid", wrong)
			}
		})
	}
	if err := validate(t, envelope, []byte(`{"specversion":"1.0"}`)); err == nil {
		t.Error("an envelope without anything is valid")
	}
	if _, err := schema.Of("dev.berth.no.such.fact.v1"); err == nil {
		t.Error("found the schema of a fact that does not exist")
	}
}
