package engine

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/fault"
)

// Each reason for there being no engine is told apart.
func TestExplains(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ host, says, hint string }{
		{"unix://" + filepath.Join(dir, "none.sock"), "no Docker socket", "systemctl start docker"},
		{"unix://" + dead, "not running", "systemctl start docker"},
		{"tcp://127.0.0.1:1", "does not answer", "docker -H"},
	}
	for _, c := range cases {
		t.Setenv("DOCKER_HOST", c.host)
		t.Setenv("HOME", dir)
		_, err := Open(t.Context())
		f := fault.From(err)
		if f == nil || !strings.Contains(f.Message, c.says) || !strings.Contains(f.Hint, c.hint) || f.Stage != "Docker" {
			t.Errorf("%s: got %+v, want %q with the hint %q", c.host, f, c.says, c.hint)
		}
	}
}

// A Docker context of the user's is honoured, and a missing one is told.
func TestContexts(t *testing.T) {
	t.Setenv("DOCKER_HOST", "")
	_ = os.Unsetenv("DOCKER_HOST")
	t.Setenv("DOCKER_CONTEXT", "no-such-context")
	_, err := Open(t.Context())
	f := fault.From(err)
	if f == nil || !strings.Contains(f.Message, "no-such-context") || f.Hint != "docker context ls" {
		t.Errorf("got %+v", f)
	}
}
