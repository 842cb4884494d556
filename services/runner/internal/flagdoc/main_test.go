package main

import (
	"bytes"
	"os"
	"testing"

	"berth.dev/services/runner/internal/handler"
)

func TestTheDocumentIsTheCodes(t *testing.T) {
	is, err := os.ReadFile("../../../../docs/docker-run.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(is, document(handler.Flags())) {
		t.Error("docs/docker-run.md is not what the code says: run make tidy")
	}
}
