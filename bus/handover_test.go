package bus

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilesFlag(t *testing.T) {
	file := filepath.Join(t.TempDir(), "berth", "bus.json")
	take := func(stdin io.Reader, args ...string) error {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		f := FilesFlag(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		return f(stdin)
	}
	raw, err := json.Marshal(Files{file: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	if err := take(strings.NewReader("secret")); err != nil {
		t.Errorf("without the flag: %v", err)
	}
	// The other end stays open.
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = w.Write(raw) }()
	if err := take(r, FilesArg); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "secret" {
		t.Errorf("%q, %v", b, err)
	}
	if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", i, err)
	}
	if err := take(strings.NewReader(`{"/etc/x": "secret"`), FilesArg); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("bad input: %v", err)
	}
}
