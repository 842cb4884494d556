package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/buildstream"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// These tests build on the real Docker Engine, FROM scratch, so that nothing is
// pulled; steps run a static binary, testdata/puppet. Every image is removed.

var theDocker struct {
	api    *client.Client
	puppet []byte
	err    error
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	theDocker.err = prepare()
	return m.Run()
}

func prepare() (err error) {
	if theDocker.api, err = client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation()); err != nil {
		return err
	}
	if _, err := theDocker.api.Ping(context.Background()); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "berth-builder-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "puppet"), "./testdata/puppet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build puppet: %w\n%s", err, b)
	}
	theDocker.puppet, err = os.ReadFile(filepath.Join(dir, "puppet"))
	return err
}

func needDocker(t testing.TB) {
	t.Helper()
	switch {
	case theDocker.err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%s needs a Docker Engine: %v", t.Name(), theDocker.err)
	default:
		t.Skipf("%s needs a Docker Engine: %v", t.Name(), theDocker.err)
	}
}

// rig is builder on a bus of the test's own.
type rig struct {
	t    *testing.T
	conn *bus.Conn
	cfg  config
}

func start(t *testing.T) *rig {
	t.Helper()
	needDocker(t)
	b := bustest.Start(t)
	r := &rig{t: t, conn: b.Tester()}
	r.cfg = config{door: filepath.Join(t.TempDir(), "door"), bus: b.Config(subject.Builder)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	go func() { ended <- serve(ctx, r.cfg, log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	until(t, "builder answers", func() bool {
		_, err := bus.Call(t.Context(), r.conn, command.BuildCancel, "", command.BuildRef{ID: "nobody"})
		return err == nil
	})
	return r
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(bustest.Patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// dir makes a context; "puppet" in it is the binary.
func (r *rig) dir(files map[string]string) string {
	r.t.Helper()
	dir := r.t.TempDir()
	for name, body := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			r.t.Fatal(err)
		}
		b, mode := []byte(body), os.FileMode(0o644)
		if filepath.Base(name) == "puppet" {
			b, mode = theDocker.puppet, 0o755
		}
		if err := os.WriteFile(p, b, mode); err != nil {
			r.t.Fatal(err)
		}
	}
	return dir
}

// order is a build as ctl would ask for it.
type order struct {
	rig     *rig
	id      string
	dir     string
	key     string
	builder string
	options []string
	outside string
	stdin   []byte
	remote  string
	stream  bool // with a remote context too
	secret  map[string]string

	wire   atomic.Int64 // bytes from the caller
	plain  bytes.Buffer // the progress
	served chan error
	cancel context.CancelFunc
}

func newID(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()[:10]) }

// request is the command.
func (b *order) request() command.StartBuild {
	req := command.StartBuild{ID: b.id, Context: "directory", Options: b.options, Builder: b.builder, Stream: b.stream}
	switch {
	case b.remote != "":
		req.Context, req.Remote = "remote", b.remote
	case b.stdin != nil:
		req.Context = "stdin"
	}
	return req
}

// begin starts the build and serves its context.
func (b *order) begin() error {
	t := b.rig.t
	t.Helper()
	if b.id == "" {
		b.id = newID("b")
	}
	rep, err := bus.Call(t.Context(), b.rig.conn, command.BuildStart, "", b.request())
	if err != nil {
		return err
	}
	if b.remote != "" && !b.stream {
		return nil
	}
	c := &buildstream.Caller{
		Outside:  b.outside,
		Progress: func(p buildstream.Progress) { b.plain.WriteString(p.Plain()) },
		Secret:   func(id string) ([]byte, error) { return []byte(b.secret[id]), nil },
	}
	if b.stdin != nil {
		c.Stdin = bytes.NewReader(b.stdin)
	} else if b.dir != "" {
		if c.Root, err = os.OpenRoot(b.dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Root.Close() })
		if c.Entries, err = buildstream.List(b.dir, func(p string, _ bool) (buildstream.Verdict, error) {
			if strings.HasPrefix(p, "ignored") {
				return buildstream.Skip, nil
			}
			return buildstream.Keep, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if b.outside != "" {
		info, err := os.Stat(b.outside)
		if err != nil {
			t.Fatal(err)
		}
		c.Entries = append([]buildstream.Entry{{Path: ".dockerfile." + b.id, Mode: info.Mode(), Size: info.Size(), MTime: info.ModTime().UnixNano(), Outside: true}}, c.Entries...)
	}
	sock, err := net.Dial("unix", b.rig.cfg.door)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.served = cancel, make(chan error, 1)
	t.Cleanup(cancel)
	go func() {
		b.served <- c.Serve(ctx, buildstream.New(&counted{sock, &b.wire}), buildstream.Hello{ID: rep.ID, Token: rep.Token, Key: b.key})
	}()
	return nil
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// end waits for the terminal fact.
func (b *order) end() event.Envelope {
	b.rig.t.Helper()
	all := b.facts()
	if b.served != nil {
		<-b.served
	}
	return all[len(all)-1]
}

func (b *order) facts() []event.Envelope {
	b.rig.t.Helper()
	return bustest.Collect(b.rig.t, b.rig.conn, subject.Build, b.id, event.Terminal)
}

// ok builds, and removes the image with the test.
func (b *order) ok() (event.BuildFinished, image.InspectResponse) {
	t := b.rig.t
	t.Helper()
	if err := b.begin(); err != nil {
		t.Fatal(err)
	}
	last := b.end()
	f, ok := event.Decode[event.BuildFinished](last)
	if !ok {
		t.Fatalf("%s %s\n%s", last.Type, last.Data, b.plain.String())
	}
	t.Cleanup(func() {
		_, _ = theDocker.api.ImageRemove(context.Background(), f.ImageID, image.RemoveOptions{Force: true, PruneChildren: true})
	})
	in, err := theDocker.api.ImageInspect(t.Context(), f.ImageID)
	if err != nil {
		t.Fatal(err)
	}
	return f, in
}

// fails builds and returns why it could not.
func (b *order) fails() event.BuildFailed {
	b.rig.t.Helper()
	if err := b.begin(); err != nil {
		b.rig.t.Fatal(err)
	}
	return b.failed()
}

func (b *order) failed() event.BuildFailed {
	b.rig.t.Helper()
	last := b.end()
	f, ok := event.Decode[event.BuildFailed](last)
	if !ok {
		b.rig.t.Fatalf("%s %s\n%s", last.Type, last.Data, b.plain.String())
	}
	return f
}

// content is a file of an image, by way of a container that is never started.
func content(t *testing.T, img, name string) (body string, link string, err error) {
	t.Helper()
	c, err := theDocker.api.ContainerCreate(t.Context(), &container.Config{Image: img, Cmd: []string{"x"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer theDocker.api.ContainerRemove(context.Background(), c.ID, container.RemoveOptions{Force: true})
	return readFrom(t, c.ID, name)
}

// both runs the test with each builder.
func both(t *testing.T, f func(t *testing.T, builder string)) {
	for _, b := range []string{"buildkit", "classic"} {
		t.Run(b, func(t *testing.T) { f(t, b) })
	}
}
