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
	named      map[port.Port]uint16 // the app's ports whose names the agent was given, and its own for them
	user       string
	listen     string
	grace      time.Duration
	level      slog.Level
}

func configure(args []string) (config, error) {
	var c config
	var managers, ports, mounts, beside, named, pod, namespace string
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.StringVar(&managers, "manager", "", "host:port of the manager, several separated by commas, tried in this order")
	fs.StringVar(&c.pin, "pin", "", "the manager's key")
	fs.StringVar(&c.engagement, "engagement", "", "id of the engagement, of an agent in a container's place")
	fs.StringVar(&beside, "beside", "", "who the agent is, of one beside a container: JSON")
	fs.StringVar(&pod, "pod", "", "the pod's name, where beside has none")
	fs.StringVar(&namespace, "namespace", "", "the pod's namespace, likewise")
	fs.StringVar(&c.proof, "proof", "", "its proof for the manager, in the place of a token")
	fs.StringVar(&named, "named", "", "ports of the app whose names the agent was given, and its own: 8080/TCP=15001")
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
		if pod != "" {
			c.beside.Pod, c.beside.Namespace = pod, namespace
		}
	}
	if managers == "" || c.pin == "" || (c.engagement == "") == (c.beside.Name == "") {
		return c, errors.New("manager, pin, and one of engagement and beside must be given")
	}
	c.managers = strings.Split(managers, ",")
	if mounts != "" {
		c.mounts = strings.Split(mounts, ":")
	}
	for _, s := range commas(ports) {
		p, err := parsePort(s)
		if err != nil {
			return c, err
		}
		c.ports = append(c.ports, p)
	}
	c.named = map[port.Port]uint16{}
	for _, s := range commas(named) {
		of, own, _ := strings.Cut(s, "=")
		p, err := parsePort(of)
		if err != nil {
			return c, err
		}
		at, err := strconv.ParseUint(own, 10, 16)
		if err != nil || at == 0 {
			return c, fmt.Errorf("port %q is not like 8080/TCP=15001", s)
		}
		c.named[p] = uint16(at)
	}
	return c, nil
}

func commas(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func parsePort(s string) (port.Port, error) {
	number, protocol, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || protocol != port.TCP && protocol != port.UDP {
		return port.Port{}, fmt.Errorf("port %q is not like 8080/TCP", s)
	}
	return port.Port{Number: uint16(n), Protocol: protocol}, nil
}
