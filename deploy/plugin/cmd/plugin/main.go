// Command plugin installs, removes or shows the managed plugin:
//
//	plugin install BINARY | remove | status
//
// What it installs has no key: volumes of engagements need that of runner.
package main

import (
	"context"
	"fmt"
	"os"

	"berth.dev/deploy/plugin"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plugin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	e := plugin.Unix("/var/run/docker.sock")
	switch {
	case len(args) == 2 && args[0] == "install":
		b, err := os.ReadFile(args[1])
		if err != nil {
			return fmt.Errorf("read binary: %w", err)
		}
		_, err = e.Install(ctx, plugin.Contents{Binary: b, Version: "by hand", Pin: "none"})
		return err
	case len(args) == 1 && args[0] == "remove":
		return e.Remove(ctx)
	case len(args) == 1 && args[0] == "status":
		s, err := e.State(ctx)
		fmt.Printf("managed plugin: installed %v, enabled %v, version %s, pin %s\n", s.Installed, s.Enabled, s.Version, s.Pin)
		return err
	}
	return fmt.Errorf("usage: plugin install BINARY | remove | status")
}
