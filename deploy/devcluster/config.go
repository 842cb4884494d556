package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// config is what flags and the environment say.
type config struct {
	command    string
	images     []string // of load
	kubeconfig string
	port       string
	source     string // deploy/devcluster in the checkout
}

const usage = `usage: devcluster up [--kubeconfig FILE] [--port N] | load IMAGE... | status | down [--kubeconfig FILE]`

func configure(args []string) (config, error) {
	var c config
	source, err := findSource()
	if err != nil {
		return c, err
	}
	c.source = source
	root := filepath.Dir(filepath.Dir(source))
	flags := flag.NewFlagSet("devcluster", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprintln(flags.Output(), usage); flags.PrintDefaults() }
	flags.StringVar(&c.kubeconfig, "kubeconfig", filepath.Join(root, ".cache", "devcluster", "kubeconfig"), "where `up` writes the kubeconfig")
	flags.StringVar(&c.port, "port", os.Getenv("BERTH_DEVCLUSTER_PORT"), "port of the API on 127.0.0.1 (default 16443, or any if that is taken) (BERTH_DEVCLUSTER_PORT)")
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // the command may stand first or after the flags
		c.command, args = args[0], args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	c.images = flags.Args()
	if c.command == "" && len(c.images) > 0 {
		c.command, c.images = c.images[0], c.images[1:]
	}
	if c.command == "" || (c.command == "load") != (len(c.images) > 0) {
		return c, errors.New(usage)
	}
	return c, nil
}

// findSource looks for deploy/devcluster in the working directory and above:
// the node is built from the checkout's sources.
func findSource() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		source := filepath.Join(dir, "deploy", "devcluster")
		if _, err := os.Stat(filepath.Join(source, "node", "go.mod")); err == nil {
			return source, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no deploy/devcluster here or above: run it in a checkout of Berth")
		}
	}
}
