// Bench prints, from one run and side by side, Berth, what one would use
// instead (kubectl port-forward, kubectl rollout restart, docker run), and the
// limit (a direct connection from the pod's node). Only ratios count: absolute
// figures are the machine's.
//
// It uses the cluster of $KUBECONFIG with Berth installed or not, brings its
// own pod and image, and takes both away again.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
)

// row is a line of the table. Figures that could not be had are "-", with the
// reason below the table.
type row struct {
	Figure, Berth, Instead, Direct, Ratio, Target string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b, err := open(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	for _, step := range []func(context.Context) error{b.engage, b.connect, b.path, b.names, b.idle, b.builds} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "figure\tBerth\tinstead\tdirect\tratio\ttarget")
	for _, r := range b.rows {
		fmt.Fprintln(w, strings.Join([]string{r.Figure, r.Berth, r.Instead, r.Direct, r.Ratio, r.Target}, "\t"))
	}
	return w.Flush()
}
