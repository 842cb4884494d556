package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth.dev/deploy/devcluster/cachedir"
	"berth.dev/deploy/devcluster/engine"
	"berth.dev/deploy/devcluster/internal/cluster"
	"berth.dev/deploy/devcluster/internal/kubeconfig"
	"berth.dev/deploy/devcluster/internal/nodeimage"
)

func run(ctx context.Context, args []string) error {
	c, err := configure(args)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "• "+format+"\n", args...) }
	cache, err := cachedir.Root()
	if err != nil {
		return err
	}
	if c.command == "status" { // reads only
		return status(ctx)
	}
	unlock, err := cachedir.Lock(cache, func() { say("waiting for another devcluster command to end") })
	if err != nil {
		return err
	}
	defer unlock()
	switch c.command {
	case "up":
		return up(ctx, c, cache, say)
	case "load":
		return cluster.Load(ctx, c.images, say)
	case "down":
		if err := cluster.Down(ctx, say); err != nil {
			return err
		}
		return removeOutputs(c)
	}
	return errors.New(usage)
}

// up builds what is missing, makes the cluster ready and writes the kubeconfig,
// with a link to the matching kubectl beside it.
func up(ctx context.Context, c config, cache string, say nodeimage.Say) error {
	began := time.Now()
	image, err := nodeimage.Plan(ctx, c.source, cache)
	if err != nil {
		return err
	}
	if err := image.Ensure(ctx, say); err != nil {
		return err
	}
	content, err := cluster.Up(ctx, cluster.Options{Image: image.Tag, Port: c.port, Say: say})
	if err != nil {
		return err
	}
	if err := image.RemoveOthers(ctx); err != nil {
		return err
	}
	if err := kubeconfig.Write(c.kubeconfig, content); err != nil {
		return err
	}
	if err := link(image.Kubectl(), kubectlLink(c)); err != nil {
		return err
	}
	say("ready after %.1f s; KUBECONFIG=%s", time.Since(began).Seconds(), c.kubeconfig)
	return nil
}

func kubectlLink(c config) string { return filepath.Join(filepath.Dir(c.kubeconfig), "kubectl") }

// link makes or redirects a symbolic link in one step.
func link(target, name string) error {
	if current, err := os.Readlink(name); err == nil && current == target {
		return nil
	}
	tmp := name + ".new"
	os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	return nil
}

// removeOutputs removes what up wrote into the checkout.
func removeOutputs(c config) error {
	for _, path := range []string{c.kubeconfig, kubectlLink(c)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove what up wrote: %w", err)
		}
	}
	return nil
}

func status(ctx context.Context) error {
	out, err := engine.Run(ctx, "exec", cluster.Name, "noded", "status")
	if engine.NotFound(err) {
		return errors.New("there is no cluster; type: make cluster")
	}
	if err != nil && strings.Contains(err.Error(), "not running") {
		return errors.New("the cluster is stopped; type: make cluster")
	}
	if err != nil {
		return err
	}
	fmt.Println(out)
	return nil
}
