package build

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth.dev/bus/fault"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// awaitChange takes the next change.
func awaitChange(t *testing.T, w *Watcher) []string {
	t.Helper()
	select {
	case c, ok := <-w.Changes():
		if !ok {
			t.Fatalf("closed: %v", w.Err())
		}
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("no change is told")
	}
	return nil
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	in := func(p string) string { return filepath.Join(dir, p) }
	put(t, in("Dockerfile"), "FROM scratch\nCOPY . /\n")
	put(t, in(".dockerignore"), "ignored\n*.log\n!keep.log\n")
	put(t, in("main.go"), "one")
	put(t, in("ignored/deep/x"), "x")
	put(t, in("sub/a"), "a")
	w, err := Watch(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, c := range []struct {
		name string
		do   func()
		want []string
	}{
		{"a file", func() { put(t, in("main.go"), "two") }, []string{"main.go"}},
		// Each is followed by a change that counts, which is all that is told.
		{"what is ignored", func() {
			put(t, in("ignored/deep/x"), "y")
			put(t, in("ignored/new/z"), "z")
			put(t, in("a.log"), "x")
			put(t, in("sub/a"), "b")
		}, []string{"sub/a"}},
		{"an exception from what is ignored", func() { put(t, in("keep.log"), "x") }, []string{"keep.log"}},
		{"a new directory", func() { put(t, in("new/er/file"), "x") }, []string{"new", "new/er", "new/er/file"}},
		{"in the new directory", func() { put(t, in("new/er/file"), "xy") }, []string{"new/er/file"}},
		{"replaced as editors do", func() {
			put(t, in("main.go~"), "three")
			if err := os.Rename(in("main.go~"), in("main.go")); err != nil {
				t.Fatal(err)
			}
		}, []string{"main.go"}},
		{"removed", func() { _ = os.RemoveAll(in("new")) }, []string{"new", "new/er", "new/er/file"}},
		{"no longer ignored", func() { put(t, in(".dockerignore"), "*.log\n") }, []string{".dockerignore", "ignored", "ignored/deep", "ignored/deep/x", "ignored/new", "ignored/new/z", "keep.log"}},
	} {
		c.do()
		if got := awaitChange(t, w); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What comes while nobody takes changes is told as one.
func TestWatchGathers(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "Dockerfile")
	put(t, outside, "FROM scratch\n")
	w, err := Watch(dir, []string{"file=" + outside})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	put(t, filepath.Join(dir, "a"), "1")
	time.Sleep(3 * quiet)
	put(t, outside, "FROM scratch\nENV A=1\n")
	put(t, filepath.Join(filepath.Dir(outside), "other"), "no change of the context")
	time.Sleep(3 * quiet)
	if got := awaitChange(t, w); !slices.Equal(got, []string{"a", "Dockerfile"}) {
		t.Errorf("%q", got)
	}
}

func TestWatchIsRefused(t *testing.T) {
	for _, word := range []string{"-", "https://example.com/x.git"} {
		if _, err := Watch(word, nil); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", word, err)
		}
	}
	if _, err := Watch(t.TempDir(), nil); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("without a Dockerfile: %v", err)
	}
}
