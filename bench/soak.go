package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	soakMinutes = 20
	soakEvery   = 10 * time.Second
	// soakSettle is how long everything may take to be forgotten once the load has
	// ended: flows of UDP last a minute, what their far ends hold a minute more.
	soakSettle = 150 * time.Second

	soaked = `apiVersion: apps/v1
kind: Deployment
metadata: {name: berth-soak}
spec:
  selector: {matchLabels: {app: berth-soak}}
  template:
    metadata: {labels: {app: berth-soak}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: load, image: "berth-bench:latest", imagePullPolicy: IfNotPresent, args: [serve, "7100"], ports: [{containerPort: 7100}]}]
---
apiVersion: v1
kind: Service
metadata: {name: berth-soak}
spec: {selector: {app: berth-soak}, ports: [{name: tcp, port: 7100}, {name: udp, port: 7100, protocol: UDP}]}
`
)

// soak opens flows and ends them in every way for MINUTES: from the daemon
// container's network to a pod, and from a pod to a handler through an intercept.
// Meanwhile it looks at what vif, manager and agent hold, and fails if that grows.
func (b *bench) soak(ctx context.Context) error {
	minutes := float64(soakMinutes)
	if s := os.Getenv("MINUTES"); s != "" {
		var err error
		if minutes, err = strconv.ParseFloat(s, 64); err != nil || minutes <= 0 {
			return fmt.Errorf("MINUTES=%s is not a number of minutes", s)
		}
	}
	remove, err := b.deploy(ctx, "berth-soak", soaked)
	if err != nil {
		return err
	}
	defer remove()
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil {
		return err
	}
	figures, stop, err := b.figures(ctx)
	if err != nil {
		return err
	}
	defer stop()
	leave, err := b.interceptSoaked(ctx, figures)
	if err != nil {
		return err
	}
	defer leave()

	before, err := figures(ctx)
	if err != nil {
		return err
	}
	var during [][]command.Process
	load, lctx := errgroup.WithContext(ctx)
	b.soakLoad(lctx, load, minutes*60)
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	tick := time.NewTicker(soakEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			running = false
		case <-tick.C:
			now, err := figures(ctx)
			if err != nil {
				return err
			}
			during = append(during, now)
			fmt.Fprintf(os.Stderr, "bench: soak: %v\n", now)
		}
	}
	return b.soakVerdict(ctx, before, during, figures)
}

// soakLoad starts both loads, each for so many seconds.
func (b *bench) soakLoad(ctx context.Context, g *errgroup.Group, seconds float64) {
	length := strconv.FormatFloat(seconds, 'f', 0, 64)
	podIP := func(app string) (string, error) {
		pods, err := b.cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil || len(pods.Items) != 1 {
			return "", fmt.Errorf("want one pod of %s: %v", app, err)
		}
		return pods.Items[0].Status.PodIP, nil
	}
	g.Go(func() error {
		ip, err := podIP("berth-bench")
		if err != nil {
			return err
		}
		daemon, err := out(ctx, "docker", "ps", "--filter", "label=berth.dev/component=daemon", "--format", "{{.Names}}")
		if err != nil {
			return err
		}
		o, err := out(ctx, "docker", "run", "--rm", "--network", "container:"+daemon, image, "soak", ip+":7100", length)
		fmt.Fprintf(os.Stderr, "bench: soak, to a pod:\n%s\n", o)
		return err
	})
	g.Go(func() error {
		ip, err := podIP("berth-soak")
		if err != nil {
			return err
		}
		o, err := out(ctx, b.kubectl, "exec", "deployment/berth-bench", "--", "/load", "soak", ip+":7100", length)
		fmt.Fprintf(os.Stderr, "bench: soak, to a handler:\n%s\n", o)
		return err
	})
}

// interceptSoaked intercepts the soaked workload by a handler of the same program,
// and returns once its agent has been heard of.
func (b *bench) interceptSoaked(ctx context.Context, figures func(context.Context) ([]command.Process, error)) (leave func(), err error) {
	cmd := exec.CommandContext(ctx, b.ctl, "intercept", "berth-soak", "--port", "7100:tcp", "--port", "7100:udp", "--docker-run", "--", image, "serve", "7100")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	leave = func() {
		_, _ = out(context.WithoutCancel(ctx), b.ctl, "leave", "berth-soak")
		_ = cmd.Wait() // the handler's exit code
	}
	for end := time.Now().Add(time.Minute); ; {
		now, err := figures(ctx)
		if err == nil && slices.ContainsFunc(now, func(p command.Process) bool { return strings.HasPrefix(p.Process, "agent") }) {
			return leave, nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			leave()
			return nil, errors.Join(err, errors.New("the intercept has no agent within a minute"))
		}
		time.Sleep(200 * time.Millisecond) // between two looks
	}
}

// figures returns what asks vif what it, the manager and the agents hold.
func (b *bench) figures(ctx context.Context) (ask func(context.Context) ([]command.Process, error), stop func(), err error) {
	raw, err := exec.CommandContext(ctx, "sh", "-c", "docker cp berth-connector:"+bus.CtlConfigFile+" - | tar -xO").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("read the key of the bus: %w", err)
	}
	var cfg bus.Config
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, nil, fmt.Errorf("read the key of the bus: %w", err)
	}
	at, err := out(ctx, "docker", "port", "berth-connector", "4222/tcp")
	if err != nil {
		return nil, nil, err
	}
	cfg.URL = "nats://" + strings.Fields(at)[0]
	conn, err := bus.Connect(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	stop = func() { conn.Close() }
	st, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
	if err == nil && len(st.Connections) != 1 {
		err = fmt.Errorf("%d connections, want one", len(st.Connections))
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	id := st.Connections[0].ID
	return func(ctx context.Context) ([]command.Process, error) {
		f, err := bus.Call(ctx, conn, command.VIFFigures, id, command.None{})
		return f.Processes, err
	}, stop, nil
}

// soakVerdict adds a row for each figure of each process: at rest before, the median
// of the second and of the last quarter of the load, and at rest after it.
func (b *bench) soakVerdict(ctx context.Context, before []command.Process, during [][]command.Process, figures func(context.Context) ([]command.Process, error)) error {
	var grown []string
	type figure struct {
		name  string
		of    func(command.Process) int64
		slack int64 // what rest after may have above rest before
	}
	all := []figure{
		{"goroutines", func(p command.Process) int64 { return int64(p.Goroutines) }, 10},
		{"files", func(p command.Process) int64 { return int64(p.Files) }, 5},
		{"streams", func(p command.Process) int64 { return int64(p.Streams) }, 3},
		{"memory, MB", func(p command.Process) int64 { return p.MemoryBytes >> 20 }, 1 << 20}, // rest says little: the heap gives back slowly
	}
	after := before
	at := func(ps []command.Process, process string, f figure) int64 {
		for _, p := range ps {
			if p.Process == process {
				return f.of(p)
			}
		}
		return -1
	}
	rested := func() bool {
		for _, p := range before {
			for _, f := range all {
				if at(after, p.Process, f) > f.of(p)+f.slack {
					return false
				}
			}
		}
		return true
	}
	for end := time.Now().Add(soakSettle); ; {
		var err error
		if after, err = figures(ctx); err != nil {
			return err
		}
		if rested() || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second): // between two looks
		}
	}
	for _, p := range before {
		for _, f := range all {
			quarter := func(i int) int64 {
				n := len(during)
				var vs []int64
				for _, ps := range during[n*i/4 : n*(i+1)/4] {
					vs = append(vs, at(ps, p.Process, f))
				}
				if len(vs) == 0 {
					return at(after, p.Process, f)
				}
				slices.Sort(vs)
				return vs[len(vs)/2]
			}
			second, last, rest := quarter(1), quarter(3), at(after, p.Process, f)
			b.add("soak: "+p.Process+": "+f.name, fmt.Sprintf("%d, %d, %d, %d", f.of(p), second, last, rest), "-", "-", "-", "flat")
			if rest > f.of(p)+f.slack || last > second+second/4+16 {
				grown = append(grown, p.Process+": "+f.name)
			}
		}
	}
	if len(grown) > 0 {
		return fmt.Errorf("grows: %s (at rest, second quarter, last quarter, at rest again: see the table)", strings.Join(grown, "; "))
	}
	return nil
}
