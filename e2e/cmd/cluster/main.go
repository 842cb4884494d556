// Cluster is what the demo does to a cluster, for machines without kubectl:
//
//	cluster apply|delete FILE     the example, and waits for its deployments
//	cluster get URL               an HTTP request made inside the cluster
//	cluster namespace NAME        exit code 0 if there is one of that name
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: cluster apply|delete FILE | get URL")
	}
	c, err := rig.Open()
	if err != nil {
		return err
	}
	switch args[0] {
	case "apply":
		if err := c.Apply(ctx, args[1]); err != nil {
			return err
		}
		for _, d := range []string{"frontend-v1", "backend"} {
			if err := c.Settle(ctx, "default", d); err != nil {
				return err
			}
		}
		return nil
	case "delete":
		return c.Delete(ctx, args[1])
	case "get":
		out, err := c.Get(ctx, args[1])
		fmt.Print(out)
		return err
	}
	if args[0] == "namespace" {
		_, err := c.Kube.CoreV1().Namespaces().Get(ctx, args[1], metav1.GetOptions{})
		return err
	}
	return fmt.Errorf("unknown verb %q", args[0])
}
