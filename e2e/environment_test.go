package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/e2e/rig"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// An env file says what the handler's environment is, may be read by its owner
// only, and is gone with the engagement: also when ctl is killed.
func TestEnvFile(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	dir := t.TempDir()
	shell, object := filepath.Join(dir, "env.sh"), filepath.Join(dir, "env.json")
	p := ctl.Start(t, "replace", "frontend-v1", "--env-file", shell, "--env-syntax", "sh:export", "--env-json", object, "--docker-run", "--", probeImage)
	answers(t, time.Minute, "probe")

	var handler []string
	if err := json.Unmarshal([]byte(strings.Join(rig.Docker(t, "inspect", "-f", "{{json .Config.Env}}", handlerOf(t, "frontend-v1")), " ")), &handler); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, e := range handler {
		k, v, _ := strings.Cut(e, "=")
		want[k] = v
	}
	delete(want, "PATH") // the image's
	b, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q in the file, %q in the handler", k, got[k], v)
		}
	}
	if len(got) != len(want) || got["MULTI_LINE"] != "first\nsecond\nthird" || got["API_TOKEN"] != "not-so-secret-canary" {
		t.Errorf("%d variables in the file, %d in the handler: %v", len(got), len(want), got)
	}
	out, err := exec.Command("sh", "-c", `. "$1"; printf %s "$MULTI_LINE|$BACKEND_URL"`, "sh", shell).Output()
	if err != nil || string(out) != "first\nsecond\nthird|http://backend" {
		t.Errorf("sh reads %q, %v", out, err)
	}
	for _, f := range []string{shell, object} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	noValueShown(t, handlerOf(t, "frontend-v1"))
	if err := p.Signal(os.Kill); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, 10*time.Second, "the files are gone", func(context.Context) (bool, string) {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0, dir
	})
	restored(t)
	// What a form cannot hold is told, and undone.
	refused(t, ctl, 1, []string{"MULTI_LINE", "several lines", "--env-syntax compose"}, "replace", "frontend-v1", "--env-file", shell, "--docker-run", "--", probeImage)
	restored(t)
}

// noValueShown: of Berth's containers none but the handler shows a value of the
// environment when it is inspected, and none has logged one.
func noValueShown(t *testing.T, handler string) {
	t.Helper()
	for _, id := range rig.Docker(t, "ps", "-aq", "--filter", rig.Workspace) {
		seen := map[string]string{"docker inspect": strings.Join(rig.Docker(t, "inspect", id), " ")}
		if strings.HasPrefix(handler, id) {
			delete(seen, "docker inspect")
		} else {
			seen["docker logs"] = strings.Join(rig.Docker(t, "logs", id), " ")
		}
		for how, text := range seen {
			for _, c := range canaries {
				if strings.Contains(text, c) {
					t.Errorf("%s of %s shows %q", how, rig.Docker(t, "inspect", "-f", "{{.Name}}", id)[0], c)
				}
			}
		}
	}
}

// A command of this machine stands in: it has the environment, gets the traffic,
// and its exit code is ctl's.
func TestLocalCommand(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	probe := filepath.Join(t.TempDir(), "probe")
	if err := command(t.Context(), "go", "build", "-trimpath", "-o", probe, "./probe"); err != nil {
		t.Fatal(err)
	}
	r := ctl.Run(t, "replace", "frontend-v1", "--", "sh", "-c", `[ "$API_TOKEN" = not-so-secret-canary ] && [ "$BERTH_ROOT" != / ] && exit 5`)
	if r.Code != 5 {
		t.Errorf("want the command's exit code 5: %v", r)
	}
	restored(t)

	p := ctl.Start(t, "replace", "frontend-v1", "--", probe, "serve", ":8080")
	body := answers(t, time.Minute, "probe")
	for _, want := range []string{"API_TOKEN", "MULTI_LINE", "BERTH_ENGAGEMENT_ID"} {
		if !strings.Contains(body, want) {
			t.Errorf("the command's environment lacks %s", want)
		}
	}
	ctl.Must(t, "leave", "frontend-v1")
	if r := p.Wait(t, time.Minute); r.Code != 143 || !strings.Contains(r.Stderr, "8080/TCP comes to the command at") {
		t.Errorf("want the command's exit code 143, and where it has to listen: %v", r)
	}
	restored(t)
	if left, _ := exec.Command("pgrep", "-f", probe).Output(); len(left) > 0 {
		t.Errorf("the command still runs: %s", left)
	}
}

// Until the handler is ready the workload's own pods answer; one that never is
// has diverted nothing.
func TestWait(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	dir := t.TempDir()
	const image = "berth-e2e-health"
	dockerfile := "FROM " + probeImage + "\nHEALTHCHECK --interval=1s --retries=2 CMD [\"/probe\", \"exit\", \"1\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	rig.Docker(t, "build", "-q", "-t", image, dir)
	t.Cleanup(func() { rig.Docker(t, "rmi", "-f", image) })
	for _, c := range []struct {
		name string
		want []string
		args []string
	}{
		{"never listens", []string{"nobody listens on 8080/TCP", "--wait none", "comes when the handler listens on 8080/TCP"}, []string{"--wait-limit", "7s", "--docker-run", "--", probeImage, "serve", ":9999"}},
		{"unhealthy", []string{"unhealthy", "HEALTHCHECK"}, []string{"--wait", "healthy", "--docker-run", "--", image}},
		{"a command that never listens", []string{"nobody listens on 8080/TCP"}, []string{"--wait-limit", "2s", "--", "sleep", "60"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stop := ask(t)
			refused(t, ctl, 1, c.want, append([]string{"replace", "frontend-v1"}, c.args...)...)
			restored(t)
			for body := range stop() {
				if !strings.HasPrefix(body, "frontend v1\n") {
					t.Errorf("answered meanwhile: %s", body)
				}
			}
		})
	}
}

// ask asks for the frontend inside the cluster, again and again, until stop
// returns the different answers, errors among them.
func ask(t *testing.T) (stop func() map[string]int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan map[string]int, 1)
	go func() {
		all := map[string]int{}
		for ctx.Err() == nil {
			body, err := cluster.Get(ctx, "http://frontend-v1")
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				body = "error: " + err.Error()
			}
			first, _, _ := strings.Cut(body, "\n")
			all[first+"\n"]++
		}
		done <- all
	}()
	return func() map[string]int { cancel(); return <-done }
}

// Secrets that the user may not read are refused or masked, and a fact says so by
// name only. What the installation excludes leaves the cluster for nobody.
func TestSecrets(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	// A user with the documented rights of a client, and no right to read Secrets.
	limited := *ctl
	limited.Kubeconfig = kubeconfig(t, func(c *clientcmdapi.Config) {
		for _, a := range c.AuthInfos {
			a.Impersonate = "berth-e2e-limited"
		}
	})
	grant(t, "berth-e2e-limited")
	connect(t, &limited)
	before := podNames(t)
	refused(t, &limited, 1, []string{"frontend-secret", "--secrets mask"}, "replace", "frontend-v1", "--docker-run", "--", probeImage)
	if now := podNames(t); now != before {
		t.Errorf("a refused command touched the pods: %s, now %s", before, now)
	}
	const show = `echo "token=$API_TOKEN greeting=$GREETING"`
	r := limited.Must(t, "replace", "frontend-v1", "--secrets", "mask", "--", "sh", "-c", show)
	if !strings.Contains(r.Stdout, "token=masked greeting=hello from the cluster's config map") || !strings.Contains(r.Stderr, "frontend-secret") {
		t.Errorf("want the token masked, and said: %v", r)
	}
	restored(t)
	e := ctl.Must(t, "events", "--since", "start", "--no-follow", "--output", "json")
	found := false
	for _, env := range rig.Lines[event.Envelope](t, e.Stdout) {
		if f, ok := event.Decode[event.SecretsReviewed](env); ok {
			found = true
			valid(t, env)
			if f.Policy != "mask" || len(f.Granted) != 0 || len(f.Masked) != 1 || f.Masked[0] != "frontend-secret" {
				t.Errorf("%+v", f)
			}
		}
	}
	if !found || strings.Contains(e.Stdout, "not-so-secret-canary") {
		t.Errorf("reviewed: %v; a value in a fact: %v", found, strings.Contains(e.Stdout, "not-so-secret-canary"))
	}
	limited.Must(t, "quit", "--all")

	ctl.Must(t, "install", "--exclude-env", "API_*")
	t.Cleanup(func() { ctl.Must(t, "install") })
	connect(t, ctl)
	r = ctl.Must(t, "replace", "frontend-v1", "--", "sh", "-c", show)
	if !strings.Contains(r.Stdout, "token= greeting=hello from the cluster's config map") {
		t.Errorf("want the token left out: %v", r)
	}
	restored(t)
}

// grant gives a user the documented rights of a client, in every namespace.
func grant(t *testing.T, user string) {
	t.Helper()
	subject := []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: user, APIGroup: rbacv1.GroupName}}
	crb := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user}, Subjects: subject,
		RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "berth-client", APIGroup: rbacv1.GroupName},
	}
	api := cluster.Kube.RbacV1().ClusterRoleBindings()
	if _, err := api.Create(t.Context(), crb, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Delete(context.Background(), user, metav1.DeleteOptions{}) })
	rb := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user, Namespace: "berth"}, Subjects: subject,
		RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "berth-client", APIGroup: rbacv1.GroupName},
	}
	own := cluster.Kube.RbacV1().RoleBindings("berth")
	if _, err := own.Create(t.Context(), rb, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Delete(context.Background(), user, metav1.DeleteOptions{}) })
}
