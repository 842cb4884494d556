package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// vols is the workload of testdata/volumes.yaml, engaged.
type vols struct {
	t   *testing.T
	ctl *rig.Ctl
	p   *rig.Proc
	pod string
}

// dirs are the mount paths of its container that are folders, nested ones aside.
var dirs = []string{"/data", "/etc/vols", "/etc/vols-secret", "/pv", "/host", "/small", "/etc/down", "/sub", "/var/run/secrets/kubernetes.io/serviceaccount"}

// applyVols makes sure of the workload; TestMain removes it.
func applyVols(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := cluster.Apply(ctx, "testdata/volumes.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Settle(ctx, "default", "vols"); err != nil {
		t.Fatal(err)
	}
}

// podOf is the running pod of the workload.
func podOf(t *testing.T, app string) string {
	t.Helper()
	var name string
	rig.Eventually(t, time.Minute, "one running pod of "+app, func(ctx context.Context) (bool, string) {
		l, err := cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return false, err.Error()
		}
		n := 0
		for _, p := range l.Items {
			if p.DeletionTimestamp == nil && rig.Ready(&p) {
				name = p.Name
				n++
			}
		}
		return n == 1, fmt.Sprintf("%d running of %d", n, len(l.Items))
	})
	return name
}

// engageVols replaces the container app by the probe.
func engageVols(t *testing.T, ctl *rig.Ctl, flags ...string) *vols {
	t.Helper()
	args := append([]string{"replace", "vols", "--container", "app"}, flags...)
	v := &vols{t: t, ctl: ctl, p: ctl.Start(t, append(args, "--docker-run", "--", probeImage, "serve", ":8080")...)}
	v.active()
	v.pod = podOf(t, "vols")
	return v
}

func (v *vols) active() {
	v.t.Helper()
	rig.Eventually(v.t, 90*time.Second, "the engagement is active", func(context.Context) (bool, string) {
		if !v.p.Running() {
			v.t.Fatalf("it ended:\n%s", v.p.Output())
		}
		return strings.Contains(v.p.Output(), "active"), v.p.Output()
	})
}

// exec runs the probe in the handler; its output and its error.
func (v *vols) exec(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ids, err := exec.CommandContext(ctx, "docker", "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=handler", "--filter", "name=vols").Output()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "docker", append([]string{"exec", strings.TrimSpace(string(ids)), "/probe"}, args...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s in the handler: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (v *vols) here(t *testing.T, args ...string) string {
	t.Helper()
	out, err := v.exec(5*time.Minute, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// there runs the probe beside the agent, in the pod.
func (v *vols) there(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out, err := cluster.Exec(ctx, "default", v.pod, "aside", append([]string{"/probe"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// environment drops from `probe environ` what is the machine's or Berth's own.
func environment(s string) string {
	var kept []string
	for l := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
		k, _, _ := strings.Cut(l, " ")
		if !slices.Contains([]string{"HOME", "PATH", "HOSTNAME"}, k) && !strings.HasPrefix(k, "BERTH_") {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\n")
}

// The handler has the volumes and the environment of the container in whose
// place it stands.
func TestVolumes(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	original, err := cluster.Exec(t.Context(), "default", podOf(t, "vols"), "app", "/probe", "environ")
	if err != nil {
		t.Fatal(err)
	}
	connect(t, ctl)
	v := engageVols(t, ctl)

	t.Run("same environment", func(t *testing.T) {
		if got, want := environment(v.here(t, "environ")), environment(original); got != want {
			t.Errorf("the handler has\n%s\nthe container has\n%s", got, want)
		}
	})
	t.Run("same files", func(t *testing.T) {
		args := append([]string{"tree"}, dirs...)
		if got, want := v.here(t, args...), v.there(t, args...); got != want {
			t.Errorf("the handler has\n%s\nthe pod has\n%s", got, want)
		} else if !strings.Contains(got, "/data/from-init") || !strings.Contains(got, "serviceaccount/..data -> ") {
			t.Errorf("something is missing in both:\n%s", got)
		}
		if got := v.here(t, "cat", "/etc/one.conf"); got != "a = 1\n" {
			t.Errorf("the single file holds %q", got)
		}
	})
	t.Run("the API server with the pod's token", func(t *testing.T) {
		if got := strings.TrimSpace(v.here(t, "whoami")); got != "system:serviceaccount:default:default" {
			t.Errorf("it takes the handler for %q", got)
		}
	})
	t.Run("changes are seen on both sides", func(t *testing.T) {
		v.there(t, "put", "/data/nested/from-pod", "1")
		rig.Eventually(t, time.Minute, "the handler sees what the pod wrote", func(context.Context) (bool, string) {
			got, err := v.exec(time.Minute, "cat", "/data/nested/from-pod")
			return err == nil && got == "1", fmt.Sprint(got, err)
		})
		v.here(t, "put", "/sub/from-handler", "2")
		if got := v.there(t, "cat", "/data/deep/er/from-handler"); got != "2" {
			t.Errorf("%q", got)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		for _, d := range []string{"/etc/vols", "/etc/vols-secret", "/host", "/etc/down", "/var/run/secrets/kubernetes.io/serviceaccount"} {
			if out, err := v.exec(time.Minute, "put", d+"/x", "x"); err == nil || !strings.Contains(out, "read-only file system") {
				t.Errorf("%s: %v %s", d, err, out)
			}
		}
	})
	t.Run("large files, both ways", func(t *testing.T) {
		size := "268435456"
		if s := os.Getenv("BERTH_E2E_BIG"); s != "" {
			size = s
		}
		began := time.Now()
		up := v.here(t, "write", "/pv/big", size)
		t.Logf("written in %v", time.Since(began))
		if got := v.there(t, "hashof", "/pv/big"); got != up {
			t.Errorf("the handler wrote %s, the pod reads %s", up, got)
		}
		down := v.there(t, "write", "/pv/big", size)
		began = time.Now()
		if got := v.here(t, "hashof", "/pv/big"); got != down {
			t.Errorf("the pod wrote %s, the handler reads %s", down, got)
		}
		t.Logf("read in %v", time.Since(began))
	})
	t.Run("a full disk", func(t *testing.T) {
		if got := v.here(t, "fill", "/small/f", "33554432"); !strings.HasPrefix(got, "ENOSPC") {
			t.Error(got)
		}
	})
	t.Run("bad volumes", func(t *testing.T) { badVolumes(t, v) })
	t.Run("no secret anywhere else", func(t *testing.T) { noCanary(t, v) })
	t.Run("volumes end with the handler", func(t *testing.T) {
		ctl.Must(t, "leave", "vols")
		v.p.Wait(t, time.Minute)
		if l := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
		if m, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(m), "fuse.berth") {
			t.Error("something is still mounted")
		}
		noCanaryLeft(t)
	})
}

// badVolumes are volumes made by hand that the plugin refuses, or cannot mount:
// it says why, and gives nothing of another engagement, or of what is no volume.
func badVolumes(t *testing.T, v *vols) {
	t.Helper()
	good := map[string]string{}
	name := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace)[0]
	if err := json.Unmarshal([]byte(strings.Join(rig.Docker(t, "volume", "inspect", "--format", "{{json .Options}}", name), " ")), &good); err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0", len(good["pin"]))
	for _, x := range []struct{ option, value, want string }{
		{"colour", "red", "unknown option"},
		{"path", "/data/../etc", "absolute and clean"},
		{"timeout", "1ns", "want 100ms to 1h"},
		{"path", "/etc", "no such file or directory"}, // no mount, though a folder of the container's
		{"path", "/data/nested/..data", "no such file or directory"},
		{"path", "/etc/one.conf", "single file"},
		{"engagement", "e-of-another", "no engagement e-of-another"},
		{"pin", other, "key"},
	} {
		t.Run(x.option+"="+x.value, func(t *testing.T) {
			create := []string{"volume", "create", "-d", "telemount:latest"}
			for k, o := range good {
				if k != x.option {
					create = append(create, "-o", k+"="+o)
				}
			}
			const bad = "berth-e2e-bad"
			t.Cleanup(func() { _ = exec.Command("docker", "volume", "rm", "-f", bad).Run() })
			out, err := exec.Command("docker", append(create, "-o", x.option+"="+x.value, bad)...).CombinedOutput()
			if err == nil {
				out, err = exec.Command("docker", "run", "--rm", "-v", bad+":/x:nocopy", probeImage, "tree", "/x").CombinedOutput()
			}
			if err == nil || !strings.Contains(string(out), x.want) {
				t.Errorf("%v, and it says %q, want %q", err, out, x.want)
			}
		})
	}
	// A symlink that leads out is the handler's to follow, in its own files.
	v.there(t, "link", "/etc/passwd", "/data/out")
	if out, err := v.exec(time.Minute, "cat", "/data/out"); err == nil || !strings.Contains(out, "no such file") {
		t.Errorf("a symlink out of the volume: %q, %v", out, err)
	}
}

// noCanaryLeft looks for the secret's values in the files of an engine of this
// machine when the handler has gone.
func noCanaryLeft(t *testing.T) {
	t.Helper()
	root := rig.Docker(t, "info", "--format", "{{.DockerRootDir}}")[0]
	if _, err := os.Stat(filepath.Join(root, "containers")); err != nil {
		t.Logf("the engine's files are not searched: %v", err)
		return
	}
	for _, value := range []string{canary + "-volume", canary + "-env"} {
		out, err := exec.Command("grep", "-rlF", "--devices=skip", value, filepath.Join(root, "containers"), filepath.Join(root, "plugins"), "/run", "/dev/shm").Output()
		var code *exec.ExitError
		if len(out) > 0 || err != nil && !errors.As(err, &code) {
			t.Errorf("%v: the secret is in %s", err, out)
		}
	}
}

var canary = "canary-7f3a9c" // with what follows in testdata/volumes.yaml, in no binary

// noCanary looks for the secret's values wherever they must not be.
func noCanary(t *testing.T, v *vols) {
	t.Helper()
	if got := v.here(t, "cat", "/etc/vols-secret/password"); !strings.HasPrefix(got, canary) {
		t.Fatalf("the canary is not where it belongs: %q", got)
	}
	look := func(what string, out []byte, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if strings.Contains(string(out), canary) {
			t.Errorf("the secret is in %s", what)
		}
	}
	docker := func(args ...string) ([]byte, error) { return exec.Command("docker", args...).CombinedOutput() }
	handler := handlerOf(t, "vols")
	for _, id := range rig.Docker(t, "ps", "-aq", "--filter", rig.Workspace) {
		if strings.HasPrefix(id, handler) {
			continue
		}
		out, err := docker("inspect", id)
		look("docker inspect of a container of ours", out, err)
		out, err = docker("logs", id)
		look("a log", out, err)
	}
	out, err := docker("inspect", "--format", "{{json .Config.Labels}}{{json .Mounts}}", handler)
	look("the handler's labels and mounts", out, err)
	if vs := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace); len(vs) == 0 {
		t.Error("there are no volumes")
	} else {
		out, err = docker(append([]string{"volume", "inspect"}, vs...)...)
		look("docker volume inspect", out, err)
	}
	r := v.ctl.Must(t, "events", "--since", "1h", "--until", "engagement.active", "--output", "json")
	look("the events", []byte(r.Stdout), nil)
	if !strings.Contains(r.Stdout, "handler-created") {
		t.Errorf("no events were looked at:\n%s", r.Stdout)
	}
	leases, err := cluster.Kube.CoordinationV1().Leases("default").List(t.Context(), metav1.ListOptions{LabelSelector: "berth.dev/kind"})
	if err != nil || len(leases.Items) == 0 {
		t.Fatal(err, len(leases.Items))
	}
	for _, l := range leases.Items {
		look("a lease", []byte(l.String()), nil)
	}
	log, err := cluster.Kube.CoreV1().Pods("default").GetLogs(v.pod, &corev1.PodLogOptions{Container: "app"}).DoRaw(t.Context())
	look("the agent's log", log, err)
}

// The pod goes while the handler writes and reads: calls block, the volume comes
// back with the new pod, and nothing is torn.
func TestVolumeFollowsThePod(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := engageVols(t, ctl)
	done := v.loops(t, "/pv/loop", "20")
	if err := cluster.DeletePods(t.Context(), "default", "app=vols"); err != nil {
		t.Fatal(err)
	}
	out := <-done
	t.Log(out)
	if !strings.Contains(out, "records, longest pause") {
		t.Errorf("the handler saw: %s", out)
	}
	v.pod = podOf(t, "vols")
	if got, want := v.here(t, "hashof", "/pv/loop"), v.there(t, "hashof", "/pv/loop"); got != want {
		t.Errorf("the handler has %s, the pod %s", got, want)
	}
	// What was in the emptyDir is gone with its pod, and that is seen.
	if got, want := v.here(t, "tree", "/data"), v.there(t, "tree", "/data"); got != want {
		t.Errorf("the handler has\n%s\nthe pod has\n%s", got, want)
	}
}

// The pod is away for longer than the volumes wait for it: what blocked fails with
// EIO, an empty directory is never shown, and all works again when it is back.
func TestVolumeWhosePodIsAway(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := engageVols(t, ctl, "--mount-timeout", "2s")
	v.here(t, "put", "/pv/away", "before")
	if err := cluster.Cordon(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Cordon(context.Background(), false) })
	if err := cluster.DeletePods(t.Context(), "default", "app=vols"); err != nil {
		t.Fatal(err)
	}
	// Its processes outlive the object for a moment, and answer.
	for _, call := range [][]string{{"put", "/pv/away", "meanwhile"}, {"tree", "/pv"}} {
		rig.Eventually(t, time.Minute, "a call fails with EIO", func(context.Context) (bool, string) {
			out, err := v.exec(30*time.Second, call...)
			return err != nil && strings.Contains(out, "input/output error"), fmt.Sprint(out, err)
		})
	}
	if err := cluster.Cordon(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	v.pod = podOf(t, "vols")
	rig.Eventually(t, time.Minute, "the handler has its volumes again", func(context.Context) (bool, string) {
		out, err := v.exec(30*time.Second, "put", "/pv/away", "after")
		return err == nil, fmt.Sprint(out, err)
	})
	if got := v.there(t, "cat", "/pv/away"); got != "after" {
		t.Errorf("the pod has %q", got)
	}
}

// dockerIsQuick: what people look at the engine with does not hang.
func dockerIsQuick(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, args := range [][]string{{"ps", "-a"}, {"volume", "ls"}} {
		if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
			t.Errorf("docker %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
}

// vif is killed while the handler uses its volumes: the handler ends, nothing
// stays mounted, nothing hangs.
func TestVolumesWhenVIFIsKilled(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := engageVols(t, ctl)
	looped := v.loops(t, "/pv/killed", "100")
	ids := rig.Docker(t, "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=daemon")
	rig.Docker(t, append([]string{"kill", "--signal", "KILL"}, ids...)...)
	dockerIsQuick(t)
	if r := v.p.Wait(t, 2*time.Minute); r.Code == 0 {
		t.Errorf("want an exit code that tells of the end: %v", r)
	}
	t.Logf("the handler's loop: %s", <-looped)
	rig.Eventually(t, 30*time.Second, "all is unmounted and gone", func(context.Context) (bool, string) {
		dockerIsQuick(t)
		m, _ := os.ReadFile("/proc/self/mountinfo")
		l := rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace)
		return !strings.Contains(string(m), "fuse.berth") && len(l) == 0, fmt.Sprint(l)
	})
}

// loops has the handler write, sync and read records for so many seconds, and
// returns when the first are in the pod, with what will have become of it.
func (v *vols) loops(t *testing.T, file, seconds string) <-chan string {
	t.Helper()
	v.there(t, "put", file, "") // another test's records are none of it
	done := make(chan string, 1)
	go func() {
		out, err := v.exec(2*time.Minute, "loop", file, seconds)
		if err != nil {
			out = err.Error()
		}
		done <- out
	}()
	rig.Eventually(t, time.Minute, "the handler writes", func(ctx context.Context) (bool, string) {
		out, err := cluster.Exec(ctx, "default", v.pod, "aside", "/probe", "hashof", file)
		return err == nil && !strings.HasPrefix(out, "0 "), fmt.Sprint(out, err)
	})
	return done
}

// --mount and --docker-mount.
func TestVolumeFlags(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	for _, x := range []struct {
		name  string
		flags []string
		args  []string
		want  string
		code  int
	}{
		{"none", []string{"--mount", "false"}, []string{"tree", "/data"}, "no such file", 1},
		{"below a folder", []string{"--docker-mount", "/r"}, []string{"cat", "/r/data/from-init"}, "hello", 0},
		{"below a folder, read-only", []string{"--mount", "/r:ro"}, []string{"put", "/r/data/x", "x"}, "read-only file system", 1},
		{"a single file below a folder", []string{"--mount", "/r"}, []string{"cat", "/r/etc/one.conf"}, "a = 1", 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := append([]string{"replace", "vols", "--container", "app", "--wait", "none"}, x.flags...)
			r := ctl.Run(t, append(append(args, "--docker-run", "--", probeImage), x.args...)...)
			if r.Code != x.code || !strings.Contains(r.Stdout+r.Stderr, x.want) {
				t.Errorf("want exit code %d and %q: %v", x.code, x.want, r)
			}
		})
	}
	t.Run("the user's own volume wins", func(t *testing.T) {
		r := ctl.Run(t, "replace", "vols", "--container", "app", "--wait", "none", "--docker-run", "--", "--tmpfs", "/data", probeImage, "cat", "/data/from-init")
		if r.Code != 1 || !strings.Contains(r.Stderr, "no such file") {
			t.Errorf("%v", r)
		}
	})
	for _, bad := range [][]string{{"--mount", "perhaps"}, {"--docker-mount", "r"}, {"--mount", "false", "--docker-mount", "/r"}, {"--mount-timeout", "1ms"}} {
		args := append([]string{"replace", "vols", "--container", "app"}, bad...)
		if r := ctl.Run(t, append(args, "--docker-run", "--", probeImage, "exit", "0")...); r.Code != 2 && r.Code != 1 || !strings.Contains(r.Stderr, bad[0]) {
			t.Errorf("%v: %v", bad, r)
		}
	}
}

// An ingest has environment and volumes too, and may not write to any; an
// intercept may.
func TestVolumesBeside(t *testing.T) {
	applyVols(t)
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	v := &vols{t: t, ctl: ctl, p: ctl.Start(t, "ingest", "vols", "--container", "app", "--docker-run", "--", probeImage, "serve", ":1")}
	v.active()
	v.pod = podOf(t, "vols")
	app := func(args ...string) string {
		out, err := cluster.Exec(t.Context(), "default", v.pod, "app", append([]string{"/probe"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got, want := environment(v.here(t, "environ")), environment(app("environ")); got != want || want == "" {
		t.Errorf("the handler has\n%s\nthe container has\n%s", got, want)
	}
	all := append([]string{"tree"}, slices.DeleteFunc(slices.Clone(dirs), func(d string) bool { return d == "/pv" })...) // other tests leave much there
	if got, want := v.here(t, all...), app(all...); got != want || !strings.Contains(want, "serviceaccount/..data -> ") {
		t.Errorf("the handler has\n%s\nthe container has\n%s", got, want)
	}
	ctl.Must(t, "leave", "vols")
	v.p.Wait(t, time.Minute)
	for _, x := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"ingest", "frontend-v1", "--docker-run", "--", probeImage, "cat", "/etc/frontend-secret/token"}, "not-so-secret-canary", 0},
		{[]string{"ingest", "frontend-v1", "--docker-run", "--", probeImage, "whoami"}, "system:serviceaccount:default:default", 0},
		{[]string{"ingest", "frontend-v1", "--docker-run", "--", probeImage, "put", "/data/x", "x"}, "read-only file system", 1},
		{[]string{"intercept", "frontend-v1", "--port", "8080:http", "--wait", "none", "--docker-run", "--", probeImage, "put", "/data/x", "x"}, "", 0},
		{[]string{"ingest", "frontend-v1", "--docker-run", "--", probeImage, "cat", "/data/x"}, "x", 0},
	} {
		r := ctl.Run(t, x.args...)
		if r.Code != x.code || !strings.Contains(r.Stdout+r.Stderr, x.want) {
			t.Errorf("want exit code %d and %q: %v", x.code, x.want, r)
		}
	}
}
