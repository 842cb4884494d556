package main

import (
	"errors"
	"flag"
	"log/slog"
	"path/filepath"

	"github.com/peterbourgon/ff/v3"
)

type config struct {
	socket string
	root   string
	state  string
	key    string
	level  slog.Level
}

// mountWord is the program's word for mounting on this machine.
const mountWord = "mount"

type localConfig struct {
	dir   string
	level slog.Level
}

func configureLocal(args []string) (localConfig, error) {
	var c localConfig
	fs := flag.NewFlagSet("telemount "+mountWord, flag.ContinueOnError)
	fs.StringVar(&c.dir, "dir", "", "where to mount: an empty directory, or one that is made and removed again")
	fs.TextVar(&c.level, "log-level", slog.LevelWarn, "debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if !filepath.IsAbs(c.dir) || fs.NArg() > 0 {
		return c, errors.New("telemount mount: want --dir and an absolute path")
	}
	return c, nil
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
