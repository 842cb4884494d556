package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPresentAndKey(t *testing.T) {
	bin := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	i := image{name: "berth-cluster", dockerfile: "Dockerfile.cluster", programs: []string{"manager", "agent"}}
	key := func() string {
		t.Helper()
		present, err := i.present(bin)
		if err != nil {
			t.Fatal(err)
		}
		k, err := i.key(bin, present)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("manager", "1")
	write("ctl", "not of this image")
	if got, err := i.present(bin); err != nil || !slices.Equal(got, []string{"manager"}) {
		t.Errorf("present: %v, %v", got, err)
	}
	first := key()
	write("ctl", "changed")
	if key() != first {
		t.Error("a program of another image changes the key")
	}
	write("agent", "1")
	second := key()
	write("agent", "2")
	if first == second || second == key() {
		t.Error("a new or changed program does not change the key")
	}
}
