package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// The example of the reference document, verbatim but for the tool's name, run
// in examples/: build, and dock what was built.
func TestDockerBuild(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	ctl.Dir = filepath.Join(os.Getenv("BERTH_ROOT"), "examples")
	connect(t, ctl)
	t.Cleanup(func() { rig.Docker(t, "rmi", "-f", "mytag:latest") })
	p := ctl.Start(t, "replace", "frontend-v1", "--docker-build", "images/frontend-v2", "--docker-build-opt", "tag=mytag", "--", "IMAGE")
	answers(t, 2*time.Minute, "frontend v2")
	built := rig.Docker(t, "images", "-q", "--no-trunc", "mytag")
	runs := rig.Docker(t, "inspect", "-f", "{{.Image}}", handlerOf(t, "frontend-v1"))
	if len(built) != 1 || runs[0] != built[0] {
		t.Errorf("the handler runs %v, built was %v", runs, built)
	}
	ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	restored(t)
}

// A build that fails prints its output, exits 1, and has touched nothing.
func TestDockerBuildFails(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	before := podNames(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY no-such-file /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, ctl, 1, []string{"no-such-file"}, "replace", "frontend-v1", "--docker-build", dir, "--", "IMAGE")
	refused(t, ctl, 2, []string{"IMAGE"}, "replace", "frontend-v1", "--docker-build", dir, "--", "frontend-v2")
	refused(t, ctl, 2, []string{"buildarg", "build-arg"}, "replace", "frontend-v1", "--docker-build", dir, "--docker-build-opt", "buildarg=A=B", "--", "IMAGE")
	refused(t, ctl, 1, []string{"no-such-dir"}, "replace", "frontend-v1", "--docker-build", "no-such-dir", "--", "IMAGE")
	if now := podNames(t); now != before {
		t.Errorf("a failed build touched the pods: %s, now %s", strings.TrimSpace(before), now)
	}
}

// Ctrl-C while it builds: the engine's build is stopped, nothing is left, and the
// cluster has not been touched.
func TestDockerBuildInterrupted(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	pods := podNames(t)
	images := rig.Docker(t, "images", "-aq", "--no-trunc")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+probeImage+"\nRUN [\"/probe\", \"stubborn\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := ctl.Start(t, "replace", "frontend-v1", "--docker-build", dir)
	rig.Eventually(t, time.Minute, "the step runs", func(context.Context) (bool, string) {
		return strings.Contains(p.Output(), "stubborn"), p.Output()
	})
	if err := p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if r := p.Wait(t, 30*time.Second); r.Code != 130 || !strings.Contains(r.Stderr, "has been undone") {
		t.Errorf("want exit code 130: %v", r)
	}
	rig.Eventually(t, 20*time.Second, "the step is stopped", func(context.Context) (bool, string) {
		// Of the classic builder a container, of BuildKit a process of the engine's.
		left, _ := exec.Command("pgrep", "-f", "^/probe stubborn").Output()
		return len(left) == 0, string(left)
	})
	if now := podNames(t); now != pods {
		t.Errorf("an interrupted build touched the pods: %s, now %s", pods, now)
	}
	if now := rig.Docker(t, "images", "-aq", "--no-trunc"); len(now) != len(images) {
		t.Errorf("%d images, %d before", len(now), len(images))
	}
}
