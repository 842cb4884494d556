// Command etcd is the store behind the apiserver. It is built here, rather than
// taken from Debian, so that its version is the one this Kubernetes was tested
// with, and apart from hyperkube so that it does not pay for Kubernetes's start-up.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
