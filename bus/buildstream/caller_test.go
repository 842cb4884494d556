package buildstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/buildstream"
)

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestList(t *testing.T) {
	dir := tree(t, map[string]string{"a": "1", "a-b": "22", "d/x/keep": "3", "d/x/drop": "4", "e/f": "5", "z/y": "6"})
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	list, err := buildstream.List(dir, func(p string, isDir bool) (buildstream.Verdict, error) {
		switch {
		case p == "e":
			return buildstream.Skip, nil
		case p == "d", p == "d/x", p == "z":
			return buildstream.Look, nil
		case p == "d/x/drop", p == "z/y":
			return buildstream.Skip, nil
		}
		return buildstream.Keep, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprintf("%s:%d:%s", e.Path, e.Size, e.Link))
	}
	if want := "a:1: a-b:2: d:0: d/x:0: d/x/keep:1: out:0:/etc"; strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

// A file that was listed and has become a link out of the context since, or a
// number that was never listed, cannot be read.
func TestServeKeepsInside(t *testing.T) {
	dir := tree(t, map[string]string{"a": strings.Repeat("x", buildstream.ReadSize+5), "b": "was a file"})
	all := func(string, bool) (buildstream.Verdict, error) { return buildstream.Keep, nil }
	list, err := buildstream.List(dir, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	x, y := net.Pipe()
	ctl, builder := buildstream.New(x), buildstream.New(y)
	served := make(chan error, 1)
	go func() {
		served <- (&buildstream.Caller{Root: root, Entries: list}).Serve(context.Background(), ctl, buildstream.Hello{ID: "b"})
	}()
	for range 3 { // hello, list, its end
		if _, err := builder.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(r buildstream.Read) []byte {
		t.Helper()
		if err := builder.SendJSON(buildstream.KindRead, 1, r); err != nil {
			t.Fatal(err)
		}
		f, err := builder.Receive()
		if err != nil || f.Kind != buildstream.KindData || f.ID != 1 {
			t.Fatalf("%v, %v", f.Kind, err)
		}
		return f.Payload
	}
	if b := ask(buildstream.Read{What: "file", Index: 0}); b[0] != buildstream.More || len(b) != 1+buildstream.ReadSize {
		t.Errorf("first piece: %d, %d bytes", b[0], len(b))
	}
	if b := ask(buildstream.Read{What: "file", Index: 0, Offset: buildstream.ReadSize}); b[0] != buildstream.Last || len(b) != 6 {
		t.Errorf("last piece: %d, %d bytes", b[0], len(b))
	}
	for _, r := range []buildstream.Read{{What: "file", Index: 1}, {What: "file", Index: 2}, {What: "file", Index: -1}, {What: "stdin"}, {What: "secret", Name: "s"}, {What: "disk"}} {
		if b := ask(r); b[0] != buildstream.Failed || strings.Contains(string(b), "root:") {
			t.Errorf("%+v: %q", r, b)
		}
	}
	if err := builder.Send(buildstream.KindDone, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := json.Marshal(list); err != nil {
		t.Error(err)
	}
}
