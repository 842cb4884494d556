//go:build unix

package hostspace

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"berth.dev/bus/fault"
)

// Privilege is sudo's to give, and where there is no sudo that is said, with the
// way that takes none.
func TestWithSudo(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := withSudo([]string{"/x/vif", "-restore"}); fault.CodeOf(err) != fault.PermissionDenied || fault.From(err).Hint != "ctl connect --docker" {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sudo"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	argv, err := withSudo([]string{"/x/vif", "-restore"})
	if err != nil || argv[0] != "sudo" || !slices.Equal(argv[len(argv)-3:], []string{"--", "/x/vif", "-restore"}) {
		t.Error(argv, err)
	}
}

func TestExamine(t *testing.T) {
	s := space(t) // a directory, and nobody lives
	if _, err := s.Examine(t.Context()); fault.CodeOf(err) != fault.Unavailable || fault.From(err).Hint != "ctl quit --all" {
		t.Error(err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if text, err := s.Examine(t.Context()); err != nil || text == "" {
		t.Error(text, err)
	}
}
