// Bench prints, from one run and side by side, Berth, what one would use
// instead (kubectl port-forward, kubectl rollout restart, docker run), and the
// limit (a direct connection from the pod's node; the engine's own time for as
// many containers). Only ratios count: absolute
// figures are the machine's.
//
// It uses the cluster of $KUBECONFIG with Berth installed or not, brings its
// own pod and image, and takes both away again. Words on its command line choose
// steps: engage, beside, connect, path, names, idle, builds; and soak and volumes,
// which are made by name only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
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
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// step makes some rows.
type step struct {
	name   string
	do     func(*bench, context.Context) error
	byName bool // only
}

// run takes all steps, or those that are named.
func run(ctx context.Context, names []string) error {
	steps := []step{
		{name: "engage", do: (*bench).engage}, {name: "beside", do: (*bench).beside}, {name: "connect", do: (*bench).connect},
		{name: "path", do: (*bench).path}, {name: "names", do: (*bench).names}, {name: "idle", do: (*bench).idle},
		{name: "builds", do: (*bench).builds}, {name: "soak", do: (*bench).soak, byName: true},
		{name: "volumes", do: (*bench).volumes, byName: true},
	}
	for _, n := range names {
		if !slices.ContainsFunc(steps, func(s step) bool { return s.name == n }) {
			return fmt.Errorf("there is no step %q", n)
		}
	}
	b, err := open(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	for _, s := range steps {
		if len(names) > 0 && !slices.Contains(names, s.name) || len(names) == 0 && s.byName {
			continue
		}
		if err := s.do(b, ctx); err != nil {
			return errors.Join(err, b.print())
		}
	}
	return b.print()
}

// print prints the rows so far, as a table of Markdown.
func (b *bench) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	line("figure", "Berth", "instead", "direct", "ratio", "target")
	line("---", "---", "---", "---", "---", "---")
	for _, r := range b.rows {
		line(r.Figure, r.Berth, r.Instead, r.Direct, r.Ratio, r.Target)
	}
	return w.Flush()
}
