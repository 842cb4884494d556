// Kubectl is kubectl, built from its own module, so that the benchmark has
// what a user would use instead on machines without it.
package main

import (
	"os"

	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	if err := cmd.NewDefaultKubectlCommand().Execute(); err != nil {
		util.CheckErr(err)
		os.Exit(1)
	}
}
