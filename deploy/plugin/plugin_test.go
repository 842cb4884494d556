package plugin

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestInstall installs the real binary on the real engine, twice, and removes it.
func TestInstall(t *testing.T) {
	if c, err := net.Dial("unix", "/var/run/docker.sock"); err != nil {
		t.Skip("needs a Docker engine")
	} else {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e := Unix("/var/run/docker.sock")
	s, err := e.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Installed {
		t.Skip("the plugin is installed already, by somebody who uses it")
	}
	bin := filepath.Join(t.TempDir(), "telemount")
	b := exec.Command("go", "build", "-o", bin, ".")
	b.Dir, b.Env = "../../services/telemount", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := b.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		if s, err := e.State(context.Background()); err != nil || s.Installed {
			t.Errorf("after removal: %+v %v", s, err)
		}
	})
	for range 2 {
		if err := e.Install(ctx, data); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := e.State(ctx); err != nil || !s.Enabled {
		t.Errorf("after installation: %+v %v", s, err)
	}
}

func TestNoEngine(t *testing.T) {
	if err := Unix(t.TempDir()+"/none").Install(t.Context(), nil); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
}
