package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// newMachine is one of the test's own, whose every connection ends with it, and
// leaves it as it was.
func newMachine(t *testing.T) *rig.Machine {
	t.Helper()
	m := rig.NewMachine(t, cluster, probeImage, "serve", ":9")
	before := m.Snapshot()
	t.Cleanup(func() {
		m.Ctl.Must(t, "quit", "--all")
		if d := before.Diff(m.Snapshot()); d != "" {
			t.Errorf("quit left the machine changed:\n%s", d)
		}
	})
	return m
}

// fetch is what the machine's own curl gets.
func fetch(t *testing.T, m *rig.Machine, url string) string {
	t.Helper()
	out, err := m.Run("curl", "-sS", "-m", "10", url)
	if err != nil {
		t.Errorf("curl %s: %v: %s", url, err, out)
	}
	return out
}

// names checks that the machine's own names resolve as they do without Berth.
func names(t *testing.T, m *rig.Machine) {
	t.Helper()
	if out, err := m.Run("getent", "hosts", "berth-devcluster."); err != nil {
		t.Errorf("a name of the machine's own resolver does not resolve: %v: %s", err, out)
	}
}

// Any program of the machine reaches the cluster by names of any length, and one
// of its programs can be in a workload's place.
func TestHostMode(t *testing.T) {
	m := newMachine(t)
	t.Run("any program", func(t *testing.T) { testAnyProgram(t, m) })
	t.Run("containers", func(t *testing.T) { testContainersOnHost(t, m) })
	t.Run("killed", func(t *testing.T) { testKilledOnHost(t, m) })
	t.Run("routes", func(t *testing.T) { testRoutesOfOthers(t, m) })
}

func testAnyProgram(t *testing.T, m *rig.Machine) {
	t.Helper()
	m.Ctl.Must(t, "connect")
	for _, url := range []string{"http://frontend-v1", "http://frontend-v1.default", "http://frontend-v1.default.svc.cluster.local"} {
		if body := fetch(t, m, url); !strings.HasPrefix(body, "frontend v1\n") {
			t.Errorf("%s: %q", url, body)
		}
	}
	names(t, m)
	if r := m.Ctl.Must(t, "connect"); !strings.Contains(r.Stdout, "already connected") {
		t.Errorf("the same call again: %v", r)
	}
	if r := m.Ctl.Run(t, "connect", "--name", "another"); r.Code != 1 || !strings.Contains(r.Stderr, "one cluster at a time") {
		t.Errorf("a second connection: %v", r)
	}
	if r := m.Ctl.Must(t, "list"); !strings.Contains(r.Stdout, "deployment/frontend-v1") {
		t.Errorf("%v", r)
	}
	if r := m.Ctl.Must(t, "curl", "-sS", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
		t.Errorf("%v", r)
	}

	app := filepath.Join(os.Getenv("BERTH_ROOT"), "examples/images/frontend-v2/app")
	p := m.Ctl.Start(t, "replace", "frontend-v1", "--", app)
	// It finds the backend by its bare name, and has the container's environment.
	if body := answers(t, time.Minute, "frontend v2"); !strings.Contains(body, "backend: hello from the backend") || !strings.Contains(body, "GREETING=hello") {
		t.Errorf("%q", body)
	}
	m.Ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	restored(t)
	if r := m.Ctl.Must(t, "ingest", "frontend-v1", "--", "env"); !strings.Contains(r.Stdout, "GREETING=hello") {
		t.Errorf("%v", r)
	}
	// Its volumes come with it.
	if r := m.Ctl.Must(t, "ingest", "frontend-v1", "--mount", "true", "--", "sh", "-c", `cat "$BERTH_ROOT/etc/frontend-secret/token"; touch "$BERTH_ROOT/data/x" || true`); !strings.Contains(r.Stdout, "not-so-secret-canary") || !strings.Contains(r.Stderr, "Read-only") {
		t.Errorf("%v", r)
	}
	if r := m.Ctl.Must(t, "replace", "frontend-v1", "--wait", "none", "--", "sh", "-c", `echo written >"$BERTH_ROOT/data/x" && cat "$BERTH_ROOT/data/x"`); !strings.Contains(r.Stdout, "written") {
		t.Errorf("%v", r)
	}
	restored(t)
	if out, err := m.Run("grep", "fuse.berth", "/proc/self/mounts"); err == nil {
		t.Errorf("still mounted: %s", out)
	}
	if r := m.Ctl.Must(t, "quit"); !strings.Contains(r.Stdout, "disconnected") {
		t.Errorf("%v", r)
	}
}

// An ordinary container of the machine's engine is a handler too: it finds the
// cluster's names, and the traffic comes to it by a port of the machine.
func testContainersOnHost(t *testing.T, m *rig.Machine) {
	t.Helper()
	m.Load("frontend-v2")
	m.Load(probeImage)
	m.Ctl.Must(t, "connect")
	// The volumes are at their own paths, read-only for an ingest, or below a folder.
	probe := func(args ...string) rig.Result {
		return m.Ctl.Run(t, append([]string{"ingest", "frontend-v1", "--docker-run", "--", probeImage}, args...)...)
	}
	if r := probe("cat", "/etc/frontend-secret/token"); r.Code != 0 || !strings.Contains(r.Stdout, "not-so-secret-canary") {
		t.Errorf("the container's volumes: %v", r)
	}
	if r := probe("put", "/data/x", "x"); r.Code == 0 || !strings.Contains(r.Stderr, "read-only file system") {
		t.Errorf("an ingest that writes: %v", r)
	}
	m.Ctl.Must(t, "replace", "frontend-v1", "--wait", "none", "--docker-mount", "/remote", "--docker-run", "--", probeImage, "put", "/remote/data/x", "x")
	restored(t)
	if out, err := m.Run("docker", "volume", "ls", "-q"); err != nil || out != "" {
		t.Errorf("volumes are left: %v: %s", err, out)
	}
	p := m.Ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
	if body := answers(t, time.Minute, "frontend v2"); !strings.Contains(body, "backend: hello from the backend") || !strings.Contains(body, "GREETING=hello") {
		t.Errorf("%q", body)
	}
	if r := m.Ctl.Run(t, "intercept", "backend", "--port", "8080", "--docker-run", "--", "frontend-v2"); r.Code != 1 || !strings.Contains(r.Stderr, "8080 of this machine is taken") {
		t.Errorf("a port of the machine that is taken: %v", r)
	}
	m.Ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	restored(t)

	p = m.Ctl.Start(t, "intercept", "frontend-v1", "--port", "18080:8080", "--docker-run", "--", "frontend-v2")
	answers(t, time.Minute, "frontend v2")
	if body := fetch(t, m, "http://127.0.0.1:18080"); !strings.HasPrefix(body, "frontend v2\n") {
		t.Errorf("the machine's port: %q", body)
	}
	m.Ctl.Must(t, "quit")
	p.Wait(t, time.Minute)
	answers(t, time.Minute, "frontend v1")
	if out, err := m.Run("docker", "ps", "-aq"); err != nil || out != "" {
		t.Errorf("containers are left: %v: %s", err, out)
	}
	if out, err := m.Run("docker", "plugin", "ls", "-q"); err != nil || out != "" {
		t.Errorf("the volume plugin is left: %v: %s", err, out)
	}
}

// What is killed leaves a machine whose names resolve, and that `ctl quit`, or the
// next connect, finds as it was.
func testKilledOnHost(t *testing.T, m *rig.Machine) {
	t.Helper()
	before := m.Snapshot()
	vif := func(t *testing.T) int {
		t.Helper()
		type status struct {
			Connections []struct{ Daemon string }
		}
		all := rig.Lines[status](t, m.Ctl.Must(t, "status", "--output", "json").Stdout)
		return rig.Number(t, all[0].Connections[0].Daemon)
	}
	for name, pid := range map[string]func(*testing.T) int{
		"vif":       vif,
		"runner":    func(*testing.T) int { return m.PID("runner") },
		"connector": func(*testing.T) int { return m.PID("connector") },
	} {
		t.Run(name, func(t *testing.T) {
			for _, next := range []string{"quit", "connect"} {
				m.Ctl.Must(t, "connect")
				m.Kill(pid(t))
				names(t, m)
				m.Ctl.Must(t, next)
				if next == "connect" {
					if body := fetch(t, m, "http://frontend-v1"); !strings.HasPrefix(body, "frontend v1\n") {
						t.Errorf("connected again: %q", body)
					}
					m.Ctl.Must(t, "quit")
				}
				names(t, m)
				if d := before.Diff(m.Snapshot()); d != "" {
					t.Errorf("kill -9, then %s, left the machine changed:\n%s", next, d)
				}
			}
		})
	}
}

// A route that is there already is not taken over: it is named, and so is the way
// around it, by which both are reached.
func testRoutesOfOthers(t *testing.T, m *rig.Machine) {
	t.Helper()
	for _, c := range []string{"ip link add vpn0 type bridge", "ip link set vpn0 up", "ip address add 10.0.0.1/32 dev vpn0", "ip route add 10.0.0.0/8 dev vpn0"} {
		if out, err := m.Run("sh", "-c", c); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { _, _ = m.Run("ip", "link", "delete", "vpn0") })
	r := m.Ctl.Run(t, "connect")
	if r.Code != 1 || !strings.Contains(r.Stderr, "10.0.0.0/8 by vpn0") || !strings.Contains(r.Stderr, "try: ctl connect --vnat auto") {
		t.Errorf("%v", r)
	}
	names(t, m)

	before := m.Snapshot()
	m.Ctl.Must(t, "connect", "--vnat", "auto")
	if out, err := m.Run("getent", "hosts", "frontend-v1"); err != nil || !strings.HasPrefix(out, "240.") {
		t.Errorf("frontend-v1 is to have a virtual address: %v: %s", err, out)
	}
	for _, url := range []string{"http://frontend-v1", "http://frontend-v1.default.svc.cluster.local"} {
		if body := fetch(t, m, url); !strings.HasPrefix(body, "frontend v1\n") {
			t.Errorf("%s: %q", url, body)
		}
	}
	type status struct {
		Connections []struct {
			Virtual []struct{ Cluster, Here string }
		}
	}
	st := rig.Lines[status](t, m.Ctl.Must(t, "status", "--output", "json").Stdout)
	if v := st[0].Connections[0].Virtual; len(v) == 0 || !strings.HasPrefix(v[0].Cluster, "10.") || !strings.HasPrefix(v[0].Here, "240.") {
		t.Errorf("status: %+v", st)
	}
	// A command has the addresses of services in its environment, and reaches them.
	r = m.Ctl.Must(t, "ingest", "frontend-v1", "--", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST; curl -sk -m 10 https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/livez")
	if !strings.HasPrefix(r.Stdout, "240.") || !strings.HasSuffix(r.Stdout, "ok") {
		t.Errorf("%v", r)
	}
	if out, err := m.Run("ip", "route", "get", "10.96.0.1"); err != nil || !strings.Contains(out, "dev vpn0") {
		t.Errorf("the VPN's address: %v: %s", err, out)
	}
	// So does a handler in a container of the machine's engine.
	p := m.Ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
	if body := answers(t, time.Minute, "frontend v2"); !strings.Contains(body, "backend: hello from the backend") {
		t.Errorf("%q", body)
	}
	m.Ctl.Must(t, "quit")
	p.Wait(t, time.Minute)
	restored(t)
	if d := before.Diff(m.Snapshot()); d != "" {
		t.Errorf("quit left the machine changed:\n%s", d)
	}
}
