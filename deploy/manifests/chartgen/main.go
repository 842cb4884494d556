// Command chartgen writes the templates of the Helm chart from the source of
// the plain manifests. `go generate` runs it in deploy/manifests.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"berth.dev/deploy/manifests"
)

const notice = "{{- /* Generated from deploy/manifests/berth.yaml.tmpl by `go generate`: change it there. */ -}}\n"

func main() {
	if err := run(filepath.Join("..", "chart", "templates", "berth.yaml")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	b, err := manifests.Chart()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the chart's folder: %w", err)
	}
	if err := os.WriteFile(path, append([]byte(notice), b...), 0o644); err != nil {
		return fmt.Errorf("write the chart's template: %w", err)
	}
	return nil
}
