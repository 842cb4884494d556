// Command devcluster runs a real Kubernetes in one container, without any image
// registry: everything in it is built from Go modules and Debian packages.
//
//	devcluster up               make the cluster ready; say where its kubeconfig is
//	devcluster load IMAGE...    copy local images into it
//	devcluster status           its components and checks
//	devcluster down             remove it and its state; keep the caches
//
// Every command may be given at any time and any number of times.
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
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
}
