package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// builds measures what a build costs beyond docker build, and how long it takes
// from an edited file to the first answer that shows it: of ctl replace --watch,
// asked inside the cluster, against docker build and docker run, asked on the
// host. Both builders are the engine's own of the same kind.
func (b *bench) builds(ctx context.Context) error {
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil { // no change where it is up
		return err
	}
	dir := filepath.Join(b.dir, "app")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	program, err := os.ReadFile(b.load)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"load": program, "Dockerfile": []byte("FROM scratch\nCOPY load /\nCOPY version /\nENTRYPOINT [\"/load\"]\nCMD [\"web\", \"/version\", \"8080\"]\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o755); err != nil {
			return err
		}
	}
	n := 0
	edit := func() (string, error) {
		n++
		v := fmt.Sprintf("version %d", n)
		return v, os.WriteFile(filepath.Join(dir, "version"), []byte(v+"\n"), 0o644)
	}
	// Without buildx docker build is the classic builder, and so is ours then.
	env := append(os.Environ(), "DOCKER_BUILDKIT=0")
	kind := "classic"
	if exec.CommandContext(ctx, "docker", "buildx", "version").Run() == nil {
		env, kind = append(os.Environ(), "DOCKER_BUILDKIT=1"), "BuildKit"
	}
	var made []string
	defer func() {
		for _, id := range made {
			_, _ = out(context.WithoutCancel(ctx), "docker", "rmi", "-f", id)
		}
	}()
	timedBuild := func(argv ...string) (time.Duration, error) {
		if _, err := edit(); err != nil {
			return 0, err
		}
		cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], dir)...)
		cmd.Env = env
		t := time.Now()
		o, err := cmd.Output()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
		}
		made = append(made, strings.TrimSpace(string(o)))
		return time.Since(t), nil
	}
	if _, err := timedBuild(b.ctl, "build"); err != nil { // starts builder
		return err
	}
	const rounds = 5
	var ours, docker []time.Duration
	for range rounds { // by turns: the machine's load is both's
		d, err := timedBuild("docker", "build", "-q")
		if err != nil {
			return err
		}
		o, err := timedBuild(b.ctl, "build")
		if err != nil {
			return err
		}
		ours, docker = append(ours, o), append(docker, d)
	}
	beyond := median(ours) - median(docker)
	b.add("build of one changed file, "+kind, ms(median(ours)), ms(median(docker)), "-", fmt.Sprintf("%+d ms", beyond.Milliseconds()), "<= +100 ms")

	if _, err := out(ctx, "docker", "network", "create", plainNetwork); err != nil {
		return err
	}
	defer func() { _, _ = out(context.WithoutCancel(ctx), "docker", "network", "rm", plainNetwork) }()
	var plain []time.Duration
	for range rounds {
		d, id, err := b.buildAndRun(ctx, dir, env, edit)
		if err != nil {
			return err
		}
		plain, made = append(plain, d), append(made, id)
	}
	watched, err := b.watch(ctx, dir, env, edit, rounds)
	if err != nil {
		return err
	}
	b.add("edit to first answer", ms(median(watched)), ms(median(plain)), "-", ratio(float64(median(watched)), float64(median(plain))), "-")
	return nil
}

// plainNetwork is what docker run's containers are in: not every engine has its
// default bridge.
const plainNetwork = "berth-bench"

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// buildAndRun is the plain way: stop the old one, build, run, ask.
func (b *bench) buildAndRun(ctx context.Context, dir string, env []string, edit func() (string, error)) (time.Duration, string, error) {
	want, err := edit()
	if err != nil {
		return 0, "", err
	}
	t := time.Now()
	build := exec.CommandContext(ctx, "docker", "build", "-q", dir)
	build.Env = env
	o, err := build.Output()
	if err != nil {
		return 0, "", fmt.Errorf("docker build: %w", err)
	}
	image := strings.TrimSpace(string(o))
	id, err := out(ctx, "docker", "run", "-d", "--rm", "--network", plainNetwork, "-p", "127.0.0.1::8080", image)
	if err != nil {
		return 0, "", err
	}
	defer func() { _, _ = out(context.WithoutCancel(ctx), "docker", "kill", id) }()
	port, err := out(ctx, "docker", "port", id, "8080/tcp")
	if err != nil {
		return 0, "", err
	}
	for time.Since(t) < time.Minute {
		resp, err := http.Get("http://" + strings.Fields(port)[0])
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if strings.TrimSpace(string(body)) == want {
				return time.Since(t), image, nil
			}
		}
	}
	return 0, "", errors.New("docker run did not answer within a minute")
}

// watch edits under ctl replace --watch.
func (b *bench) watch(ctx context.Context, dir string, env []string, edit func() (string, error), rounds int) (all []time.Duration, err error) {
	cmd := exec.CommandContext(ctx, b.ctl, "replace", "frontend-v1", "--docker-build", dir, "--watch")
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_, lerr := out(context.WithoutCancel(ctx), b.ctl, "leave", "frontend-v1")
		_ = cmd.Wait() // the handler's exit code
		err = errors.Join(err, lerr, b.settle(context.WithoutCancel(ctx), "frontend-v1"))
	}()
	answers := func(want string) (time.Duration, error) {
		t := time.Now()
		for time.Since(t) < time.Minute {
			if got, err := b.cluster.Get(ctx, "http://frontend-v1"); err == nil && strings.TrimSpace(got) == want {
				return time.Since(t), nil
			}
		}
		return 0, fmt.Errorf("no answer %q within a minute", want)
	}
	current, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return nil, err
	}
	if _, err := answers(strings.TrimSpace(string(current))); err != nil {
		return nil, err
	}
	for range rounds {
		want, err := edit()
		if err != nil {
			return nil, err
		}
		d, err := answers(want)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}
