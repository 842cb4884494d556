package bus

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/subject"
)

func TestFilesFlag(t *testing.T) {
	file := filepath.Join(t.TempDir(), "berth", "bus.json")
	take := func(stdin io.Reader, args ...string) error {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		f := FilesFlag(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		_, err := f(stdin)
		return err
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

// Introductions come behind the files, or before them where two have written at once;
// each is ctl's, whatever it says.
func TestIntroductions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bus.json")
	files, err := json.Marshal(Files{file: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	introduce := func(name string) string {
		b, err := Introduce(Identity{Name: name, PublicKey: "U" + name, Service: subject.Connector, Connection: "c1"})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	fs := flag.NewFlagSet("x", flag.ContinueOnError)
	take := FilesFlag(fs)
	if err := fs.Parse([]string{FilesArg}); err != nil {
		t.Fatal(err)
	}
	h, err := take(strings.NewReader(introduce("early") + string(files) + introduce("late") + introduce("later") + `{"introduction": "e30x"}` + introduce("lost")))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "secret" {
		t.Errorf("%q, %v", b, err)
	}
	var got []string
	err = h.Introductions(func(id Identity) {
		got = append(got, id.Name)
		if id.PublicKey != "U"+id.Name || id.Service != subject.Ctl || id.Connection != "" {
			t.Errorf("admitted %+v", id)
		}
	})
	if err == nil || strings.Join(got, " ") != "early late later" {
		t.Errorf("admitted %v, %v", got, err)
	}
	if err := (*Handover)(nil).Introductions(nil); err != nil {
		t.Error(err)
	}
}
