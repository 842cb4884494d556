package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// fakeEngine stands in for an engine that fails as a real one cannot be made to.
func fakeEngine(t *testing.T, build http.HandlerFunc) {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
		case strings.HasSuffix(r.URL.Path, "/build"):
			build(w, r)
		default: // no BuildKit: no session
			http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
		}
	}))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	t.Setenv("DOCKER_HOST", "unix://"+sock)
}

func TestEngineDiesInTheMiddle(t *testing.T) {
	fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"stream":"Step 1/2 : FROM scratch\n"}`+"\n"+`{"stream":"Step 2/2 : COPY a /a\n"}`+"\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	r := start(t)
	b := &order{rig: r, dir: r.dir(map[string]string{"Dockerfile": "FROM scratch\n"})}
	if f := b.fails(); f.Cancelled || f.Error.Code != fault.Unavailable || f.Error.Hint == "" || !strings.Contains(f.Error.Stage, "COPY") {
		t.Errorf("%+v\n%s", f, b.plain.String())
	}
}

func TestEngineEndsWithoutAnImage(t *testing.T) {
	fakeEngine(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}\n") })
	r := start(t)
	if f := (&order{rig: r, dir: r.dir(map[string]string{"a": ""})}).fails(); f.Error.Code != fault.Unavailable {
		t.Errorf("%+v", f)
	}
}

// An engine that has no session to give gets the context the classic way; what
// only BuildKit can do is refused then.
func TestSessionRefused(t *testing.T) {
	var got []byte
	fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, `{"aux":{"ID":"sha256:1"}}`+"\n")
	})
	r := start(t)
	b := &order{rig: r, dir: r.dir(map[string]string{"a": "content of a"})}
	if err := b.begin(); err != nil {
		t.Fatal(err)
	}
	f, ok := event.Decode[event.BuildFinished](b.end())
	if !ok || f.Builder != "classic" || f.ImageID != "sha256:1" || !strings.Contains(string(got), "content of a") {
		t.Errorf("%+v, %d bytes", f, len(got))
	}
	bad := (&order{rig: r, dir: b.dir, options: []string{"secret=id=s,src=x"}}).fails()
	if bad.Error.Code != fault.FailedPrecondition || !strings.Contains(bad.Error.Message, "BuildKit") {
		t.Errorf("%+v", bad)
	}
}
