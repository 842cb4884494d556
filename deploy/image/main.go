// Command image makes Berth's two images out of static binaries, without an image
// registry:
//
//	image VERSION BIN
//
//	berth:VERSION          the local processes, on a base with curl and fuse
//	berth-cluster:VERSION  manager and agent, on nothing
//
// The base is a small Debian root file system that mmdebstrap makes of packages,
// imported once as berth-base:<key>. Each image carries the key of what it was
// made from as a label, so a second run is a matter of hashing the binaries.
//
// It is run by the script `build` beside it, in this folder.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: image VERSION BIN")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}
