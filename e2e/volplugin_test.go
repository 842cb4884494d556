package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// telemount is killed while the handler reads and writes: nothing hangs, and the
// handler, whose mounts are dead for good, ends with the cause, as does no other.
// What it had is cleaned up, and the next one has its volumes.
func TestVolumePluginKilled(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := engageVols(t, ctl)
	// Their volumes are not the plugin's.
	var others []*rig.Proc
	for _, args := range [][]string{
		{"--", "sh", "-c", `while sleep 0.1; do cat "$BERTH_ROOT/etc/frontend-secret/token" >/dev/null || exit 1; done`},
		{"--mount", "false", "--docker-run", "--", probeImage, "serve", ":1"},
	} {
		others = append(others, begin(t, ctl, append([]string{"ingest", "frontend-v1"}, args...)...))
	}
	pid := pluginPID(t)
	looped := v.loops(t, "/pv/killed", "100")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	dockerIsQuick(t)
	if r := v.p.Wait(t, 30*time.Second); r.Code != 1 || !strings.Contains(r.Stderr, "the volume plugin was killed") || !strings.Contains(r.Stderr, "try: ctl doctor") {
		t.Errorf("want it said what has ended it, and what helps: %v", r)
	}
	t.Logf("ended after %v; the handler's loop: %s", time.Since(began).Round(time.Millisecond), <-looped)
	dockerIsQuick(t)
	rig.Eventually(t, 10*time.Second, "its volumes are unmounted and gone", func(context.Context) (bool, string) {
		m, _ := os.ReadFile("/proc/self/mounts")
		l := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace)
		return !strings.Contains(string(m), "/propagated-mount/") && len(l) == 0, fmt.Sprint(l)
	})
	if now := pluginPID(t); now == pid {
		t.Error("the plugin was not killed")
	}
	if got, err := cluster.Exec(t.Context(), "default", podOf(t, "vols"), "app", "/probe", "cat", "/data/from-init"); err != nil || got != "hello" {
		t.Errorf("the workload's own container: %q, %v", got, err)
	}
	v = engageVols(t, ctl)
	if got := v.here(t, "cat", "/data/from-init"); got != "hello" {
		t.Errorf("%q", got)
	}
	for _, p := range others {
		if !p.Running() {
			t.Errorf("an engagement without volumes of the plugin's has ended: %s", p.Output())
		}
	}
}

// Twenty volumes of the plugin's are mounted and unmounted by the engine, again
// and again, ten containers at once: nothing of it is left in the mount table, in
// the plugin's state or in its process. BERTH_E2E_ROUNDS=100 is the whole of it.
func TestVolumesMountedOften(t *testing.T) {
	const containers = 10
	rounds := 5
	if s := os.Getenv("BERTH_E2E_ROUNDS"); s != "" {
		rounds = rig.Number(t, s)
	}
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := engageVols(t, ctl)
	handlers := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace)
	var options map[string]string
	if err := json.Unmarshal([]byte(strings.Join(rig.Docker(t, "volume", "inspect", "--format", "{{json .Options}}", handlers[0]), " ")), &options); err != nil {
		t.Fatal(err)
	}
	paths := []string{"/data", "/etc/vols", "/etc/vols-secret", "/etc/down"}
	pid := pluginPID(t)
	var all []string
	want := make([]string, containers)
	t.Cleanup(func() {
		for i := range containers {
			_ = exec.Command("docker", "rm", "-f", fmt.Sprint("often-", i)).Run()
		}
		for _, name := range all {
			_ = exec.Command("docker", "volume", "rm", "-f", name).Run()
		}
	})
	for i := range containers {
		args := []string{"create", "--name", fmt.Sprint("often-", i)}
		here := []string{"tree"}
		for j := range 2 {
			name := fmt.Sprintf("often-%d-%d", i, j)
			options["path"] = paths[(2*i+j)%len(paths)]
			create := []string{"volume", "create", "-d", "telemount:latest"}
			for k, o := range options {
				create = append(create, "-o", k+"="+o)
			}
			rig.Docker(t, append(create, name)...)
			all = append(all, name)
			args = append(args, "-v", name+":"+options["path"]+":nocopy")
			here = append(here, options["path"])
		}
		want[i] = v.here(t, here...)
		rig.Docker(t, append(append(args, probeImage), here...)...)
	}
	round := func(n int) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range containers {
			wg.Go(func() {
				for range n {
					got, err := exec.CommandContext(t.Context(), "docker", "start", "-a", fmt.Sprint("often-", i)).CombinedOutput()
					if err != nil || string(got) != want[i] {
						t.Errorf("container %d: %v: it has\n%s\nthe handler has\n%s", i, err, got, want[i])
						return
					}
				}
			})
		}
		wg.Wait()
	}
	// uses are those that the plugin has noted.
	uses := func() (volumes, uses int) {
		t.Helper()
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/mnt/volumes/state.json", pid))
		if err != nil {
			t.Fatal(err)
		}
		var state map[string]struct{ IDs map[string]bool }
		if err := json.Unmarshal(b, &state); err != nil {
			t.Fatal(err)
		}
		for _, s := range state {
			uses += len(s.IDs)
		}
		return len(state), uses
	}
	round(1) // what is made once is there from now on
	before := processOf(t, pid)
	began := time.Now()
	round(rounds)
	t.Logf("%d times %d volumes in %v", rounds, len(all), time.Since(began).Round(time.Second))
	rig.Eventually(t, 20*time.Second, "the plugin is as before", func(context.Context) (bool, string) {
		now := processOf(t, pid)
		return now.files <= before.files && now.threads <= before.threads+4 && now.kB <= before.kB+16<<10 && now.mounts == before.mounts,
			fmt.Sprintf("before %+v, now %+v", before, now)
	})
	t.Logf("the plugin before %+v, after %+v", before, processOf(t, pid))
	if _, n := uses(); n != len(handlers) {
		t.Errorf("the plugin notes %d uses, want the handler's %d", n, len(handlers))
	}
	for i := range containers {
		rig.Docker(t, "rm", fmt.Sprint("often-", i))
	}
	rig.Docker(t, append([]string{"volume", "rm"}, all...)...)
	if n, _ := uses(); n != len(handlers) {
		t.Errorf("the plugin has %d volumes, want the handler's %d", n, len(handlers))
	}
	if m, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(m), "/often-") {
		t.Errorf("still mounted on the machine: %v\n%s", err, m)
	}
	if now := pluginPID(t); now != pid {
		t.Error("the plugin is another one")
	}
	ctl.Must(t, "leave", "vols")
	v.p.Wait(t, time.Minute)
	if n, m := uses(); n+m > 0 {
		t.Errorf("without any handler the plugin has %d volumes and %d uses", n, m)
	}
}

// process is what one holds.
type process struct{ files, threads, kB, mounts int }

func processOf(t *testing.T, pid int) (p process) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile(filepath.Join(dir, "mounts"))
	if err != nil {
		t.Fatal(err)
	}
	return process{
		files: len(fds), threads: rig.Number(t, statusOf(dir, "Threads")), kB: rig.Number(t, statusOf(dir, "VmRSS")),
		mounts: strings.Count(string(mounts), " fuse.berth "),
	}
}

// pluginPID is the process of this engine's volume plugin, whatever else lies
// around: the child of the shim that has its id, or a container's.
func pluginPID(t *testing.T) int {
	t.Helper()
	if out, err := exec.Command("docker", "inspect", "--format", "{{.State.Pid}}", "berth-telemount").Output(); err == nil {
		return rig.Number(t, string(out))
	}
	id := rig.Docker(t, "plugin", "inspect", "--format", "{{.ID}}", "telemount:latest")[0]
	shims := regexp.MustCompile(`containerd-shim.*\x00-id\x00` + id + `\x00`)
	var pid int
	rig.Eventually(t, 30*time.Second, "the plugin's process", func(context.Context) (bool, string) {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			b, _ := os.ReadFile(f)
			shim, err := os.ReadFile(filepath.Join("/proc", statusOf(filepath.Dir(f), "PPid"), "cmdline"))
			if err == nil && strings.HasPrefix(string(b), "/telemount\x00") && shims.Match(shim) {
				pid = rig.Number(t, filepath.Base(filepath.Dir(f)))
				return true, ""
			}
		}
		return false, "of plugin " + id + ": is its engine on this machine?"
	})
	return pid
}

// statusOf reads a line of what the kernel says of a process, by its directory in
// /proc.
func statusOf(dir, key string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "status"))
	_, rest, _ := strings.Cut(string(b), "\n"+key+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}
