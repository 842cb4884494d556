package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// initProcess is PID 1. containerd's shims outlive the processes that start
// them and become PID 1's children, so PID 1 must reap children it never knew.
// That does not go together with os/exec, which waits for its own; hence two
// processes.
func initProcess() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	child, err := os.StartProcess("/proc/self/exe", []string{"noded", "run"}, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start noded run: %w", err)
	}
	pid := child.Pid
	go func() {
		for s := range signals {
			syscall.Kill(pid, s.(syscall.Signal))
		}
	}()
	for {
		var status syscall.WaitStatus
		reaped, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case reaped == pid && status.ExitStatus() != 0:
			return fmt.Errorf("noded run ended: exit status %d, signal %v", status.ExitStatus(), status.Signal())
		case reaped == pid:
			return nil
		}
	}
}
