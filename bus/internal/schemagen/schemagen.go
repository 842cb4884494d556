// Package schemagen makes JSON Schemas (draft 2020-12) of the facts from their
// Go types, with the types' comments as descriptions.
//
// It knows what facts are made of and nothing more, which is why it is not a
// library: structs, strings, numbers, booleans, times, slices and pointers. A
// type outside of that is an error, and a reason to think again about the fact.
//
// The schemas are open: facts gain fields, and a reader must not mind.
package schemagen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"berth.dev/bus/event"
)

// EnvelopeFile is the file of the envelope's schema.
const EnvelopeFile = "envelope.json"

// Schema is as much of JSON Schema as is needed, in the order in which it is
// to be read.
type Schema struct {
	Schema      string        `json:"$schema,omitempty"`
	ID          string        `json:"$id,omitempty"`
	Title       string        `json:"title,omitempty"`
	Description string        `json:"description,omitempty"`
	Type        any           `json:"type,omitempty"` // string or []string
	Const       string        `json:"const,omitempty"`
	Format      string        `json:"format,omitempty"`
	Pattern     string        `json:"pattern,omitempty"`
	Minimum     *int          `json:"minimum,omitempty"`
	Maximum     *int          `json:"maximum,omitempty"`
	Items       *Schema       `json:"items,omitempty"`
	Required    []string      `json:"required,omitempty"`
	Properties  *orderedProps `json:"properties,omitempty"`
}

// orderedProps keeps the order of the struct's fields.
type orderedProps struct {
	names   []string
	schemas []*Schema
}

// MarshalJSON implements json.Marshaler.
func (p *orderedProps) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, name := range p.names {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := encode(name, "")
		if err != nil {
			return nil, err
		}
		v, err := encode(p.schemas[i], "")
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// encode is JSON that people read: "<" stays "<".
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Generate makes all schemas, by file name. dir is the folder of module bus,
// whose sources hold the comments.
func Generate(dir string) (map[string][]byte, error) {
	docs, err := readDocs(dir, "event", "fault")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	add := func(file, title string, v any, adjust func(*Schema)) error {
		s, err := docs.object(reflect.TypeOf(v))
		if err != nil {
			return fmt.Errorf("schema of %s: %w", title, err)
		}
		s.Schema, s.ID, s.Title = "https://json-schema.org/draft/2020-12/schema", file, title
		if adjust != nil {
			adjust(s)
		}
		body, err := encode(s, "  ")
		if err != nil {
			return fmt.Errorf("schema of %s: %w", title, err)
		}
		files[file] = body
		return nil
	}
	for _, d := range event.All() {
		t := event.TypeOf(d)
		if err := add(t+".json", t, d, nil); err != nil {
			return nil, err
		}
	}
	err = add(EnvelopeFile, "envelope", event.Envelope{}, func(s *Schema) {
		s.field("specversion").Const = "1.0"
		s.field("type").Pattern = `^dev\.berth\.[a-z]+\.[a-z]+\.[a-z-]+\.v1$`
		s.field("subject").Pattern = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
		s.field("data").Type = "object"
	})
	return files, err
}

func (s *Schema) field(name string) *Schema {
	for i, n := range s.Properties.names {
		if n == name {
			return s.Properties.schemas[i]
		}
	}
	panic("schemagen: no field " + name)
}

// object is the schema of a struct.
func (d docs) object(t reflect.Type) (*Schema, error) {
	s := &Schema{Type: "object", Description: d[t.Name()], Properties: &orderedProps{}}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || f.Anonymous {
			return nil, fmt.Errorf("field %s: needs a name in JSON", f.Name)
		}
		p, err := d.of(f.Type)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", f.Name, err)
		}
		optional := strings.Contains(opts, "omit")
		if !optional {
			s.Required = append(s.Required, name)
		}
		if f.Type.Kind() == reflect.Slice && f.Type != reflect.TypeFor[json.RawMessage]() && !optional {
			p.Type = []string{"array", "null"} // what a nil slice becomes
		}
		if doc := d[t.Name()+"."+f.Name]; doc != "" {
			p.Description = doc
		}
		s.Properties.names = append(s.Properties.names, name)
		s.Properties.schemas = append(s.Properties.schemas, p)
	}
	return s, nil
}

// of is the schema of any type that a fact may hold.
func (d docs) of(t reflect.Type) (*Schema, error) {
	switch t {
	case reflect.TypeFor[time.Time]():
		return &Schema{Type: "string", Format: "date-time"}, nil
	case reflect.TypeFor[json.RawMessage]():
		return &Schema{}, nil
	}
	switch t.Kind() {
	case reflect.String:
		return &Schema{Type: "string"}, nil
	case reflect.Bool:
		return &Schema{Type: "boolean"}, nil
	case reflect.Int, reflect.Int64:
		return &Schema{Type: "integer"}, nil
	case reflect.Uint16:
		lo, hi := 0, 1<<16-1
		return &Schema{Type: "integer", Minimum: &lo, Maximum: &hi}, nil
	case reflect.Pointer:
		return d.of(t.Elem())
	case reflect.Struct:
		return d.object(t)
	case reflect.Slice:
		items, err := d.of(t.Elem())
		return &Schema{Type: "array", Items: items}, err
	}
	return nil, errors.New("a fact does not hold a " + t.String())
}
