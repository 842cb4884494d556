package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSourcesAreTheDistributionsOwn(t *testing.T) {
	etc := t.TempDir()
	for name, content := range map[string]string{
		"sources.list":                   "# moved to sources.list.d\n",
		"sources.list.d/debian.sources":  "Types: deb\nURIs: http://archive.test/debian\nSuites: stable\n",
		"sources.list.d/vendor.list":     "deb http://vendor.test/apt stable main\n",
		"sources.list.d/classic.list":    "deb http://archive.test/debian stable main\n",
		"sources.list.d/off.sources.old": "URIs: http://archive.test/debian\n",
	} {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := sources(etc)
	want := []string{filepath.Join(etc, "sources.list.d/classic.list"), filepath.Join(etc, "sources.list.d/debian.sources")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := sources(t.TempDir()); err == nil {
		t.Error("no sources is no error")
	}
}

func TestKeyCoversTheSpecification(t *testing.T) {
	base := Spec{Name: "n", Variant: "v", Packages: []string{"a"}}
	seen := map[string]bool{}
	for _, s := range []Spec{base,
		{Name: "n", Variant: "w", Packages: []string{"a"}},
		{Name: "n", Variant: "v", Packages: []string{"a", "b"}},
		{Name: "n", Variant: "v", Packages: []string{"a"}, Exclude: []string{"b"}},
		{Name: "n", Variant: "v", Packages: []string{"a"}, Hooks: []string{"b"}},
		{Name: "n", Variant: "v", Packages: []string{"a"}, Setup: []string{"b"}},
	} {
		key, err := s.Key()
		if err != nil {
			t.Skipf("this machine has no Debian release: %v", err)
		}
		if seen[key] {
			t.Errorf("%+v has the key of another", s)
		}
		seen[key] = true
	}
}
