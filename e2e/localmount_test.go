package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// localProbe is the probe as a program of this machine.
func localProbe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	if err := command(t.Context(), "go", "build", "-trimpath", "-o", path, "./probe"); err != nil {
		t.Fatal(err)
	}
	return path
}

// mounts are the mount points of remote volumes on this machine that are a
// command's.
func mounts(t *testing.T) (all []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); strings.HasPrefix(f[0], "berth-") && f[2] == "fuse.berth" {
			all = append(all, f[1])
		}
	}
	return all
}

// sorted are lines, each once.
func sorted(s string) string {
	return strings.Join(slices.Compact(slices.Sorted(strings.Lines(s))), "")
}

func unmounted(t *testing.T, dir string) {
	t.Helper()
	rig.Eventually(t, 10*time.Second, "nothing is mounted, and the folder is gone", func(context.Context) (bool, string) {
		_, err := os.Lstat(dir)
		left := mounts(t)
		return errors.Is(err, fs.ErrNotExist) && len(left) == 0, strings.Join(left, " ")
	})
}

// A command of this machine has the files that the pod has, below BERTH_ROOT, and
// what it writes arrives. Nothing of it is left, however it ends.
func TestLocalMounts(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	probe, pod := localProbe(t), ""
	there := func(args ...string) string {
		t.Helper()
		out, err := cluster.Exec(t.Context(), "default", pod, "aside", append([]string{"/probe"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := append(slices.Clone(dirs), "/etc/one.conf")
	const work = `echo "wrote $("$1" write "$BERTH_ROOT/pv/local" 104857600)"
		for d in $(echo "$BERTH_MOUNTS" | tr : ' '); do "$1" tree "$BERTH_ROOT$d" | sed "s|$BERTH_ROOT||"; done >"$2"
		echo "root $BERTH_ROOT"
		exec sleep 1000`
	found := filepath.Join(t.TempDir(), "found")
	p := ctl.Start(t, "replace", "vols", "--container", "app", "--wait", "none", "--", "sh", "-c", work, "sh", probe, found)
	rig.Eventually(t, 2*time.Minute, "the command has done its work", func(context.Context) (bool, string) {
		if !p.Running() {
			t.Fatal(p.Output())
		}
		return strings.Contains(p.Output(), "\nroot ") && strings.Contains(p.Output(), "active"), p.Output()
	})
	pod = podOf(t, "vols")
	var want strings.Builder
	for _, d := range all {
		want.WriteString(there("tree", d))
	}
	word := func(name string) string {
		_, rest, _ := strings.Cut("\n"+p.Output(), "\n"+name+" ")
		w, _, _ := strings.Cut(rest, "\n")
		return w
	}
	b, err := os.ReadFile(found)
	if got := sorted(string(b)); err != nil || got != sorted(want.String()) || !strings.Contains(got, "/data/nested") {
		t.Errorf("%v: the command has\n%s\nthe pod has\n%s", err, b, want.String())
	}
	if up, down := word("wrote"), strings.TrimSpace(there("hashof", "/pv/local")); up != down {
		t.Errorf("the command wrote %s, the pod reads %s", up, down)
	}
	dir := word("root")
	if m := mounts(t); !slices.Equal(m, []string{dir}) {
		t.Errorf("mounted are %v, and BERTH_ROOT is %s", m, dir)
	}
	ctl.Must(t, "leave", "vols")
	if r := p.Wait(t, time.Minute); r.Code != 143 {
		t.Errorf("want the command's exit code 143: %v", r)
	}
	unmounted(t, dir)

	own := filepath.Join(t.TempDir(), "own")
	for what, victim := range map[string]func(p *rig.Proc) error{
		"ctl is killed": func(p *rig.Proc) error { return p.Signal(os.Kill) },
		"what mounts is killed": func(*rig.Proc) error {
			return command(t.Context(), "sh", "-c", `for p in /proc/[0-9]*; do
				case $(tr '\0' ' ' <"$p/cmdline" 2>/dev/null) in "telemount mount --dir $1 ") kill -9 "${p#/proc/}";; esac
			done`, "sh", own)
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := ctl.Start(t, "ingest", "frontend-v1", "--mount", own, "--", "sh", "-c", `exec 3<"$BERTH_ROOT/etc/frontend-secret/token"; echo ready; exec sleep 100`)
			rig.Eventually(t, time.Minute, "it runs", func(context.Context) (bool, string) { return strings.Contains(p.Output(), "ready"), p.Output() })
			if out := command(t.Context(), "sh", "-c", `touch "$1/data/x"`, "sh", own); out == nil || !strings.Contains(out.Error(), "Read-only") {
				t.Errorf("an ingest may write: %v", out)
			}
			if err := victim(p); err != nil {
				t.Fatal(err)
			}
			unmounted(t, own)
			ctl.Run(t, "leave", "frontend-v1")
			p.Wait(t, time.Minute)
		})
	}
	if err := os.WriteFile(own, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, ctl, 2, []string{"--mount " + own}, "ingest", "frontend-v1", "--mount", own, "--", "true")
}
