// Command hyperkube is every Kubernetes process of the node in one static
// binary, told apart by the name it is called by (or by its first argument).
//
// Upstream ships one binary per process; linking them once saves some 300 MB of
// image and, since the kernel shares the pages of one file, a good deal of
// memory on a small machine. The processes themselves are upstream's, flag for
// flag:
//
//	hyperkube apiserver --etcd-servers ...
//	hyperkube kubelet --config ...
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client-go's own metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // the build's version as a metric
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	if name == "hyperkube" && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	command := commandFor(name)
	if command == nil {
		fmt.Fprintln(os.Stderr, "usage: hyperkube apiserver|controllers|scheduler|proxy|kubelet [flags]")
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

// commandFor builds only the command asked for: building one registers its
// flags and feature gates in process-wide tables, so two would collide.
func commandFor(name string) *cobra.Command {
	switch name {
	case "apiserver":
		return apiserver.NewAPIServerCommand()
	case "controllers":
		return controllers.NewControllerManagerCommand()
	case "scheduler":
		return scheduler.NewSchedulerCommand()
	case "proxy":
		return proxy.NewProxyCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	}
	return nil
}
