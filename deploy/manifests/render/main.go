// Command render prints the plain manifests, for kubectl apply -f -.
package main

import (
	"flag"
	"fmt"
	"os"

	"berth.dev/deploy/manifests"
)

func main() {
	var o manifests.Options
	flag.StringVar(&o.Namespace, "namespace", "berth", "the manager's namespace")
	flag.StringVar(&o.Image, "image", "berth-cluster:0.1.0-dev", "image of manager and agent")
	flag.StringVar(&o.Version, "version", "0.1.0-dev", "version label")
	flag.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
	flag.Parse()
	b, err := manifests.Render(o)
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
