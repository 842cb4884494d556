// Command noded is PID 1 of the devcluster's container: it makes the container
// into a Kubernetes node and keeps it one.
//
//	noded                   PID 1: reap orphans, pass signals on to `noded run`
//	noded run               prepare the kernel, start and restart the components
//	noded wait [-timeout d] [-server url]
//	                        wait until the cluster is usable, saying what is
//	                        awaited on standard error; then print a kubeconfig
//	                        for that server URL on standard output
//	noded status            print components and checks as JSON
//
// All state is under /var (a volume), so the container can be stopped, started
// and made anew around it. Logs are in /var/log/berth-node/<component>.log.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if filepath.Base(os.Args[0]) == runcFilter {
		if err := filterRunc(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, runcFilter+":", err)
			os.Exit(1)
		}
	}
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "noded:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if len(args) == 0 {
		return initProcess()
	}
	switch args[0] {
	case "run":
		return run()
	case "wait":
		return wait(args[1:])
	case "status":
		return printStatus()
	}
	return fmt.Errorf("unknown command %q; see the package comment", args[0])
}
