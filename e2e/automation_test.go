package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/e2e/rig"
)

// script runs an example of docs/automation.md as a user does: with ctl in the
// PATH, in examples/.
func script(t *testing.T, ctl *rig.Ctl, argv ...string) (out string, code int) {
	t.Helper()
	root := os.Getenv("BERTH_ROOT")
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = filepath.Join(root, "examples")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+ctl.Kubeconfig, "PATH="+filepath.Dir(ctl.Path)+":"+filepath.Join(root, "bin/tools")+":"+os.Getenv("PATH"))
	b, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		code = ee.ExitCode()
	case err != nil:
		t.Fatalf("%s: %v", argv[0], err)
	}
	t.Logf("%s: exit %d", strings.Join(argv, " "), code)
	return string(b), code
}

func TestAutomation(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	const answersV2 = `ctl curl -sS http://frontend-v1 | grep -q "frontend v2"`
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "Dockerfile"), []byte("FROM "+probeImage+"\nCMD [\"exit\", \"4\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		argv []string
		code int
	}{
		{"the test passes", []string{"frontend-v1", "images/frontend-v2", "sh", "-c", answersV2}, 0},
		{"the test's exit code", []string{"frontend-v1", "images/frontend-v2", "sh", "-c", answersV2 + " && exit 7"}, 7},
		{"no image", []string{"frontend-v1", "no-such-context", "true"}, 100},
		{"a handler that exits", []string{"frontend-v1", broken, "true"}, 101},
		{"refused", []string{"no-such-workload", "images/frontend-v2", "true"}, 101},
	} {
		t.Run("shell: "+c.name, func(t *testing.T) {
			out, code := script(t, ctl, append([]string{"automation/build-and-test.sh"}, c.argv...)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d:\n%s", code, c.code, out)
			}
			restored(t)
		})
	}
	t.Run("shell: react", func(t *testing.T) {
		out, code := script(t, ctl, "automation/react.sh", "--since", "start")
		if code != 0 || !strings.Contains(out, " active: 8080") || !strings.Contains(out, " ended: leave") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})
	t.Run("nats", func(t *testing.T) {
		const exits = "berth-e2e-exits"
		rig.Docker(t, "build", "-q", "-t", exits, broken)
		defer rig.Docker(t, "rmi", "-f", exits)
		for _, c := range []struct {
			workload, image, test string
			code                  int
			says                  string
		}{
			{"frontend-v1", "frontend-v2", "true", 0, ""},
			{"frontend-v1", "frontend-v2", "exit 7", 7, ""},
			{"frontend-v1", exits, "true", 101, "handler exited"},
			{"no-such-workload", "frontend-v2", "true", 100, "no-such-workload"},
		} {
			out, code := script(t, ctl, "automation/nats.sh", c.workload, c.image, "sh", "-c", c.test)
			if code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, want %d and %q:\n%s", code, c.code, c.says, out)
			}
			restored(t)
		}
	})
	t.Run("Go", func(t *testing.T) {
		dock := filepath.Join(t.TempDir(), "dock")
		if err := command(t.Context(), "go", "-C", filepath.Join(os.Getenv("BERTH_ROOT"), "examples/automation"), "build", "-o", dock, "./cmd/dock"); err != nil {
			t.Fatal(err)
		}
		for test, want := range map[string]int{answersV2: 0, answersV2 + " && exit 9": 9} {
			if out, code := script(t, ctl, dock, "frontend-v1", "frontend-v2", "sh", "-c", test); code != want {
				t.Errorf("exit code %d, want %d:\n%s", code, want, out)
			}
			restored(t)
		}
		out, code := script(t, ctl, dock, "no-such-workload", "frontend-v2", "true")
		if code != 1 || !strings.Contains(out, "no-such-workload") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})
}
