package volplugin

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/command"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
)

// telemount builds the real program.
func telemount(t *testing.T) string {
	bin := filepath.Join(t.TempDir(), "telemount")
	c := exec.Command("go", "build", "-o", bin, ".")
	c.Dir, c.Env = "../../../telemount", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build telemount: %v\n%s", err, out)
	}
	return bin
}

// open is the real engine, with an image that has bin and nothing else.
func open(t *testing.T, bin string) *engine.Engine {
	ws := "t-" + strings.ToLower(rand.Text()[:10])
	ref := "berth-volplugin-test:" + ws
	e, err := engine.Open(t.Context(), engine.Options{Workspace: ws, Version: "1", Image: ref, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Skipf("needs a Docker Engine: %v", err)
	}
	e.Self = "none"
	t.Cleanup(func() { e.Close() })
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var tb bytes.Buffer
	w := tar.NewWriter(&tb)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/telemount", Mode: 0o755, Size: int64(len(b))})
	_, _ = w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rd, err := e.API.ImageImport(t.Context(), image.ImportSource{Source: &tb, SourceName: "-"}, ref, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, rd)
	rd.Close()
	t.Cleanup(func() {
		_, _ = e.API.ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true})
	})
	return e
}

// TestWays goes through both ways to run the real plugin on the real engine:
// each installs once, serves Docker's volume calls, and leaves nothing. The
// socket plugin is tried on demand only: the engine does not forget it.
func TestWays(t *testing.T) {
	bin := telemount(t)
	e := open(t, bin)
	for _, way := range []string{Socket, Managed, Auto} {
		t.Run(way, func(t *testing.T) {
			if way == Socket && os.Getenv("BERTH_TEST_SOCKET_PLUGIN") == "" {
				t.Skip("an engine that has spoken to a socket plugin wants it until it is restarted: BERTH_TEST_SOCKET_PLUGIN=1 allows it")
			}
			p := New(e, Options{Binary: bin, Version: "1", Way: way, Log: slog.Default(), Go: func(f func(context.Context)) { go f(context.Background()) }})
			if s, err := p.managed().State(t.Context()); err != nil || s.Installed {
				t.Skipf("somebody uses the plugin (%+v), or the engine has none: %v", s, err)
			}
			if c, err := p.socketContainer(t.Context()); err != nil || c != nil {
				t.Skip("somebody uses the socket plugin")
			}
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if c, err := p.socketContainer(ctx); err == nil && c != nil {
					if err := errors.Join(p.removeContainer(ctx, c.ID), p.removeVolume(ctx)); err != nil {
						t.Error(err)
					}
				}
				if err := p.managed().RemoveUnused(ctx); err != nil {
					t.Error(err)
				}
				if s, err := p.managed().State(ctx); err != nil || s.Installed {
					t.Errorf("left: %+v, %v", s, err)
				}
				if c, err := p.socketContainer(ctx); err != nil || c != nil {
					t.Errorf("left: %+v, %v", c, err)
				}
				if l, err := e.Volumes(ctx); err != nil || len(l) > 0 {
					t.Errorf("volumes are left: %+v, %v", l, err)
				}
			})
			want := way
			if way == Auto {
				want = Managed
			}
			driver := Driver
			if way == Socket {
				driver = socketDriver
			}
			var first command.VolumePlugin
			for range 2 {
				v, err := p.Ensure(t.Context(), command.None{})
				if err != nil || v.Kind != want || v.Driver != driver || v.Version != "1" || v.Pin == "" || v.Reason != "" {
					t.Fatalf("%+v, %v", v, err)
				}
				if first.Kind != "" && v != first {
					t.Errorf("installed again: %+v, then %+v", first, v)
				}
				first = v
			}
			// The engine speaks to it, and gets its words.
			name := e.Workspace + "-" + way
			opts := map[string]string{"path": "/data", "colour": "red"}
			_, err := e.API.VolumeCreate(t.Context(), volume.CreateOptions{Name: name, Driver: driver, DriverOpts: opts})
			if err == nil || !strings.Contains(err.Error(), "unknown option") {
				t.Errorf("an unknown option: %v", err)
			}
			delete(opts, "colour")
			opts["engagement"], opts["door"], opts["pin"] = "e", "127.0.0.1:1", "p"
			if _, err := e.API.VolumeCreate(t.Context(), volume.CreateOptions{Name: name, Driver: driver, DriverOpts: opts}); err != nil {
				t.Fatal(err)
			}
			defer e.API.VolumeRemove(context.Background(), name, true)
			// A door where nobody is: the start fails in a stated time, with the reason.
			c, err := e.API.ContainerCreate(t.Context(), &container.Config{Image: e.Image, Cmd: []string{"/bin/telemount", "--help"}},
				&container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: name, Target: "/data", VolumeOptions: &mount.VolumeOptions{NoCopy: true}}}}, nil, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			defer e.Remove(context.Background(), c.ID)
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
			defer cancel()
			if err := e.API.ContainerStart(ctx, c.ID, container.StartOptions{}); err == nil || !strings.Contains(err.Error(), "dial the daemon container") {
				t.Errorf("start with a volume of nobody's: %v", err)
			}
		})
	}
}

func TestNoProgram(t *testing.T) {
	e, err := engine.Open(t.Context(), engine.Options{Workspace: "t-none", Version: "1", Image: "none", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Skipf("needs a Docker Engine: %v", err)
	}
	defer e.Close()
	p := New(e, Options{Binary: "/none", Version: "none", Way: Managed, Log: slog.New(slog.DiscardHandler), Go: func(f func(context.Context)) { go f(context.Background()) }})
	v, err := p.Ensure(t.Context(), command.None{})
	if err != nil || v.Kind != "" || !strings.Contains(v.Reason, "read the volume plugin's program") && !strings.Contains(v.Reason, "berth-telemount") {
		t.Errorf("%+v, %v", v, err)
	}
}
