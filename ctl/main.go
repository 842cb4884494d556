// Command ctl is Berth's command line: it makes sure that the workspace is up,
// publishes a command on the bus, follows its facts and attaches a terminal. It
// keeps no state; see README.md.
package main

import (
	"context"
	"os"

	"berth.dev/ctl/internal/cli"
)

// version is set by the linker.
var version = "0.1.0-dev"

func main() { os.Exit(run(context.Background(), os.Args[1:])) }

func run(ctx context.Context, args []string) int {
	app := &cli.App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version}
	return app.Main(ctx, args)
}
