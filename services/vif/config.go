package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"berth.dev/bus"
	"berth.dev/bus/subject"
	"berth.dev/services/vif/internal/resolvconf"

	"github.com/peterbourgon/ff/v3"
)

// config is what vif is told. Flags win over BERTH_… in the environment.
type config struct {
	connection string
	busConfig  string
	standby    string // runner's socket, for a process of this machine
	standbyFD  int    // the same, dialled
	restore    bool
	resolvConf string
	iface      string
	mtu        int
	logLevel   slog.Level
	bus        bus.Config
}

func parse(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("vif", flag.ContinueOnError)
	fs.StringVar(&c.connection, "connection", "", "id of the connection")
	fs.StringVar(&c.standby, "standby", "", "be a process of this machine, in the background: stand by at runner's `SOCKET` for a connection")
	fs.IntVar(&c.standbyFD, "standby-fd", 0, "the same in the foreground, where the socket is open already; for -standby")
	fs.BoolVar(&c.restore, "restore", false, "put this machine's resolver configuration back, if a vif that was killed has left it, and end")
	fs.StringVar(&c.busConfig, "bus-config", bus.ConfigFile, "file with the identity for the bus")
	fs.StringVar(&c.resolvConf, "resolv-conf", resolvconf.Path, "file in which resolvers find their servers")
	fs.StringVar(&c.iface, "interface", "berth0", "name of the VIF")
	fs.IntVar(&c.mtu, "mtu", defaultMTU, "MTU of the VIF")
	take := bus.FilesFlag(fs)
	fs.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, fmt.Errorf("parse flags: %w", err)
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("parse flags: unexpected argument %q", fs.Arg(0))
	}
	if c.mtu < 1280 || c.mtu > 65520 { // RFC 8200, 5: IPv6's least
		return c, fmt.Errorf("parse flags: -mtu %d is not between 1280 and 65520", c.mtu)
	}
	if c.onHost() || c.restore {
		return c, nil // the rest comes with the order
	}
	if !subject.Valid(c.connection) {
		return c, fmt.Errorf("parse flags: -connection %q is not an id", c.connection)
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

// onHost: vif is a process of this machine.
func (c config) onHost() bool { return c.standby != "" || c.standbyFD != 0 }
