package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/port"

	"github.com/peterbourgon/ff/v3"
)

// config is what the manager wrote into the container's environment (prefix
// BERTH_AGENT), or flags.
type config struct {
	managers   []string
	pin        string
	engagement string
	ports      []port.Port
	mounts     []string
	tokenFile  string
	beside     lease.AgentID // of one beside a container; else zero
	proof      string
	user       string
	listen     string
	grace      time.Duration
	level      slog.Level
}

func configure(args []string) (config, error) {
	var c config
	var managers, ports, mounts, beside string
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.StringVar(&managers, "manager", "", "host:port of the manager, several separated by commas, tried in this order")
	fs.StringVar(&c.pin, "pin", "", "the manager's key")
	fs.StringVar(&c.engagement, "engagement", "", "id of the engagement, of an agent in a container's place")
	fs.StringVar(&beside, "beside", "", "who the agent is, of one beside a container: JSON")
	fs.StringVar(&c.proof, "proof", "", "its proof for the manager, in the place of a token")
	fs.StringVar(&c.user, "user", "", "uid:gid to become")
	fs.StringVar(&ports, "ports", "", "ports to listen on: 8080/TCP,53/UDP")
	fs.StringVar(&mounts, "mounts", "", "mount paths of the engaged container, separated by colons")
	fs.StringVar(&c.tokenFile, "token-file", "/var/run/berth/token", "the pod's token for the manager")
	fs.StringVar(&c.listen, "listen", "", "address of the health checks; empty: none")
	fs.DurationVar(&c.grace, "grace", 30*time.Second, "the pod's termination grace period")
	fs.TextVar(&c.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH_AGENT")); err != nil {
		return c, err
	}
	if beside != "" {
		var err error
		if c.beside, err = lease.Unmarshal[lease.AgentID](beside); err != nil {
			return c, err
		}
	}
	if managers == "" || c.pin == "" || (c.engagement == "") == (c.beside.Name == "") {
		return c, errors.New("manager, pin, and one of engagement and beside must be given")
	}
	c.managers = strings.Split(managers, ",")
	if mounts != "" {
		c.mounts = strings.Split(mounts, ":")
	}
	for _, p := range strings.FieldsFunc(ports, func(r rune) bool { return r == ',' }) {
		number, protocol, _ := strings.Cut(p, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != port.TCP && protocol != port.UDP {
			return c, fmt.Errorf("port %q is not like 8080/TCP", p)
		}
		c.ports = append(c.ports, port.Port{Number: uint16(n), Protocol: protocol})
	}
	return c, nil
}
