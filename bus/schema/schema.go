// Package schema holds the JSON Schemas (draft 2020-12) of the facts and of
// their envelope, for programs that validate what they read, in any language:
// the files of this folder are generated from package event and published.
//
// A schema is named after its fact's CloudEvents type, as the envelope's
// dataschema says. Schemas only ever gain fields, and never forbid others.
package schema

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:generate go run ../internal/schemagen/cmd

//go:embed *.json
var files embed.FS

// Envelope is the name of the envelope's file.
const Envelope = "envelope.json"

// Files are all schemas, <type>.json and Envelope.
func Files() fs.FS { return files }

// Of is the schema of a fact's data, by its CloudEvents type.
func Of(eventType string) ([]byte, error) {
	b, err := files.ReadFile(eventType + ".json")
	if err != nil {
		return nil, fmt.Errorf("no schema of %q: %w", eventType, err)
	}
	return b, nil
}
