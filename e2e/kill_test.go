package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// Every process is killed in turn while a replace is active. Afterwards quit
// and a new connect work, nothing of the old remains, and the workload runs its
// own container again, with no client left if the client was what died.
func TestKill(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	engine := func(component string) func(*testing.T, *rig.Proc) {
		return func(t *testing.T, _ *rig.Proc) {
			t.Helper()
			ids := rig.Docker(t, "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component="+component)
			if len(ids) != 1 {
				t.Fatalf("want one %s, have %v", component, ids)
			}
			rig.Docker(t, "kill", "--signal", "KILL", ids[0])
		}
	}
	cases := []struct {
		name string
		kill func(*testing.T, *rig.Proc)
		// resumes: the engagement lives on; otherwise the cluster restores itself
		// with nobody's help.
		resumes bool
	}{
		{"ctl", func(t *testing.T, p *rig.Proc) {
			t.Helper()
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"connector", engine("connector"), false},
		{"runner", engine("runner"), false},
		{"vif", engine("daemon"), false},
		{"manager", func(t *testing.T, _ *rig.Proc) {
			t.Helper()
			killInCluster(t, "berth", "app.kubernetes.io/name=berth-manager", "manager")
		}, true},
		{"agent", func(t *testing.T, _ *rig.Proc) { t.Helper(); killInCluster(t, "default", "app=frontend-v1", "agent") }, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			connect(t, ctl)
			p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
			answers(t, time.Minute, "frontend v2")
			c.kill(t, p)
			if c.resumes {
				answers(t, time.Minute, "frontend v2")
				if !p.Running() {
					t.Errorf("the engagement did not live on:\n%s", p.Output())
				}
			} else {
				answers(t, time.Minute, "frontend v1")
				if r := p.Wait(t, time.Minute); r.Code == 0 {
					t.Errorf("want an exit code that tells of the end: %v", r)
				}
			}
			ctl.Must(t, "quit", "--all")
			if left := rig.Leftovers(t); len(left) > 0 {
				t.Errorf("left after quit: %v", left)
			}
			restored(t)
			ctl.Must(t, "connect", "--docker")
			if r := ctl.Must(t, "curl", "-sS", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
				t.Errorf("%v", r)
			}
			ctl.Must(t, "quit", "--all")
		})
	}
}

// killInCluster kills a process of a pod on the dev cluster's node, as the
// kernel's OOM killer would: the binary is found by its name among the node's
// processes. A cluster given by KUBECONFIG has no node that can be entered so:
// there the pod is deleted at once.
func killInCluster(t *testing.T, ns, selector, binary string) {
	t.Helper()
	if node := rig.DevclusterNode(t); node != "" {
		out := rig.Docker(t, "exec", node, "sh", "-c", fmt.Sprintf(`for p in /proc/[0-9]*; do if [ "$(readlink $p/exe)" = /%s ]; then kill -9 ${p#/proc/}; echo ${p#/proc/}; fi; done`, binary))
		if len(out) == 0 {
			t.Fatalf("no process /%s on the node", binary)
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := cluster.DeletePods(ctx, ns, selector); err != nil {
		t.Fatal(err)
	}
}
