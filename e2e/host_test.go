package e2e

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHostUntouched(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	before := rig.Snapshot(t)
	connect(t, ctl)
	if d := before.Diff(rig.Snapshot(t)); d != "" {
		t.Errorf("connect --docker changed the host:\n%s", d)
	}
	p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
	answers(t, time.Minute, "frontend v2")
	if d := before.Diff(rig.Snapshot(t)); d != "" {
		t.Errorf("replace changed the host:\n%s", d)
	}
	ctl.Must(t, "quit", "--all")
	p.Wait(t, time.Minute)
	if d := before.Diff(rig.Snapshot(t)); d != "" {
		t.Errorf("quit left the host changed:\n%s", d)
	}
	if left := rig.Leftovers(t); len(left) > 0 {
		t.Errorf("left after quit: %v", left)
	}
	restored(t)
	leases, err := cluster.Kube.CoordinationV1().Leases("").List(t.Context(), metav1.ListOptions{LabelSelector: "berth.dev/kind"})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Items {
		t.Errorf("lease %s/%s is left", l.Namespace, l.Name)
	}
}

// A user who is in the docker group and nothing else can do all of it.
func TestUnprivilegedUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user; whoever runs this is unprivileged already")
	}
	g, err := user.LookupGroup("docker")
	if err != nil {
		t.Fatalf("no docker group: %v", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		t.Fatal(err)
	}
	// A directory that this user can enter, with a ctl and a kubeconfig of its own.
	dir, err := os.MkdirTemp("", "berth-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const uid = 54321
	for name, from := range map[string]string{"ctl": os.Getenv("BERTH_CTL"), "config": cluster.Kubeconfig} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, name), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	ctl := &rig.Ctl{Path: filepath.Join(dir, "ctl"), Kubeconfig: filepath.Join(dir, "config"),
		Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uint32(gid)}}}
	connect(t, ctl)
	if r := ctl.Must(t, "curl", "-sS", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
		t.Errorf("%v", r)
	}
	p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
	answers(t, time.Minute, "frontend v2")
	ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	restored(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("files were written beside ctl: %v", entries)
	}
}

func TestTwoConnections(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl, "--name", "one")
	ctl.Must(t, "connect", "--docker", "--name", "two", "-n", "kube-system")

	if r := ctl.Run(t, "curl", "-sS", "http://frontend-v1"); r.Code != 2 || !strings.Contains(r.Stderr, "one") || !strings.Contains(r.Stderr, "two") {
		t.Errorf("an ambiguous choice has to be an error that lists both: %v", r)
	}
	if r := ctl.Must(t, "curl", "--use", "one", "-sS", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
		t.Errorf("%v", r)
	}
	// Each has the search list of its own namespace.
	if r := ctl.Run(t, "curl", "--use", "two", "-sS", "--max-time", "5", "http://frontend-v1"); r.Code != 6 {
		t.Errorf("frontend-v1 is no name in kube-system, want curl's exit code 6: %v", r)
	}
	if r := ctl.Must(t, "curl", "--use", "two", "-sS", "http://frontend-v1.default"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
		t.Errorf("%v", r)
	}
	p := begin(t, ctl, "replace", "--use", "one", "frontend-v1", "--docker-run", "--", "frontend-v2")
	ctl.Must(t, "quit", "--use", "two")
	answeredBy(t, "frontend v2")
	if !p.Running() {
		t.Errorf("quitting one connection ended the other's handler:\n%s", p.Output())
	}
	ctl.Must(t, "quit", "--use", "one")
	p.Wait(t, time.Minute)
	restored(t)
}

// After uninstall nothing of Berth is left in the cluster, and install brings it back.
func TestUninstallLeavesNothing(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	t.Cleanup(func() {
		ctl.Must(t, "install")
		ctl.Must(t, "quit", "--all")
	})
	// An agent of this installation, which runs on in its pod for some minutes.
	ctl.Must(t, "connect", "--docker", "--", ctl.Path, "ingest", "frontend-v1", "--", "true")
	ctl.Must(t, "uninstall")
	ctl.Must(t, "quit", "--all")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, sel := range []string{"app.kubernetes.io/part-of=berth", "berth.dev/kind"} {
		left, err := cluster.Labelled(ctx, sel)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left after uninstall (%s): %v", sel, left)
		}
	}
	r := ctl.Run(t, "connect", "--docker")
	if r.Code != 1 || !strings.Contains(r.Stderr, "manager") || !strings.Contains(r.Stderr, "ctl install") {
		t.Errorf("connect without a manager has to name the stage and the remedy: %v", r)
	}
	if left := rig.Leftovers(t); len(left) > 0 {
		fmt.Println(left)
		ctl.Must(t, "quit", "--all")
	}
	r = ctl.Run(t, "install", "--image", "berth-cluster:nosuch")
	if r.Code != 1 || !strings.Contains(r.Stderr, "berth-cluster:nosuch") || !strings.Contains(r.Stderr, "load it into the cluster") {
		t.Errorf("an image that the cluster cannot get: %v", r)
	}
	// The pod that waits for that image is not held against the next attempt, and the
	// agent is not taken for one of the next installation's.
	ctl.Must(t, "install")
	ctl.Must(t, "connect", "--docker", "--", ctl.Path, "ingest", "frontend-v1", "--", "true")
}
