// Command kubectl is the stock kubectl of the cluster's own Kubernetes version,
// for people and for tests: a machine without a registry or a download has
// nowhere else to get it from.
package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
