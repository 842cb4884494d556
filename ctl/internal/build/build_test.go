package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/workspace"

	"github.com/docker/docker/api/types/image"
)

// These tests run the whole way on the real engine: a workspace of their own, of
// an image imported from the services' binaries, builder in its container, the
// context over an exec. Nothing is pulled, and everything is removed.

// services makes an image of what a workspace with builder needs.
func services(t *testing.T, e *engine.Engine, ref string) {
	t.Helper()
	dir := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, s := range []string{"connector", "runner", "builder"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=0.1.0-test", "-o", filepath.Join(dir, s), ".")
		cmd.Dir = filepath.Join("../../../services", s)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-trimpath -buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", s, err, out)
		}
		body, err := os.ReadFile(filepath.Join(dir, s))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + s, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	// The programs write below /tmp, /run and /var.
	for _, d := range []string{"tmp/", "run/", "var/", "var/lib/"} {
		if err := w.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := e.API.ImageImport(t.Context(), image.ImportSource{Source: &b, SourceName: "-"}, ref, image.ImportOptions{Changes: []string{"ENV PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = e.API.ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true})
	})
}

// up is a workspace that is up, without builder.
func up(t *testing.T) (*workspace.Workspace, *workspace.Up) {
	t.Helper()
	e, err := engine.Open(t.Context())
	if err != nil {
		t.Fatalf("these tests need a Docker Engine: %v", err)
	}
	t.Cleanup(e.Close)
	name := "test-" + strings.ToLower(rand.Text()[:8])
	ref := "berth-" + name + ":image"
	services(t, e, ref)
	w, err := workspace.New(e, name, "0.1.0-test", ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Teardown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	u, err := w.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Conn.Close)
	return w, u
}

func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
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

func TestBuild(t *testing.T) {
	w, u := up(t)
	word := strings.ToLower(rand.Text())
	dir := write(t, t.TempDir(), map[string]string{
		"Dockerfile": "FROM scratch\nARG FROM_ENV\nLABEL word=" + word + " env=$FROM_ENV\nCOPY . /\n", "a": "A", ".dockerignore": "big\n",
		"big": "",
	})
	if err := os.Truncate(filepath.Join(dir, "big"), 500<<20); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_ENV", "mine")
	var out bytes.Buffer
	build := func(word string, opts ...string) (string, error) {
		out.Reset()
		id, err := Build(t.Context(), Options{Builder: w.Builder, Conn: u.Conn, Context: word, Options: opts, Stderr: &out})
		if err == nil {
			t.Cleanup(func() {
				_, _ = w.Engine.API.ImageRemove(context.Background(), id, image.RemoveOptions{Force: true, PruneChildren: true})
			})
		}
		return id, err
	}
	iid := filepath.Join(t.TempDir(), "iid")
	start := time.Now()
	id, err := build(dir, "build-arg=FROM_ENV", "iidfile="+iid, "label=x=a,b")
	if err != nil {
		t.Fatal(err, out.String())
	}
	t.Logf("first build, with builder's start: %v", time.Since(start))
	in, err := w.Engine.API.ImageInspect(t.Context(), id)
	if err != nil || in.ID != id || in.Config.Labels["word"] != word || in.Config.Labels["env"] != "mine" || in.Config.Labels["x"] != "a,b" || in.Size > 1<<20 {
		t.Errorf("%+v, %v", in, err)
	}
	if b, err := os.ReadFile(iid); string(b) != id || err != nil {
		t.Errorf("iidfile %q, %v", b, err)
	}
	if !strings.Contains(out.String(), "COPY . /") || !strings.Contains(out.String(), "built sha256:") {
		t.Errorf("progress:\n%s", out.String())
	}
	start = time.Now()
	again, err := build(filepath.Join(dir, "Dockerfile"), "build-arg=FROM_ENV", "label=x=a,b") // the Dockerfile as the context
	if err != nil || again != id {
		t.Errorf("again: %s, %v\n%s", again, err, out.String())
	}
	t.Logf("cached build: %v", time.Since(start))
	start = time.Now()
	docker := exec.Command("docker", "build", "-q", "--build-arg", "FROM_ENV=mine", "--label", "x=a,b", dir)
	docker.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if b, err := docker.CombinedOutput(); err == nil {
		plain := strings.Fields(string(b))
		t.Logf("plain docker build (classic, not cached): %v", time.Since(start))
		_, _ = w.Engine.API.ImageRemove(context.Background(), plain[len(plain)-1], image.RemoveOptions{PruneChildren: true})
	}
	if _, err := build(dir, "tagg=x"); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), `"tag"`) {
		t.Errorf("unknown option: %v", err)
	}
	bad := write(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nCOPY nothing /\n"})
	if _, err := build(bad); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("missing file: %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	w, u := up(t)
	// The engine waits for a context that does not come.
	r, hold := io.Pipe()
	defer hold.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	var last event.Envelope
	_, err := Build(ctx, Options{Builder: w.Builder, Conn: u.Conn, Context: "-", Stdin: r, Stderr: io.Discard, See: func(e event.Envelope) {
		last = e
		if _, ok := event.Decode[event.BuildStarted](e); ok {
			cancel(stop)
		}
	}})
	_ = hold.Close()
	if !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if f, ok := event.Decode[event.BuildFailed](last); !ok || !f.Cancelled {
		t.Errorf("the last fact is %s %s", last.Type, last.Data)
	}
}

func TestLocate(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{"in/Dockerfile": "FROM scratch\n", "in/sub/Other": "FROM scratch\n", "out/D": "FROM scratch\n", "empty/x": ""})
	t.Chdir(dir)
	for _, c := range []struct{ word, file, want string }{
		{"in", "", "directory in Dockerfile "},
		{"in/sub/Other", "", "directory in/sub Other "},
		{"in", "in/sub/Other", "directory in sub/Other "},
		{"in", "out/D", "directory in  out/D"},
		{"https://example.com/x.git#main:sub", "D", "remote  D "},
		{"git@example.com:x.git", "", "remote   "},
		{"-", "", "stdin   "},
		{"empty", "", "there is no Dockerfile"},
		{"nowhere", "", "no such file"},
		{"in", "in/none", "no such file"},
		{"in", "in/sub", "is not a file"},
		{"in/Dockerfile", "out/D", "names another"},
		{"", "", "no build context"},
	} {
		s, err := locate(c.word, c.file)
		got := fmt.Sprint(err)
		if err == nil {
			rel := func(p string) string {
				if p == "" {
					return ""
				}
				real, _ := filepath.EvalSymlinks(dir)
				r, _ := filepath.Rel(real, p)
				return r
			}
			got = strings.Join([]string{s.kind, rel(s.dir), s.dockerfile, rel(s.outside)}, " ")
		}
		if err == nil && got != c.want || err != nil && !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.word, c.file, got, c.want)
		}
	}
}

func TestIgnore(t *testing.T) {
	for _, c := range []struct{ ignore, want string }{
		{"", ".dockerignore Dockerfile a d d/b d/e d/e/c"},
		{"*\n!d/e\n", ".dockerignore Dockerfile d d/e d/e/c"},
		{"d\n", ".dockerignore Dockerfile a"},
		{"**/c\nDockerfile\n.dockerignore\n", ".dockerignore Dockerfile a d d/b d/e"},
		{"# note\n\nd/*\n!d/b", ".dockerignore Dockerfile a d d/b"},
	} {
		dir := write(t, t.TempDir(), map[string]string{"Dockerfile": "", "a": "", "d/b": "", "d/e/c": "", ".dockerignore": c.ignore})
		s, err := locate(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.list()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range l {
			names = append(names, e.Path)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%q: %s, want %s", c.ignore, got, c.want)
		}
	}
}

// Of a context of 500 MB, most of it ignored, only what is not ignored is listed
// and built from.
func TestLargeContext(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "a", ".dockerignore": "node_modules\n*.bin\n"})
	for i := range 50 {
		sub := filepath.Join(dir, "node_modules", fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range 10 {
			sparse(t, filepath.Join(sub, fmt.Sprint(j)), 1<<20)
		}
	}
	sparse(t, filepath.Join(dir, "x.bin"), 1<<20)
	w, u := up(t)
	sent := int64(0)
	id, err := Build(t.Context(), Options{Builder: w.Builder, Conn: u.Conn, Context: dir, Stderr: io.Discard, See: func(e event.Envelope) {
		if f, ok := event.Decode[event.BuildFinished](e); ok {
			for _, p := range f.Phases {
				if p.Name == "context" {
					sent = p.Millis
				}
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = w.Engine.API.ImageRemove(context.Background(), id, image.RemoveOptions{Force: true})
	})
	s, err := locate(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, e := range l {
		total += e.Size
	}
	if len(l) != 3 || total > 1000 {
		t.Errorf("%d entries of %d bytes are in the context", len(l), total)
	}
	t.Logf("context in %d ms", sent)
}

func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
