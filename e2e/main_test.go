// Package e2e tests Berth as users have it: the built ctl, the built images, the
// real Docker Engine and the real cluster of $KUBECONFIG.
//
// The tests share one installation in the cluster and run one after another;
// each begins and ends with no workspace.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// probeImage is the image of e2e/probe, on the engine and in the dev cluster.
const probeImage = "berth-e2e-probe:latest"

var cluster *rig.Cluster // set once by TestMain, read by all tests

func TestMain(m *testing.M) {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set up:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := tearDown(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "e2e: tear down:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var err error
	if cluster, err = rig.Open(); err != nil {
		return err
	}
	if err := buildProbe(); err != nil {
		return err
	}
	root := os.Getenv("BERTH_ROOT")
	if err := cluster.Apply(ctx, filepath.Join(root, "examples/manifests/example.yaml")); err != nil {
		return err
	}
	if err := cluster.Apply(ctx, "testdata/echo.yaml"); err != nil {
		return err
	}
	for _, d := range []string{"frontend-v1", "backend", "echo"} {
		if err := cluster.Settle(ctx, "default", d); err != nil {
			return err
		}
	}
	_ = command(ctx, os.Getenv("BERTH_CTL"), "quit", "--all") // whatever an earlier run left
	if err := command(ctx, os.Getenv("BERTH_CTL"), "install"); err != nil {
		return err
	}
	return command(ctx, os.Getenv("BERTH_CTL"), "quit", "--all")
}

func tearDown() error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if err := command(ctx, os.Getenv("BERTH_CTL"), "uninstall"); err != nil {
		return err
	}
	if err := command(ctx, os.Getenv("BERTH_CTL"), "quit", "--all"); err != nil {
		return err
	}
	for _, f := range []string{"testdata/echo.yaml", "testdata/volumes.yaml"} {
		if err := cluster.Delete(ctx, f); err != nil {
			return err
		}
	}
	return cluster.Delete(ctx, filepath.Join(os.Getenv("BERTH_ROOT"), "examples/manifests/example.yaml"))
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return nil
}

// buildProbe builds the probe's image and brings it to the dev cluster. A
// cluster given by KUBECONFIG has to have it: say how.
func buildProbe() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "berth-probe")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := command(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "probe"), "./probe"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY probe /probe\nENTRYPOINT [\"/probe\"]\n"), 0o644); err != nil {
		return err
	}
	if err := command(ctx, "docker", "build", "-q", "-t", probeImage, dir); err != nil {
		return err
	}
	if load := os.Getenv("BERTH_LOAD"); load != "" { // how an image gets into this cluster
		return command(ctx, "sh", "-c", load+" "+probeImage)
	}
	return nil
}
