// Command cmd writes the JSON Schemas of the facts; `go generate ./schema` runs
// it in the folder bus/schema.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"berth.dev/bus/internal/schemagen"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	files, err := schemagen.Generate("..")
	if err != nil {
		return err
	}
	old, err := filepath.Glob("*.json")
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	for name, body := range files {
		if err := os.WriteFile(name, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}
