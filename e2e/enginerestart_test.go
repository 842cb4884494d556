package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The engine is restarted, and killed, under an engagement with volumes: nothing
// hangs, the cluster restores itself, and what is left on the engine is of no
// trouble to the next connection and gone with it.
func TestEngineRestart(t *testing.T) {
	applyVols(t)
	m := rig.NewMachine(t, cluster, probeImage, "serve", ":1")
	ctl := m.Ctl
	m.Load("berth:"+rig.Lines[struct{ Ctl string }](t, ctl.Must(t, "version", "--output", "json").Stdout)[0].Ctl, probeImage)
	mounted, _ := m.Run("grep", "fuse.berth", "/proc/self/mounts") // by another engine, as this machine began
	quick := func(args ...string) string {
		t.Helper()
		out, err := m.Run(append([]string{"timeout", "10", "docker"}, args...)...)
		if err != nil {
			t.Errorf("docker %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(out)
	}
	for _, c := range []struct {
		name   string
		signal syscall.Signal
	}{{"restarted", syscall.SIGTERM}, {"killed", syscall.SIGKILL}} {
		t.Run(c.name, func(t *testing.T) {
			ctl.Must(t, "connect", "--docker")
			p := ctl.Start(t, "replace", "vols", "--container", "app", "--wait", "none", "--docker-run", "--", probeImage, "loop", "/pv/restart", "600")
			rig.Eventually(t, 90*time.Second, "the engagement is active", func(context.Context) (bool, string) {
				if !p.Running() {
					t.Fatal(p.Output())
				}
				return strings.Contains(p.Output(), "  active"), p.Output()
			})
			m.StopDocker(c.signal)
			if out, err := m.Run("timeout", "10", "sh", "-c", `awk '$3 == "fuse.berth" {print $2}' /proc/self/mounts | while read -r d; do ls "$d" >/dev/null 2>&1; done`); err != nil {
				t.Errorf("a mount hangs: %v %s", err, out)
			}
			m.StartDocker()
			up := time.Now()
			quick("ps", "-a")
			quick("volume", "ls")
			r := p.Wait(t, time.Minute)
			if r.Code == 0 || !strings.Contains(r.Stderr, "Docker Engine") || !strings.Contains(r.Stderr, "try: ctl connect --docker, then this command again") {
				t.Errorf("want it said why it has ended, and what to do: %v", r)
			}
			ctl.Must(t, "connect", "--docker")
			if out := quick("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}"); out != "telemount:latest true" {
				t.Errorf("the plugin: %q", out)
			}
			t.Logf("usable %v after the engine's start", time.Since(up))
			rig.Eventually(t, time.Minute, "the cluster has restored itself", func(ctx context.Context) (bool, string) {
				l, err := cluster.Kube.CoordinationV1().Leases("default").List(ctx, metav1.ListOptions{LabelSelector: "berth.dev/kind"})
				return err == nil && len(l.Items) == 0, "leases are left"
			})
			if got, err := cluster.Exec(t.Context(), "default", podOf(t, "vols"), "app", "/probe", "cat", "/data/from-init"); err != nil || got != "hello" {
				t.Errorf("the workload's own container: %q, %v", got, err)
			}
			r = ctl.Must(t, "ingest", "frontend-v1", "--docker-run", "--", probeImage, "cat", "/etc/frontend-secret/token")
			if !strings.Contains(r.Stdout, "canary") {
				t.Errorf("%v", r)
			}
			ctl.Must(t, "quit", "--all")
			// By name: an engine that is restarted keeps one without, now and then, that it has removed.
			for _, list := range [][]string{{"ps", "-a", "--format", "{{.Names}}"}, {"volume", "ls", "-q"}, {"network", "ls", "-q", "--filter", rig.Workspace}, {"plugin", "ls", "-q"}} {
				if out := quick(list...); out != "" {
					t.Errorf("docker %s: %s is left", strings.Join(list, " "), out)
				}
			}
			if out, _ := m.Run("grep", "fuse.berth", "/proc/self/mounts"); out != mounted {
				t.Errorf("mounted are %s", out)
			}
		})
	}
	t.Run("a socket plugin is removed by who asks for it", func(t *testing.T) {
		const name = "berth-telemount"
		quick("run", "-d", "--name", name, "--label", "berth.dev/component=telemount", probeImage, "serve", ":1")
		ctl.Must(t, "connect", "--docker")
		refused(t, ctl, 1, []string{"in use", "ctl quit --all"}, "gc", "--plugin")
		for _, args := range [][]string{{"quit", "--all"}, {"gc"}} {
			if r := ctl.Must(t, args...); !strings.Contains(r.Stderr, name+" stays") || !strings.Contains(r.Stderr, "ctl gc --plugin") {
				t.Errorf("want it said that the plugin stays: %v", r)
			}
		}
		if r := ctl.Must(t, "gc", "--plugin"); !strings.Contains(r.Stderr, "restart the Docker Engine") || quick("ps", "-a", "--format", "{{.Names}}") != "" {
			t.Errorf("want it removed, and what to do: %v", r)
		}
	})
}
