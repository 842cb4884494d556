package local

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// guard is the process that cleans the directory if this one is killed.
type guard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// GuardWord is the program's own word for being a guard; behind it the directory,
// and whether it is to be removed.
const GuardWord = "guard"

const (
	remove  = "remove"
	keep    = "keep"
	goodbye = "done\n"
)

// startGuard starts it, before there is anything to guard. No signal of the
// terminal reaches it.
func startGuard(dir string, made bool) (*guard, error) {
	what := keep
	if made {
		what = remove
	}
	cmd := exec.Command("/proc/self/exe", GuardWord, dir, what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start what unmounts if this process is killed: %w", err)
	}
	return &guard{cmd: cmd, in: in}, nil
}

// dismiss ends it; there is nothing to guard any more.
func (g *guard) dismiss() error {
	_, _ = io.WriteString(g.in, goodbye)
	_ = g.in.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("end the guard of the mount: %w", err)
	}
	return nil
}

// Guard is the guard itself: it waits for the end of in.
func Guard(args []string, in io.Reader) error {
	if len(args) != 2 || args[1] != remove && args[1] != keep {
		return fmt.Errorf("%s: want a directory, and %s or %s", GuardWord, remove, keep)
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	word, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("wait for the mount's end: %w", err)
	}
	if string(word) == goodbye {
		return nil
	}
	return clean(args[0], args[1] == remove)
}
