package localrun

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"berth.dev/bus/fault"
)

func sh(script string) (*Command, *bytes.Buffer) {
	var out bytes.Buffer
	return &Command{Argv: []string{"sh", "-c", script}, Env: append(os.Environ(), "GREETING=hello"), Stdout: &out, Stderr: &out}, &out
}

func TestRun(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, `[ "$GREETING" = hello ]`: 0, "kill -9 $$": 137, "kill -INT $$": 130} {
		c, out := sh(script)
		if code, err := c.Run(); err != nil || code != want {
			t.Errorf("%s: %d, %v, want %d: %s", script, code, err, want, out)
		}
	}
	c := &Command{Argv: []string{"no-such-command"}}
	if _, err := c.Run(); fault.CodeOf(err) != fault.InvalidArgument || fault.CodeOf(Check(c.Argv)) != fault.InvalidArgument {
		t.Error(err)
	}
}

// A signal that comes before the start is not lost.
func TestSignal(t *testing.T) {
	c, out := sh(`trap 'exit 9' TERM; while :; do sleep 0.05; done`)
	c.Signal(syscall.SIGKILL)
	if code, err := c.Run(); err != nil || code != 137 {
		t.Errorf("%d, %v: %s", code, err, out)
	}
	c.Signal(syscall.SIGTERM) // ended long since
}
