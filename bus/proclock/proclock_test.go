//go:build unix

package proclock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

const childOf = "BERTH_TEST_LOCK"

// TestMain is the child too: it takes the lock, says so, and waits for its end.
func TestMain(m *testing.M) {
	if path := os.Getenv(childOf); path != "" {
		l, err := Take(path)
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin) // select {} would be taken for a deadlock, and end it
		if err == nil {
			l.Release()
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	if _, held, err := Holder(path); held || err != nil {
		t.Fatal("without a file", held, err)
	}
	start := func() (*exec.Cmd, string) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childOf+"="+path)
		out, err := cmd.StdoutPipe()
		if err == nil {
			_, err = cmd.StdinPipe() // closed by Wait
		}
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return cmd, line
	}
	first, said := start()
	if said != "<nil>\n" {
		t.Fatal("the first does not get it:", said)
	}
	p, held, err := Holder(path)
	if err != nil || !held || p.PID != first.Process.Pid {
		t.Fatalf("held by %+v, %v, %v; want %d", p, held, err, first.Process.Pid)
	}
	if _, err := Take(path); !errors.Is(err, ErrHeld) {
		t.Error("a second one gets it:", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if _, held, err := Holder(path); held || err != nil {
		t.Error("after kill -9", held, err)
	}
	// Whoever has the number by now is left alone.
	again, said := start()
	if said != "<nil>\n" {
		t.Fatal("after kill -9, the next does not get it:", said)
	}
	other := Process{PID: os.Getpid(), path: path}
	if err := other.Signal(syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Error("the dead one's number:", err)
	}
	if now, _, _ := Holder(path); now.PID != again.Process.Pid {
		t.Errorf("held by %d", now.PID)
	}
}
