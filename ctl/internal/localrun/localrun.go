// Package localrun runs a command of the user's on this machine, in the
// foreground: with our own terminal, its exit code ours. If we are killed it is
// told to end, where the kernel can do that (Linux).
package localrun

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/interrupt"
)

// Command is one that has not been started.
type Command struct {
	Argv           []string
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	mu      sync.Mutex
	process *os.Process
	told    os.Signal // before it was started
}

// Check tells whether there is such a command.
func Check(argv []string) error {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return fault.New(fault.InvalidArgument, "", "run %s: %v", argv[0], err)
	}
	return nil
}

// Run runs it to its end and returns its exit code.
func (c *Command) Run() (int, error) {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Env, c.Stdin, c.Stdout, c.Stderr
	cmd.SysProcAttr = endWithUs()
	// The kernel tells it of the end of the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fault.New(fault.InvalidArgument, "", "run %s: %v", c.Argv[0], err)
	}
	c.mu.Lock()
	c.process = cmd.Process
	told := c.told
	c.mu.Unlock()
	if told != nil {
		c.Signal(told)
	}
	err := cmd.Wait()
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		if code := ee.ExitCode(); code >= 0 {
			return code, nil
		}
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil // as shells have it
		}
		return interrupt.ExitCode, nil
	}
	return 0, err
}

// Signal sends a signal; one that comes before the start is sent after it. A
// command that has ended is fine.
func (c *Command) Signal(s os.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		c.told = s
		return
	}
	_ = c.process.Signal(s)
}
