package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth.dev/bus/buildstream"
)

func bg() context.Context { return context.Background() }

// listing is the names in a container's directory.
func listing(t *testing.T, id, dir string) (names []string) {
	t.Helper()
	rd, _, err := theDocker.api.CopyFromContainer(t.Context(), id, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	tr := tar.NewReader(rd)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// processes are those whose command line contains s.
func processes(t *testing.T, s string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(s)) {
			found = append(found, f)
		}
	}
	return found
}

// knock opens a stream that must be refused.
func knock(t *testing.T, r *rig, id, token string) {
	t.Helper()
	c, err := net.Dial("unix", r.cfg.door)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := buildstream.New(c)
	if err := conn.SendJSON(buildstream.KindHello, 0, buildstream.Hello{ID: id, Token: token}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if f, err := conn.Receive(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream of %s was not refused: %v, %v", id, f.Kind, err)
	}
}
