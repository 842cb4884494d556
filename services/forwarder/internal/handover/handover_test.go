package handover

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// More files than fit one message arrive in order and work; a second back gets
// them too; the end of either side is seen by the other.
func TestHandover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var mine []*os.File
	for i := range 2*batch + 3 {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(f, i); err != nil {
			t.Fatal(err)
		}
		mine = append(mine, f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type got struct {
		n   int
		err error
	}
	early := make(chan got, 1) // connects before front is there
	go func() {
		files, link, err := Fetch(ctx, path)
		if err == nil {
			link.Close()
		}
		early <- got{len(files), err}
	}()
	if err := os.WriteFile(path, nil, 0o600); err != nil { // what an earlier front left
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Stat(path)
	if err != nil || in.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", in.Mode(), err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, mine) }()
	if g := <-early; g.n != len(mine) || g.err != nil {
		t.Errorf("early: %+v", g)
	}
	files, link, err := Fetch(ctx, path)
	if err != nil || len(files) != len(mine) {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for i, f := range files {
		b := make([]byte, 8)
		n, err := f.ReadAt(b, 0)
		if string(b[:n]) != fmt.Sprint(i) || err != io.EOF {
			t.Errorf("file %d has %q, %v", i, b[:n], err)
		}
		f.Close()
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	link.Close()
}

func TestNobodyThere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Fetch(ctx, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("fetched from nobody")
	}
}
