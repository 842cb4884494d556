package cluster

import (
	"context"
	"fmt"
	"os"

	"berth.dev/deploy/devcluster/engine"
)

// privileges are the flags that give the node's container the rights of a
// machine. `--privileged` asks for every capability there is, and fails where
// the engine itself lacks one (nested containers, small virtual machines); what
// it would give is then asked for piece by piece, without CAP_SYS_RESOURCE. A
// container that does nothing tells which it is.
func privileges(ctx context.Context, image string) ([]string, error) {
	probe := func(flags []string) error {
		args := append([]string{"container", "run", "--rm", "--network", "none", "--label", label, "--entrypoint", "/bin/true"}, flags...)
		_, err := engine.Run(ctx, append(args, image)...)
		return err
	}
	all := []string{"--privileged"}
	first := probe(all)
	if first == nil {
		return append(all, "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"), nil
	}
	pieces := []string{
		"--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE",
		"--security-opt", "seccomp=unconfined",
		"--security-opt", "apparmor=unconfined",
		"--security-opt", "systempaths=unconfined",
		"--device-cgroup-rule", "a *:* rwm",
	}
	for _, device := range []string{"/dev/kmsg", "/dev/fuse", "/dev/net/tun"} {
		if _, err := os.Stat(device); err == nil {
			pieces = append(pieces, "--device", device)
		}
	}
	if err := probe(pieces); err != nil {
		return nil, fmt.Errorf("the engine runs neither a privileged container (%w) nor one with the single rights of one: %w", first, err)
	}
	return pieces, nil
}
