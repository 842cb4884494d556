package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"berth.dev/deploy/devcluster/engine"
)

// Options is what a user may choose about a cluster.
type Options struct {
	Image string // node image, present in the engine
	Port  string // the API's on 127.0.0.1; "" for the usual one or, if taken, any
	Say   func(format string, args ...any)
}

// Up makes the cluster ready and returns its kubeconfig. It tries, in order,
// what costs least: the container as it is or started again; a new container
// around the old volume; everything anew, which loses what was in the cluster.
func Up(ctx context.Context, o Options) (kubeconfig []byte, err error) {
	c, err := inspect(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for the cluster: %w\nIs the container engine running? Try: docker info", err)
	}
	if c.exists && c.image != o.Image {
		o.Say("the cluster was made from another node image; making it anew")
		if err := Down(ctx, o.Say); err != nil {
			return nil, err
		}
		c = container{}
	}
	if c.exists && (o.Port == "" || c.port == o.Port) {
		kubeconfig, err = resume(ctx, c, o)
		if err == nil {
			return kubeconfig, nil
		}
		o.Say("the cluster cannot be resumed: %v", err)
	}
	if c.exists {
		o.Say("making a new container around the cluster's volume")
		if _, err := engine.Run(ctx, "container", "rm", "--force", Name); err != nil && !engine.NotFound(err) {
			return nil, fmt.Errorf("remove the old container: %w", err)
		}
		if kubeconfig, err = create(ctx, o); err == nil {
			return kubeconfig, nil
		}
		o.Say("that failed too: %v", err)
		o.Say("making the cluster anew, without what was in it")
		if err := Down(ctx, o.Say); err != nil {
			return nil, err
		}
	}
	return create(ctx, o)
}

// resume waits for a container that exists, starting it if it is stopped.
func resume(ctx context.Context, c container, o Options) ([]byte, error) {
	if !c.running {
		o.Say("starting the cluster")
		if _, err := engine.Run(ctx, "container", "start", Name); err != nil {
			return nil, err
		}
	}
	return await(ctx, c.port, o)
}

// create makes the network, the volume and the container where they are missing.
func create(ctx context.Context, o Options) ([]byte, error) {
	network, err := ensureNetwork(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := engine.Run(ctx, "volume", "create", "--label", label, Name); err != nil {
		return nil, fmt.Errorf("create volume: %w", err)
	}
	privileges, err := privileges(ctx, o.Image)
	if err != nil {
		return nil, err
	}
	port, err := freePort(o.Port)
	if err != nil {
		return nil, err
	}
	args := []string{"container", "run", "--detach",
		"--name", Name, "--hostname", Name, "--label", label,
		"--network", Name, "--ip", network.ip4,
		"--publish", "127.0.0.1:" + port + ":6443",
		"--cgroupns", "private",
		"--tmpfs", "/run:exec,mode=755", "--tmpfs", "/tmp:exec",
		"--volume", Name + ":/var",
		"--stop-timeout", "20",
		"--log-opt", "max-size=10m",
	}
	if network.ip6 != "" {
		args = append(args, "--ip6", network.ip6, "--sysctl", "net.ipv6.conf.all.disable_ipv6=0")
	}
	if _, err := os.Stat("/lib/modules"); err == nil {
		args = append(args, "--volume", "/lib/modules:/lib/modules:ro") // kube-proxy and CNI may load some
	}
	args = append(args, privileges...)
	o.Say("creating the cluster, with its API on 127.0.0.1:%s", port)
	if _, err := engine.Run(ctx, append(args, o.Image)...); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return await(ctx, port, o)
}

// await waits inside the container for readiness and brings the kubeconfig out.
func await(ctx context.Context, port string, o Options) ([]byte, error) {
	out, err := engine.Pipe(ctx, nil, &lines{say: o.Say}, "exec", Name, "noded", "wait", "--server", "https://127.0.0.1:"+port)
	if err == nil {
		return []byte(out + "\n"), nil
	}
	var failed *engine.Error
	if errors.As(err, &failed) {
		err = fmt.Errorf("wait for the cluster: %s", failed.Output)
	}
	if c, inspectErr := inspect(ctx); inspectErr == nil && !c.running {
		logs, _ := engine.Merged(ctx, "logs", "--tail", "20", Name)
		err = fmt.Errorf("the node's container ended; its last lines:\n%s", logs)
	}
	return nil, err
}

// lines passes what noded says on, line by line.
type lines struct {
	say  func(format string, args ...any)
	rest string
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest += string(p)
	for {
		line, rest, found := strings.Cut(l.rest, "\n")
		if !found {
			return len(p), nil
		}
		// Only its progress: an error comes back as such, once.
		if strings.Contains(line, " waiting for ") {
			l.say("%s", line)
		}
		l.rest = rest
	}
}
