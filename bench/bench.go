package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	image  = "berth-bench:latest"
	server = `apiVersion: apps/v1
kind: Deployment
metadata: {name: berth-bench}
spec:
  selector: {matchLabels: {app: berth-bench}}
  template:
    metadata: {labels: {app: berth-bench}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: load, image: "berth-bench:latest", imagePullPolicy: IfNotPresent, args: [serve, "7100"], ports: [{containerPort: 7100}]}]
---
apiVersion: v1
kind: Service
metadata: {name: berth-bench}
spec: {selector: {app: berth-bench}, ports: [{port: 7100}]}
`
	seconds = "3" // of each measurement
)

type bench struct {
	ctl, dir, kubectl, load string
	cluster                 *rig.Cluster
	rows                    []row
	undo                    []func()
}

// open builds what is needed and deploys the server.
func open(ctx context.Context) (_ *bench, err error) {
	b := &bench{ctl: os.Getenv("BERTH_CTL")}
	if b.ctl == "" {
		return nil, errors.New("BERTH_CTL is not set: run this by `make bench`")
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.cluster, err = rig.Open(); err != nil {
		return b, err
	}
	if b.dir, err = os.MkdirTemp("", "berth-bench"); err != nil {
		return b, err
	}
	b.undo = append(b.undo, func() { os.RemoveAll(b.dir) })
	b.load, b.kubectl = filepath.Join(b.dir, "load"), filepath.Join(b.dir, "kubectl")
	manifest := filepath.Join(b.dir, "server.yaml")
	for name, text := range map[string]string{manifest: server, filepath.Join(b.dir, "Dockerfile"): "FROM scratch\nCOPY load /load\nENTRYPOINT [\"/load\"]\n", filepath.Join(b.dir, ".dockerignore"): "*\n!load\n"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return b, err
		}
	}
	steps := [][]string{
		{"go", "-C", "bench", "build", "-trimpath", "-o", b.load, "./load"},
		{"go", "-C", "bench", "build", "-trimpath", "-o", b.kubectl, "./kubectl"},
		{"docker", "build", "-q", "-t", image, b.dir},
		{b.ctl, "quit", "--all"},
		{b.ctl, "install"},
		{b.ctl, "quit", "--all"},
	}
	if load := os.Getenv("BERTH_LOAD"); load != "" {
		steps = append(steps, []string{"sh", "-c", load + " " + image})
	}
	for _, s := range steps {
		if _, err := out(ctx, s...); err != nil {
			return b, err
		}
	}
	b.undo = append(b.undo, func() { _, _ = out(context.Background(), b.ctl, "quit", "--all") })
	if err := b.cluster.Apply(ctx, manifest); err != nil {
		return b, err
	}
	b.undo = append(b.undo, func() { _ = b.cluster.Delete(context.Background(), manifest) })
	settle, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, d := range []string{"berth-bench", "frontend-v1", "backend"} {
		if err := b.cluster.Settle(settle, "default", d); err != nil {
			return b, err
		}
	}
	return b, nil
}

func (b *bench) close() {
	for _, u := range slices.Backward(b.undo) {
		u()
	}
}

// out runs a command and returns what it printed.
func out(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	o, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, o)
	}
	return strings.TrimSpace(string(o)), nil
}

// timed is how long a command takes, the median of n.
func timed(ctx context.Context, n int, before []string, argv ...string) (time.Duration, error) {
	var all []time.Duration
	for range n {
		if before != nil {
			if _, err := out(ctx, before...); err != nil {
				return 0, err
			}
		}
		t := time.Now()
		if _, err := out(ctx, argv...); err != nil {
			return 0, err
		}
		all = append(all, time.Since(t))
	}
	slices.Sort(all)
	return all[n/2], nil
}

func (b *bench) add(figure, berth, instead, direct, ratio, target string) {
	b.rows = append(b.rows, row{figure, berth, instead, direct, ratio, target})
	fmt.Fprintf(os.Stderr, "bench: %s: %s\n", figure, berth)
}

// connect measures a connect beside its limit: what the engine takes for as many
// containers, connector and runner at once and then the daemon container.
func (b *bench) connect(ctx context.Context) error {
	least, err := b.containers(ctx, 3, true, 2, 1)
	if err != nil {
		return err
	}
	cold, err := timed(ctx, 3, []string{b.ctl, "quit", "--all"}, b.ctl, "connect", "--docker", "--name", "bench")
	if err != nil {
		return err
	}
	b.add("connect, workspace down", ms(cold), "-", ms(least), "-", "<= 1500 ms")
	if _, err := out(ctx, b.ctl, "quit", "--all"); err != nil {
		return err
	}
	// A first connection keeps the workspace up while the second comes and goes.
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil {
		return err
	}
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench-second"); err != nil {
		return err
	}
	if least, err = b.containers(ctx, 3, false, 1); err != nil {
		return err
	}
	warm, err := timed(ctx, 3, []string{b.ctl, "quit", "--use", "bench-second"}, b.ctl, "connect", "--docker", "--name", "bench-second")
	if err != nil {
		return err
	}
	b.add("connect, workspace up", ms(warm), "-", ms(least), "-", "<= 400 ms")
	_, err = out(ctx, b.ctl, "quit", "--use", "bench-second")
	return err
}

// engage measures replace until the handler gets its first request against a
// rollout restart of the same workload plus docker run of the same image.
func (b *bench) engage(ctx context.Context) error {
	const n = 3
	var restarts, runs, replaces []time.Duration
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil {
		return err
	}
	for range n {
		restart, err := b.restart(ctx)
		if err != nil {
			return err
		}
		restarts = append(restarts, restart)
		t := time.Now()
		id, err := out(ctx, "docker", "run", "-d", "--rm", "frontend-v2")
		if err != nil {
			return err
		}
		runs = append(runs, time.Since(t))
		if _, err := out(ctx, "docker", "kill", id); err != nil {
			return err
		}
		t = time.Now()
		cmd := exec.CommandContext(ctx, b.ctl, "replace", "frontend-v1", "--docker-run", "--", "frontend-v2")
		if err := cmd.Start(); err != nil {
			return err
		}
		for {
			if got, err := b.cluster.Get(ctx, "http://frontend-v1"); err == nil && strings.HasPrefix(got, "frontend v2") {
				break
			}
			if ctx.Err() != nil || time.Since(t) > time.Minute {
				return errors.New("replace did not bring the handler a request within a minute")
			}
		}
		replaces = append(replaces, time.Since(t))
		if _, err := out(ctx, b.ctl, "leave", "frontend-v1"); err != nil {
			return err
		}
		_ = cmd.Wait() // the handler's exit code
		if err := b.settle(ctx, "frontend-v1"); err != nil {
			return err
		}
	}
	for _, s := range [][]time.Duration{restarts, runs, replaces} {
		slices.Sort(s)
	}
	instead := restarts[n/2] + runs[n/2]
	b.add("replace until first request", ms(replaces[n/2]), ms(instead), "-", ratio(float64(replaces[n/2]), float64(instead)), "<= 1.1 x")
	return nil
}

// restart is how long a rollout restart of the example takes; it has settled when
// this returns.
func (b *bench) restart(ctx context.Context) (time.Duration, error) {
	t := time.Now()
	for _, verb := range []string{"restart", "status"} {
		if _, err := out(ctx, b.kubectl, "rollout", verb, "deployment/frontend-v1"); err != nil {
			return 0, err
		}
	}
	d := time.Since(t)
	return d, b.settle(ctx, "frontend-v1")
}

// deploy applies a step's own objects and waits for their deployment. remove takes
// them away; where deploy fails it has done so.
func (b *bench) deploy(ctx context.Context, deployment, objects string) (remove func(), err error) {
	manifest := filepath.Join(b.dir, deployment+".yaml")
	if err := os.WriteFile(manifest, []byte(objects), 0o644); err != nil {
		return nil, err
	}
	remove = func() { _ = b.cluster.Delete(context.WithoutCancel(ctx), manifest) }
	if err = b.cluster.Apply(ctx, manifest); err == nil {
		err = b.settle(ctx, deployment)
	}
	if err != nil {
		remove()
		return nil, err
	}
	return remove, nil
}

func (b *bench) settle(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return b.cluster.Settle(ctx, "default", name)
}

// path measures the three ways to the same pod.
func (b *bench) path(ctx context.Context) error {
	pods, err := b.cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=berth-bench"})
	if err != nil {
		return err
	}
	addr := net.JoinHostPort(pods.Items[0].Status.PodIP, "7100")
	daemon, err := out(ctx, "docker", "ps", "--filter", "label=berth.dev/component=daemon", "--format", "{{.Names}}")
	if err != nil {
		return err
	}
	stop, err := b.forward(ctx, pods.Items[0].Name, "17100", "7100")
	if err != nil {
		return err
	}
	defer stop()
	in := func(network string) func(...string) ([]float64, error) {
		return func(args ...string) ([]float64, error) {
			o, err := out(ctx, append([]string{"docker", "run", "--rm", "--network", "container:" + network, image}, args...)...)
			return numbers(o), err
		}
	}
	berth, direct := in(daemon), in("berth-devcluster")
	figures, stopFigures, err := b.figures(ctx)
	if err != nil {
		return err
	}
	defer stopFigures()
	instead := func(args ...string) ([]float64, error) {
		o, err := out(ctx, append([]string{b.load}, args...)...)
		return numbers(o), err
	}
	for _, m := range []struct {
		figure, unit, target string
		args                 []string
		cpuOf                string // what CPU is told for: so many of the unit
		many                 float64
	}{
		{"TCP bulk, one flow, down", "Mbit/s", ">= 2 x", []string{"bulk", "down"}, "Gbit", 1e3},
		{"TCP bulk, one flow, up", "Mbit/s", ">= 2 x", []string{"bulk", "up"}, "Gbit", 1e3},
		{"request-response p50", "us", "<= 1.0 x", []string{"rr"}, "", 0},
		{"new connections a second, one after another", "/s", ">= 8 x", []string{"conn"}, "connection", 1},
		{"new connections a second, 16 at once", "/s", ">= 8 x", []string{"conn16"}, "connection", 1},
	} {
		argsFor := func(a string) []string { return append(slices.Clone(m.args), a, seconds) }
		before, err := figures(ctx)
		if err != nil {
			return err
		}
		x, err := berth(argsFor(addr)...)
		if err != nil {
			return err
		}
		after, err := figures(ctx)
		if err != nil {
			return err
		}
		y, err := instead(argsFor("127.0.0.1:17100")...)
		if err != nil {
			return err
		}
		z, err := direct(argsFor(addr)...)
		d := "-"
		if err == nil {
			d = fmt.Sprintf("%.0f %s", z[0], m.unit)
		}
		b.add(m.figure, fmt.Sprintf("%.0f %s", x[0], m.unit), fmt.Sprintf("%.0f %s", y[0], m.unit), d, ratio(x[0], y[0]), m.target+" port-forward")
		if m.cpuOf != "" {
			b.add("… CPU of vif and manager for each "+m.cpuOf, cpuBetween(before, after, m.many/x[0]), "-", "-", "-", "-")
		}
	}
	return nil
}

// cpuBetween is the CPU that vif and the manager have used in a measurement, for what
// it did in so many seconds. The warm-up of bulk is in it, some 17 % too much.
func cpuBetween(before, after []command.Process, inSeconds float64) string {
	measured, _ := strconv.ParseFloat(seconds, 64)
	var all []string
	for i, p := range after {
		if i < len(before) && before[i].Process == p.Process {
			all = append(all, fmt.Sprintf("%.0f us", float64(p.CPUMicros-before[i].CPUMicros)/measured*inSeconds))
		}
	}
	return strings.Join(all, ", ")
}

// forward is kubectl port-forward from a port of this machine to one of a pod.
func (b *bench) forward(ctx context.Context, pod, here, there string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, b.kubectl, "port-forward", "pod/"+pod, here+":"+there)
	// It says when it listens. To dial would be no probe: a connection that is
	// closed at once ends some versions of it.
	said, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	stop = func() { cancel(); _ = cmd.Wait() }
	if !bufio.NewScanner(said).Scan() {
		stop()
		return nil, errors.New("kubectl port-forward has ended")
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	return stop, nil
}

func (b *bench) names(ctx context.Context) error {
	daemon, err := out(ctx, "docker", "ps", "--filter", "label=berth.dev/component=daemon", "--format", "{{.Names}}")
	if err != nil {
		return err
	}
	for _, m := range [][3]string{
		{"DNS p50, cached", "berth-bench.default.svc.cluster.local.", "<= 300 us"},
		{"DNS p50, not cached", "x%.default.svc.cluster.local.", "<= 3000 us"},
	} {
		o, err := out(ctx, "docker", "run", "--rm", "--network", "container:"+daemon, image, "dns", m[1], "2")
		if err != nil {
			return err
		}
		b.add(m[0], o+" us", "-", "-", "-", m[2])
	}
	return nil
}

// restWithin is how long what traffic took may take to be given back (lease.GiveBack).
const restWithin = 45 * time.Second

// idle measures what the local processes hold and use when nothing happens.
func (b *bench) idle(ctx context.Context) error {
	ids, err := out(ctx, "docker", "ps", "-q", "--filter", "label=berth.dev/workspace")
	if err != nil {
		return err
	}
	var pids []string
	for _, id := range strings.Fields(ids) {
		pid, err := out(ctx, "docker", "inspect", "-f", "{{.State.Pid}}", id)
		if err != nil {
			return err
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return errors.New("nothing of Berth's runs: a step before this one has to connect (STEPS='connect idle')")
	}
	ticks := func() (rss, cpu float64) {
		for _, pid := range pids {
			st, _ := os.ReadFile("/proc/" + pid + "/status")
			for l := range strings.Lines(string(st)) {
				if f := strings.Fields(l); len(f) > 1 && f[0] == "VmRSS:" {
					kb, _ := strconv.ParseFloat(f[1], 64)
					rss += kb / 1024
				}
			}
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if _, rest, ok := strings.Cut(string(stat), ") "); ok {
				f := strings.Fields(rest)
				u, _ := strconv.ParseFloat(f[11], 64)
				s, _ := strconv.ParseFloat(f[12], 64)
				cpu += u + s
			}
		}
		return rss, cpu
	}
	wait := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	// To collect what the steps before have left is no part of being idle.
	if err := wait(restWithin); err != nil {
		return err
	}
	_, before := ticks()
	const window = 30 * time.Second // of the measurement itself
	if err := wait(window); err != nil {
		return err
	}
	rss, after := ticks()
	b.add("idle memory, all local processes", fmt.Sprintf("%.0f MB", rss), "-", "-", "-", "<= 120 MB")
	b.add("idle CPU", fmt.Sprintf("%.2f %%", (after-before)/window.Seconds()), "-", "-", "-", "< 0.5 %")
	return nil
}

func numbers(s string) []float64 {
	var all []float64
	for _, f := range strings.Fields(s) {
		if x, err := strconv.ParseFloat(f, 64); err == nil {
			all = append(all, x)
		}
	}
	return all
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

func ratio(a, b float64) string { return fmt.Sprintf("%.2f x", a/b) }
