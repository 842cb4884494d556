package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/peterbourgon/ff/v3"
)

// config is what flags and the environment (prefix BERTH) say.
type config struct {
	namespace  string
	image      string
	kubeconfig string
	listen     string
	webhook    string
	resolvConf string
	excludeEnv []string
	level      slog.Level
}

func configure(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("manager", flag.ContinueOnError)
	fs.StringVar(&c.namespace, "namespace", "", "the manager's own namespace")
	fs.StringVar(&c.image, "image", "", "image of the agent: the manager's own")
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig file; empty inside a cluster")
	fs.StringVar(&c.listen, "listen", ":8080", "address of the tunnel endpoint and the health checks")
	fs.StringVar(&c.webhook, "webhook-listen", ":8443", "address of the admission webhook")
	fs.StringVar(&c.resolvConf, "resolv-conf", "/etc/resolv.conf", "where cluster domain and DNS servers are read from")
	var exclude string
	fs.StringVar(&exclude, "exclude-env", "", "variables that never leave the cluster: names or patterns with * and ?, with commas between them")
	fs.TextVar(&c.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH")); err != nil {
		return c, err
	}
	switch {
	case fs.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case c.namespace == "" || c.image == "":
		return c, errors.New("namespace and image must be given")
	}
	for p := range strings.SplitSeq(exclude, ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if _, err := path.Match(p, ""); err != nil {
			return c, fmt.Errorf("exclude-env %q: %w", p, err)
		}
		c.excludeEnv = append(c.excludeEnv, p)
	}
	return c, nil
}
