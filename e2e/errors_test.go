package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// refused runs a command that has to fail with one error that holds all of want,
// within 20 seconds.
func refused(t *testing.T, ctl *rig.Ctl, code int, want []string, args ...string) {
	t.Helper()
	r := ctl.Run(t, args...)
	if r.Code != code {
		t.Errorf("want exit code %d: %v", code, r)
	}
	for _, w := range want {
		if !strings.Contains(strings.ToLower(r.Stderr), strings.ToLower(w)) {
			t.Errorf("the error does not say %q: %v", w, r)
		}
	}
	if r.Took > 20*time.Second {
		t.Errorf("took %v", r.Took)
	}
}

// kubeconfig writes a changed copy of the cluster's kubeconfig.
func kubeconfig(t *testing.T, change func(*clientcmdapi.Config)) string {
	t.Helper()
	cfg, err := clientcmd.LoadFromFile(cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := clientcmdapi.FlattenConfig(cfg); err != nil {
		t.Fatal(err)
	}
	change(cfg)
	path := filepath.Join(t.TempDir(), "config")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each of these is refused before anything is touched: no container is left.
func TestConnectErrors(t *testing.T) {
	base := rig.NewCtl(t, cluster)
	nothingLeft := func(t *testing.T) {
		t.Helper()
		rig.Eventually(t, 15*time.Second, "nothing is left on the engine", func(context.Context) (bool, string) {
			left := rig.Leftovers(t)
			return len(left) == 0, strings.Join(left, " ")
		})
	}
	t.Run("Docker stopped", func(t *testing.T) {
		ctl := *base
		ctl.Env = []string{"DOCKER_HOST=unix:///nonexistent/docker.sock"}
		refused(t, &ctl, 1, []string{"docker", "try:"}, "connect", "--docker")
	})
	t.Run("wrong context", func(t *testing.T) {
		refused(t, base, 1, []string{"no-such-context", "try:"}, "connect", "--docker", "--context", "no-such-context")
		nothingLeft(t)
	})
	t.Run("unreachable API server", func(t *testing.T) {
		ctl := *base
		ctl.Kubeconfig = kubeconfig(t, func(c *clientcmdapi.Config) {
			for _, cl := range c.Clusters {
				cl.Server = "https://127.0.0.1:1"
			}
		})
		refused(t, &ctl, 1, []string{"API server", "try:"}, "connect", "--docker")
		nothingLeft(t)
	})
	t.Run("a user without the rights", func(t *testing.T) {
		ctl := *base
		ctl.Kubeconfig = kubeconfig(t, func(c *clientcmdapi.Config) {
			for _, a := range c.AuthInfos {
				a.Impersonate = "nobody-in-particular"
			}
		})
		refused(t, &ctl, 1, []string{"manager", "get configmaps", "berth", "try:"}, "connect", "--docker")
		nothingLeft(t)
	})
	t.Run("wrong usage", func(t *testing.T) {
		refused(t, base, 2, []string{"conect", "connect"}, "conect")
		refused(t, base, 2, []string{"--no-such-flag"}, "connect", "--docker", "--no-such-flag")
		nothingLeft(t)
	})
	t.Run("same call, changed flags", func(t *testing.T) {
		connect(t, base)
		r := base.Must(t, "connect", "--docker")
		if !strings.Contains(strings.ToLower(r.Stdout+r.Stderr), "already") {
			t.Errorf("the same call has to be a no-op that says so: %v", r)
		}
		refused(t, base, 1, []string{"ctl quit"}, "connect", "--docker", "--never-proxy", "192.0.2.0/24")
	})
}

func TestReplaceErrors(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	untouched := podNames(t)
	cases := []struct {
		name string
		code int
		want []string
		args []string
	}{
		{"unknown workload", 1, []string{"frontend-v9", "frontend-v1", "ctl list"}, []string{"replace", "frontend-v9", "--docker-run", "--", "frontend-v2"}},
		{"a service", 1, []string{"service/frontend-v1", "ctl replace deployment/frontend-v1"}, []string{"replace", "svc/frontend-v1", "--docker-run", "--", "frontend-v2"}},
		{"a kind that cannot be engaged", 1, []string{"no DaemonSet named kube-proxy", "ctl list"}, []string{"replace", "daemonset/kube-proxy", "--docker-run", "--", "frontend-v2"}},
		{"unknown container", 1, []string{"nginx", "frontend"}, []string{"replace", "frontend-v1", "--container", "nginx", "--docker-run", "--", "frontend-v2"}},
		// Of a registry that refuses at once: what takes long elsewhere is the network's to say.
		{"missing image", 1, []string{"no-such-image"}, []string{"replace", "frontend-v1", "--docker-run", "--", "127.0.0.1:1/no-such-image:v0"}},
		{"two containers and no --container", 2, []string{"echo", "other", "--container"}, []string{"replace", "echo", "--docker-run", "--", probeImage}},
		{"no image", 2, []string{"image"}, []string{"replace", "frontend-v1", "--docker-run", "--"}},
		{"no workload", 2, []string{"workload"}, []string{"replace", "--docker-run", "--", "frontend-v2"}},
		{"detached", 2, []string{"detach"}, []string{"replace", "frontend-v1", "--docker-run", "--", "-itd", "frontend-v2"}},
		{"unknown docker flag", 2, []string{"--no-such-flag"}, []string{"replace", "frontend-v1", "--docker-run", "--", "--no-such-flag", "frontend-v2"}},
		{"unknown connection", 2, []string{"elsewhere"}, []string{"replace", "--use", "elsewhere", "frontend-v1", "--docker-run", "--", "frontend-v2"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { refused(t, ctl, c.code, c.want, c.args...) })
	}
	t.Run("a name that is taken", func(t *testing.T) {
		rig.Docker(t, "create", "--name", "berth-e2e-taken", probeImage)
		defer rig.Docker(t, "rm", "-f", "berth-e2e-taken")
		refused(t, ctl, 1, []string{"berth-e2e-taken"}, "replace", "frontend-v1", "--docker-run", "--", "--name", "berth-e2e-taken", "frontend-v2")
	})
	if now := podNames(t); now != untouched {
		t.Errorf("a refused command touched the pods: %s, now %s", untouched, now)
	}

	t.Run("held by another client", func(t *testing.T) {
		p := begin(t, ctl, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
		refused(t, ctl, 1, []string{"frontend-v1", "ctl leave"}, "replace", "frontend-v1", "--docker-run", "--", probeImage)
		answeredBy(t, "frontend v2")
		if !p.Running() {
			t.Error("the refused second replace ended the first")
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		restored(t)
	})
}

// podNames are the running pods of the workloads that every test has: those of others,
// which their tests have deleted, end when the cluster's garbage collector gets to it.
func podNames(t *testing.T) string {
	t.Helper()
	l, err := cluster.Kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app in (backend,echo,frontend-v1)"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range l.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil { // not what an earlier test scaled down
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, " ")
}
