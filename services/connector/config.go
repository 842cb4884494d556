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

// config is what connector is told. Flags win over BERTH_… in the environment.
type config struct {
	storeDir   string
	host       string
	port       int
	advertise  string
	image      string
	lock       string
	onHost     bool
	logLevel   slog.Level
	identities []bus.Identity
	bus        bus.Config    // its own identity
	handover   *bus.Handover // where later ctls introduce themselves; nil: nowhere
}

func parse(args []string) (config, error) {
	var c config
	var identities, busConfig string
	fs := flag.NewFlagSet("connector", flag.ContinueOnError)
	fs.StringVar(&c.storeDir, "store-dir", "/var/lib/berth", "directory of the streams")
	fs.StringVar(&c.host, "listen-host", "0.0.0.0", "address on which the bus listens")
	fs.IntVar(&c.port, "listen-port", 4222, "port on which the bus listens; -1 for any")
	fs.StringVar(&c.advertise, "advertise", "", "address at which daemon containers reach the bus (default: the container's own when it starts)")
	fs.StringVar(&c.image, "cluster-image", "berth-cluster:"+version, "image of the manager and the agent")
	fs.StringVar(&identities, "identities", bus.IdentitiesFile, "file with the identities that the bus admits")
	fs.StringVar(&busConfig, "bus-config", bus.ConfigFile, "file with connector's own identity")
	fs.BoolVar(&c.onHost, "on-host", false, "connections are this machine's own, whose resolver has to know the cluster's namespaces")
	fs.StringVar(&c.lock, "lock", "", "`FILE` whose lock to hold, by which ctl finds this process when it is one of the machine's")
	take := bus.FilesFlag(fs)
	fs.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, fmt.Errorf("parse flags: %w", err)
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("parse flags: unexpected argument %q", fs.Arg(0))
	}
	var err error
	if c.handover, err = take(os.Stdin); err != nil {
		return c, err
	}
	if err := readJSON(identities, &c.identities); err != nil {
		return c, fmt.Errorf("read the bus's identities: %w", err)
	}
	if err := readJSON(busConfig, &c.bus); err != nil {
		return c, fmt.Errorf("read the identity for the bus: %w", err)
	}
	return c, nil
}

// readJSON never quotes the file's content, which may be a seed.
func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if json.Unmarshal(raw, v) != nil {
		return fmt.Errorf("%s is not the JSON that it should be", path)
	}
	return nil
}
