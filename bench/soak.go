package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
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
	// soakRounds is how often the load ends, and everything comes to rest: what grows
	// from rest to rest grows for ever, whatever the load between them.
	soakRounds = 4
	// soakSettle is how long everything may take to be forgotten once the load has
	// ended: flows of UDP last a minute, what their far ends hold a minute more.
	soakSettle = 4 * time.Minute
	// soakSteady: memory that has not become less for so long is what is kept. What
	// was needed is given back within 45 s (lease.GiveBack).
	soakSteady = 60 * time.Second

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

// soak opens flows and ends them in every way for MINUTES, in rounds with a rest
// after each: from the daemon container's network to a pod, and from a pod to a
// handler through an intercept. It fails if vif, manager or agent hold more at rest
// from round to round.
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
	var during, rests [][]command.Process
	for range soakRounds {
		under, err := b.soakRound(ctx, minutes*60/soakRounds, figures)
		if err != nil {
			return err
		}
		rest, err := soakRest(ctx, before, figures)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "bench: soak: at rest: %v\n", rest)
		during, rests = append(during, under...), append(rests, rest)
	}
	return b.soakVerdict(before, during, rests)
}

// soakRound loads for so many seconds and returns what was held meanwhile.
func (b *bench) soakRound(ctx context.Context, seconds float64, figures func(context.Context) ([]command.Process, error)) (during [][]command.Process, err error) {
	load, lctx := errgroup.WithContext(ctx)
	b.soakLoad(lctx, load, seconds)
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	tick := time.NewTicker(soakEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return during, err
		case <-tick.C:
			now, err := figures(ctx)
			if err != nil {
				return nil, err
			}
			during = append(during, now)
			fmt.Fprintf(os.Stderr, "bench: soak: %v\n", now)
		}
	}
}

// soakRest waits until everything is as few as it was before, and memory becomes no
// less any more, and returns what is held then. What does not come to rest within
// soakSettle is for the verdict to tell.
func soakRest(ctx context.Context, before []command.Process, figures func(context.Context) ([]command.Process, error)) (now []command.Process, err error) {
	rested := func() bool {
		for _, p := range before {
			for _, f := range soakFigures {
				if !f.memory && soakOf(now, p.Process, f) > f.of(p)+f.slack {
					return false
				}
			}
		}
		return true
	}
	memory := func() (total int64) {
		for _, p := range now {
			total += p.MemoryBytes
		}
		return total
	}
	least, since, end := int64(math.MaxInt64), time.Time{}, time.Now().Add(soakSettle)
	for {
		if now, err = figures(ctx); err != nil {
			return nil, err
		}
		if m := memory(); m < least-1<<20 || !rested() {
			least, since = m, time.Now()
		}
		if time.Since(since) > soakSteady || time.Now().After(end) {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second): // between two looks
		}
	}
}

// soakFigure is one of those of a process.
type soakFigure struct {
	name   string
	of     func(command.Process) int64
	slack  int64 // what one rest may have above an earlier one
	memory bool  // the later rests are compared with the earlier: much is made once and kept, as the most that was needed at a time asks for
}

var soakFigures = []soakFigure{
	{"goroutines", func(p command.Process) int64 { return int64(p.Goroutines) }, 10, false},
	{"files", func(p command.Process) int64 { return int64(p.Files) }, 5, false},
	{"streams", func(p command.Process) int64 { return int64(p.Streams) }, 3, false},
	{"heap in use, MB", func(p command.Process) int64 { return p.HeapBytes >> 20 }, 5, true},
	{"resident memory, MB", func(p command.Process) int64 { return p.MemoryBytes >> 20 }, 20, true},
}

// soakOf is a figure of a process, or -1.
func soakOf(ps []command.Process, process string, f soakFigure) int64 {
	for _, p := range ps {
		if p.Process == process {
			return f.of(p)
		}
	}
	return -1
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
// under load, and at rest after each round.
func (b *bench) soakVerdict(before []command.Process, during, rests [][]command.Process) error {
	var grown []string
	for _, p := range before {
		for _, f := range soakFigures {
			var under, rest []int64
			for _, ps := range during {
				under = append(under, soakOf(ps, p.Process, f))
			}
			slices.Sort(under)
			load := int64(-1)
			if len(under) > 0 {
				load = under[len(under)/2]
			}
			row := fmt.Sprintf("%d; %d;", f.of(p), load)
			for _, ps := range rests {
				rest = append(rest, soakOf(ps, p.Process, f))
				row += fmt.Sprintf(" %d", rest[len(rest)-1])
			}
			b.add("soak: "+p.Process+": "+f.name, row, "-", "-", "-", "flat")
			from := f.of(p)
			if f.memory {
				from = slices.Max(rest[:max(1, len(rest)/2)])
			}
			if slices.Max(rest) > from+f.slack || slices.Min(rest) < 0 {
				grown = append(grown, p.Process+": "+f.name)
			}
		}
	}
	if len(grown) > 0 {
		return fmt.Errorf("grows: %s (at rest; under load; at rest after each round: see the table)", strings.Join(grown, "; "))
	}
	return nil
}
