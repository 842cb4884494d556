package main

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"
)

// readFrom reads a file out of a container.
func readFrom(t *testing.T, id, name string) (body, link string, err error) {
	t.Helper()
	rd, _, err := theDocker.api.CopyFromContainer(t.Context(), id, name)
	if err != nil {
		return "", "", err
	}
	defer rd.Close()
	tr := tar.NewReader(rd)
	h, err := tr.Next()
	if err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(tr)
	return string(b), h.Linkname, err
}

// pack is a tar of files.
func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
