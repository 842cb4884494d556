package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

// scratch is an image with one file and nothing that can run: what is created
// from it can be looked at, and cannot start.
func scratch(t *testing.T, e *engine.Engine, name string) {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: "empty", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := e.API.ImageImport(t.Context(), image.ImportSource{Source: &b, SourceName: "-"}, name, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() {
		_, _ = e.API.ImageRemove(context.Background(), name, image.RemoveOptions{Force: true})
	})
}

func open(t *testing.T, name string) *Workspace {
	t.Helper()
	e, err := engine.Open(t.Context())
	if err != nil {
		t.Fatalf("these tests need a Docker Engine: %v", err)
	}
	t.Cleanup(e.Close)
	img := "berth-test-" + name + ":scratch"
	scratch(t, e, img)
	w, err := New(e, name, "0.0.1", img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Teardown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Everything that carries the label goes, dead or created or in use; nothing
// else does; and doing it again, or twice at once, is fine.
func TestTeardown(t *testing.T) {
	w := open(t, "test-teardown")
	other := *w
	other.Name = "test-teardown-other"
	t.Cleanup(func() { _ = other.Teardown(context.Background()) })
	ctx, api := t.Context(), w.Engine.API
	for _, x := range []*Workspace{w, &other} {
		if _, created, err := x.ensureNetwork(ctx); err != nil || !created {
			t.Fatalf("network: created %v, %v", created, err)
		}
		for _, c := range []string{"connector", "runner", "daemon", "handler", "curl"} {
			l := x.labels("")
			l[LabelComponent], l[LabelConnection] = c, "c1"
			_, err := api.ContainerCreate(ctx, &container.Config{Image: x.Image, Cmd: []string{"/none"}, Labels: l},
				&container.HostConfig{NetworkMode: container.NetworkMode(x.Network())}, nil, nil, x.Network()+"-"+c)
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := api.VolumeCreate(ctx, volume.CreateOptions{Name: x.Network() + "-data", Labels: x.labels("")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.TeardownConnection(ctx, "c2"); err != nil {
		t.Fatal(err)
	}
	if l, err := w.Leftovers(ctx); err != nil || len(l.Containers) != 5 || len(l.Networks) != 1 || len(l.Volumes) != 1 {
		t.Fatalf("another connection's teardown took something: %v, %v", l.Names(), err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := w.Teardown(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l, err := w.Leftovers(ctx); err != nil || !l.Empty() {
		t.Errorf("left: %v, %v", l.Names(), err)
	}
	if l, err := other.Leftovers(ctx); err != nil || len(l.Containers) != 5 {
		t.Errorf("the other workspace lost something: %v, %v", l.Names(), err)
	}
	if err := w.Teardown(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A workspace whose containers cannot start leaves nothing, and says why.
func TestEnsureUndoes(t *testing.T) {
	w := open(t, "test-undo")
	up, err := w.Ensure(t.Context())
	if err == nil {
		t.Fatalf("it came up: %+v", up)
	}
	if !strings.Contains(err.Error(), "connector") && !strings.Contains(err.Error(), "runner") {
		t.Errorf("the error names no container: %v", err)
	}
	if l, lerr := w.Leftovers(t.Context()); lerr != nil || !l.Empty() {
		t.Errorf("left: %v, %v", l.Names(), lerr)
	}
}

func TestImageMissing(t *testing.T) {
	w := open(t, "test-image")
	w.Image = "berth-test-none:none"
	_, err := w.Ensure(t.Context())
	f := fault.From(err)
	if f == nil || f.Stage != "image" || f.Hint != "make images" {
		t.Errorf("got %+v", f)
	}
}

// The name of a container that is not ours is not taken from its owner.
func TestForeignName(t *testing.T) {
	w := open(t, "test-foreign")
	r, err := w.Engine.API.ContainerCreate(t.Context(), &container.Config{Image: w.Image, Cmd: []string{"/none"}}, nil, nil, nil, w.container("connector"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.remove(context.Background(), r.ID, 0) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = w.Ensure(ctx)
	if fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("got %v", err)
	}
	if _, err := w.Engine.API.ContainerInspect(t.Context(), r.ID); err != nil {
		t.Errorf("the foreign container: %v", err)
	}
	if l, _ := w.Leftovers(t.Context()); !l.Empty() {
		t.Errorf("left: %v", l.Names())
	}
}

// A network is cut from the pool where nothing overlaps, whoever asks first.
func TestNetwork(t *testing.T) {
	w := open(t, "test-network")
	var wg sync.WaitGroup
	ids := make([]string, 3)
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], _, err = w.ensureNetwork(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n, err := w.Engine.API.NetworkInspect(t.Context(), ids[0], network.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := netip.ParsePrefix(n.IPAM.Config[0].Subnet)
	if err != nil || !netip.MustParsePrefix(pool).Contains(p.Addr()) || p.Bits() != 24 {
		t.Errorf("subnet %v, %v", p, err)
	}
	l, err := w.Leftovers(t.Context())
	if err != nil || len(l.Networks) != 1 {
		t.Errorf("networks: %v, %v", l.Names(), err)
	}
	all, err := w.Engine.API.NetworkList(t.Context(), network.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		for _, c := range o.IPAM.Config {
			if q, err := netip.ParsePrefix(c.Subnet); err == nil && o.ID != n.ID && q.Overlaps(p) {
				t.Errorf("%v overlaps %s of %s", p, q, o.Name)
			}
		}
	}
}

// Secrets are readable by their owner only, and nothing of them is in the labels.
func TestFiles(t *testing.T) {
	w := &Workspace{Name: DefaultName, Version: "1"}
	c, r, ctl, err := w.keys()
	if err != nil {
		t.Fatal(err)
	}
	if len(c) != 5 || len(r) != 1 || ctl.Seed == "" {
		t.Fatalf("files: %d and %d", len(c), len(r))
	}
	if got := strings.Join(slices.Sorted(maps.Keys(c)), " "); got != "/etc/berth/builder.json /etc/berth/bus.json /etc/berth/ctl.json /etc/berth/identities.json /etc/berth/runner.json" {
		t.Errorf("files: %s", got)
	}
	if bytes.Contains(c["/etc/berth/identities.json"], []byte(ctl.Seed)) {
		t.Error("a seed among the identities")
	}
	if _, err := os.Stat(filepath.Dir("/etc/berth/bus.json")); err == nil {
		t.Error("there is /etc/berth on the host")
	}
}
