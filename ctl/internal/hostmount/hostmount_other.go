//go:build !linux

package hostmount

import (
	"os/exec"

	"berth.dev/bus/fault"
)

// Check tells what this machine lacks for FUSE mounts by this user.
func Check() error {
	return fault.New(fault.FailedPrecondition, "--docker-run -- IMAGE", "nothing can be mounted on this machine: that needs Linux; a handler in a container has the volumes everywhere")
}

func prepare([]byte, ...string) (*exec.Cmd, func(), error) { return nil, nil, Check() }

// Sweep has nothing to do where nothing is mounted.
func Sweep() ([]string, error) { return nil, nil }
