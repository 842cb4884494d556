package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"berth.dev/bus"

	"github.com/peterbourgon/ff/v3"
)

// config is what builder is told. Flags win over BERTH_… in the environment.
// Which engine it is comes from Docker's own variables (DOCKER_HOST, …).
type config struct {
	workspace string
	door      string
	busConfig string
	lock      string
	logLevel  slog.Level
	bus       bus.Config
	words     []string // what builder is to do but serve
}

func parse(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("builder", flag.ContinueOnError)
	fs.StringVar(&c.workspace, "workspace", "default", "name of the workspace, for the log")
	fs.String("network", "", "taken for the sake of a common environment; builder needs no network but the bus's")
	fs.StringVar(&c.door, "door", "/run/berth/builder.sock", "socket at which callers hand over build contexts")
	fs.StringVar(&c.busConfig, "bus-config", bus.ConfigFile, "file with the identity for the bus")
	fs.StringVar(&c.lock, "lock", "", "`FILE` whose lock to hold, by which ctl finds this process when it is one of the machine's")
	take := bus.FilesFlag(fs)
	fs.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, fmt.Errorf("parse flags: %w", err)
	}
	if c.words = fs.Args(); len(c.words) == 1 && c.words[0] == "stream" {
		return c, nil
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("parse flags: unexpected argument %q", fs.Arg(0))
	}
	if _, err := take(os.Stdin); err != nil {
		return c, err
	}
	raw, err := os.ReadFile(c.busConfig)
	if err != nil {
		return c, fmt.Errorf("read the identity for the bus: %w", err)
	}
	if err := json.Unmarshal(raw, &c.bus); err != nil {
		// Not err itself: it may quote the seed.
		return c, fmt.Errorf("read the identity for the bus: %s is not the JSON of a bus configuration", c.busConfig)
	}
	return c, nil
}
