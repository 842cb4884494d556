package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"berth.dev/bus"
	"berth.dev/services/runner/internal/volplugin"

	"github.com/peterbourgon/ff/v3"
)

// config is what runner is told. Flags win over BERTH_… in the environment.
// Which engine it is comes from Docker's own variables (DOCKER_HOST, …).
type config struct {
	workspace    string
	network      string
	image        string
	volumeDriver string
	volumePlugin string
	telemount    string
	busConfig    string
	standby      string // where vifs of this machine stand by; empty: daemon containers instead
	lock         string
	engineUsed   bool // by an earlier runner, on a machine
	logLevel     slog.Level
	bus          bus.Config
}

func parse(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("runner", flag.ContinueOnError)
	fs.StringVar(&c.workspace, "workspace", "default", "name of the workspace: the value of the label on all that is ours")
	fs.StringVar(&c.network, "network", "berth", "the workspace's Docker network, made by ctl")
	fs.StringVar(&c.image, "image", "", "image of the containers that are Berth's own (default: that of runner's own container)")
	fs.StringVar(&c.volumeDriver, "volume-driver", volplugin.Driver, "Docker volume driver of remote volumes; another one than the default is not installed by runner")
	fs.StringVar(&c.volumePlugin, "volume-plugin", volplugin.Auto, "how the volume plugin runs: managed by the engine, by its socket in a container, auto (managed, else socket), or none")
	fs.StringVar(&c.telemount, "telemount", "/usr/local/bin/telemount", "the volume plugin's program")
	fs.StringVar(&c.busConfig, "bus-config", bus.ConfigFile, "file with the identity for the bus")
	fs.StringVar(&c.standby, "standby", "", "run as a process of this machine, and listen at `SOCKET` for its vif")
	fs.BoolVar(&c.engineUsed, "engine-used", false, "with --standby: an earlier runner had handlers on the engine")
	fs.StringVar(&c.lock, "lock", "", "`FILE` whose lock to hold, by which ctl finds this process")
	take := bus.FilesFlag(fs)
	fs.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, fmt.Errorf("parse flags: %w", err)
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("parse flags: unexpected argument %q", fs.Arg(0))
	}
	if !volplugin.ValidWay(c.volumePlugin) {
		return c, fmt.Errorf("parse flags: --volume-plugin %q: auto, managed, socket or none", c.volumePlugin)
	}
	if c.volumeDriver != volplugin.Driver {
		c.volumePlugin = volplugin.None
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
