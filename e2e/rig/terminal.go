package rig

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// Terminal is a user at a real terminal, in which a command of ctl runs.
type Terminal struct {
	t    *testing.T
	pty  *os.File // the terminal's own end
	tty  *os.File // the command's
	out  *buffer
	read int // of out: what was waited for already
	done chan struct{}
	code int
	mode unix.Termios // before
}

// Open starts a command in a new terminal.
func (c *Ctl) Open(t *testing.T, rows, cols uint16, args ...string) *Terminal {
	t.Helper()
	p, tty, err := pty.Open()
	if err != nil {
		t.Fatalf("open a terminal: %v", err)
	}
	term := &Terminal{t: t, pty: p, tty: tty, out: &buffer{}, done: make(chan struct{})}
	term.Resize(rows, cols)
	term.mode = term.Mode()
	cmd := c.command(context.Background(), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = false, true, true
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.Path, err)
	}
	go func() { // ends with the terminal
		buf := make([]byte, 4096)
		for {
			n, err := p.Read(buf)
			_, _ = term.out.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(term.done)
		var ee *exec.ExitError
		if err := cmd.Wait(); errors.As(err, &ee) {
			term.code = ee.ExitCode()
		}
	}()
	t.Cleanup(func() {
		select {
		case <-term.done:
		default:
			_ = cmd.Process.Kill()
			<-term.done
		}
		tty.Close()
		p.Close()
	})
	return term
}

// Type types; "\x03" is Ctrl-C.
func (x *Terminal) Type(s string) {
	x.t.Helper()
	if _, err := x.pty.WriteString(s); err != nil {
		x.t.Fatalf("type %q: %v", s, err)
	}
}

// Sees waits until the terminal shows what, behind what was waited for before.
func (x *Terminal) Sees(what string) {
	x.t.Helper()
	Eventually(x.t, 90*time.Second, "the terminal shows "+what, func(context.Context) (bool, string) {
		all := x.out.String()
		at := strings.Index(all[x.read:], what)
		if at < 0 {
			return false, all
		}
		x.read += at + len(what)
		return true, ""
	})
}

// Says types a line until the terminal shows what: a shell that is not there yet
// does not hear the first.
func (x *Terminal) Says(line, what string) {
	x.t.Helper()
	Eventually(x.t, 90*time.Second, line+" shows "+what, func(context.Context) (bool, string) {
		if at := strings.LastIndex(x.out.String()[x.read:], what); at >= 0 {
			x.read += at + len(what)
			return true, ""
		}
		x.Type(line + "\n")
		time.Sleep(300 * time.Millisecond) // the pace of a patient typist
		return false, x.out.String()
	})
}

// Resize changes the window.
func (x *Terminal) Resize(rows, cols uint16) {
	x.t.Helper()
	if err := pty.Setsize(x.pty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		x.t.Fatalf("resize: %v", err)
	}
}

// Mode is the terminal's.
func (x *Terminal) Mode() unix.Termios {
	x.t.Helper()
	m, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *m
}

// Wait waits for the command's end, and checks that the terminal is as it was.
func (x *Terminal) Wait(limit time.Duration) int {
	x.t.Helper()
	select {
	case <-x.done:
	case <-time.After(limit):
		x.t.Fatalf("ctl still runs after %v:\n%s", limit, x.out.String())
	}
	if now := x.Mode(); now != x.mode {
		x.t.Errorf("the terminal was left in another mode: %+v, now %+v", x.mode, now)
	}
	return x.code
}

// String is all that was shown.
func (x *Terminal) String() string { return x.out.String() }
