package main

import (
	"flag"
	"log/slog"

	"github.com/peterbourgon/ff/v3"
)

type config struct {
	socket string
	root   string
	state  string
	key    string
	level  slog.Level
}

func configure(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("telemount", flag.ContinueOnError)
	fs.StringVar(&c.socket, "socket", "/run/docker/plugins/telemount.sock", "where Docker reaches the plugin")
	fs.StringVar(&c.root, "root", "/mnt/volumes", "folder of the mount points; Docker must see it at the same path (propagated mount)")
	fs.StringVar(&c.state, "state", "/mnt/volumes/state.json", "file that remembers the volumes; holds paths of tokens, no tokens")
	fs.StringVar(&c.key, "identity", "/etc/berth/telemount.pem", "file with the key by which daemon containers know this plugin")
	fs.TextVar(&c.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	return c, ff.Parse(fs, args, ff.WithEnvVarPrefix("BERTH"))
}
