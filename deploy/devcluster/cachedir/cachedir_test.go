package cachedir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFillBuildsOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache", "entry")
	built := 0
	build := func(tmp string) error {
		built++
		return os.WriteFile(filepath.Join(tmp, "file"), []byte("x"), 0o644)
	}
	for range 2 {
		if err := Fill(dir, build); err != nil {
			t.Fatal(err)
		}
	}
	if built != 1 {
		t.Errorf("built %d times, want once", built)
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}

// A build that fails or is killed must leave nothing that looks like an entry.
func TestFillAfterFailure(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "entry")
	killed := filepath.Join(parent, "entry"+partial+"123")
	if err := os.Mkdir(killed, 0o755); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := Fill(dir, func(string) error { return broken }); !errors.Is(err, broken) {
		t.Fatalf("got %v, want the build's error", err)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestLockExcludes(t *testing.T) {
	root := t.TempDir()
	unlock, err := Lock(root, func() { t.Error("waited for a free lock") })
	if err != nil {
		t.Fatal(err)
	}
	waiting, got := make(chan struct{}), make(chan error, 1)
	go func() {
		unlock, err := Lock(root, func() { close(waiting) })
		if err == nil {
			unlock()
		}
		got <- err
	}()
	<-waiting
	select {
	case <-got:
		t.Fatal("two held the lock")
	case <-time.After(20 * time.Millisecond):
	}
	unlock()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestKeyFramesItsInputs(t *testing.T) {
	key := func(values ...string) string {
		k := NewKey("test")
		k.Add(values...)
		return k.String()
	}
	if key("ab", "c") == key("a", "bc") {
		t.Error("different lists of inputs have one key")
	}
	if again := key("a"); again != key("a") {
		t.Error("equal inputs have two keys")
	}
	if len(key()) != 16 {
		t.Errorf("key %q is not 16 digits", key())
	}
}

func TestKeyOfGoSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func() string {
		t.Helper()
		k := NewKey("test")
		if err := k.AddGo(dir); err != nil {
			t.Fatal(err)
		}
		return k.String()
	}
	write("go.mod", "module m")
	write("main.go", "package main")
	first := key()
	for _, ignored := range []string{"main_test.go", "README.md", "nested/go.mod", "nested/nested.go"} {
		write(ignored, "package x")
		if key() != first {
			t.Errorf("%s changes the key, though it is not built", ignored)
		}
	}
	for _, counted := range []string{"sub/sub.go", "go.sum", "manifest.yaml"} {
		before := key()
		write(counted, "package y")
		if key() == before {
			t.Errorf("%s does not change the key", counted)
		}
	}
}
