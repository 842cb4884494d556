package main

import (
	"flag"
	"fmt"
	"strings"
	"time"

	"berth.dev/services/forwarder/internal/port"

	"github.com/peterbourgon/ff/v3"
)

// config is what forwarder is told. Flags win over BERTH_… in the environment.
type config struct {
	part   string // front or back
	ports  []port.Port
	socket string
	check  bool
	idle   time.Duration
}

const usage = "forwarder front|back --ports 80/tcp,53/udp [flags]"

func parse(args []string) (config, error) {
	var c config
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return c, fmt.Errorf("say which part: %s", usage)
	}
	c.part = args[0]
	if c.part != "front" && c.part != "back" {
		return c, fmt.Errorf("%q is no part of it: %s", c.part, usage)
	}
	var ports string
	fs := flag.NewFlagSet("forwarder "+c.part, flag.ContinueOnError)
	fs.StringVar(&ports, "ports", "", "the `PORTS`, as 80/tcp,53/udp: front listens on them, back connects to them")
	fs.StringVar(&c.socket, "socket", "/run/berth-forward/front.sock", "Unix socket, in a volume of the two, at which back fetches front's sockets")
	fs.BoolVar(&c.check, "check", false, "back: end at once if something listens on one of the ports already")
	fs.DurationVar(&c.idle, "udp-idle", 90*time.Second, "back: how long a UDP flow is remembered that carries nothing")
	if err := ff.Parse(fs, args[1:], ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, fmt.Errorf("parse flags: %w", err)
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("parse flags: unexpected argument %q", fs.Arg(0))
	}
	var err error
	if c.ports, err = port.Parse(ports); err != nil {
		return c, fmt.Errorf("--ports: %w", err)
	}
	if c.idle <= 0 {
		return c, fmt.Errorf("--udp-idle: %v is no time to wait", c.idle)
	}
	return c, nil
}
