package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// containers is how long the engine alone takes for what a connect starts, the
// median of n: plain docker run in waves, of which each waits for the one before,
// in a network that is made first (made) or is there.
func (b *bench) containers(ctx context.Context, n int, made bool, waves ...int) (time.Duration, error) {
	var all []time.Duration
	for range n {
		d, err := b.startContainers(ctx, made, waves)
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return all[n/2], nil
}

func (b *bench) startContainers(ctx context.Context, made bool, waves []int) (time.Duration, error) {
	var names []string
	defer func() {
		if len(names) > 0 {
			_, _ = out(context.WithoutCancel(ctx), append([]string{"docker", "rm", "-f"}, names...)...)
		}
		_, _ = out(context.WithoutCancel(ctx), "docker", "network", "rm", plainNetwork)
	}()
	t := time.Now()
	if _, err := out(ctx, "docker", "network", "create", plainNetwork); err != nil {
		return 0, err
	}
	if !made {
		t = time.Now()
	}
	for _, parallel := range waves {
		var g errgroup.Group
		for range parallel {
			name := fmt.Sprintf("%s-%d", plainNetwork, len(names))
			names = append(names, name)
			g.Go(func() error {
				_, err := out(ctx, "docker", "run", "-d", "--name", name, "--network", plainNetwork, image, "serve", "7100")
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return 0, err
		}
	}
	return time.Since(t), nil
}
