//go:build unix

package hostspace

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
)

// TestMain is the services too: under the name of one, it holds its lock until it
// is told to end; "stubborn" does not heed that.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == string(subject.Runner) {
		puppet()
	}
	os.Exit(m.Run())
}

func puppet() {
	args := strings.Join(os.Args, " ")
	_, lock, _ := strings.Cut(args, "-lock ")
	lock, _, _ = strings.Cut(lock, " ")
	if strings.Contains(args, "fails") {
		println("there is no such thing")
		os.Exit(1)
	}
	if strings.Contains(args, "stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	if _, err := proclock.Take(lock); err != nil {
		println(err.Error())
		os.Exit(1)
	}
	for {
		time.Sleep(time.Hour)
	}
}

// space is one of the test's own, with this program as the service.
func space(t *testing.T) *Space {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", dir)
	s, err := New("", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.makeDir(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(filepath.Dir(self), string(subject.Runner))
	if err := os.Symlink(self, link); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.end(context.Background(), subject.Runner, 0) })
	return s
}

// lives waits until a service's process holds its lock.
func lives(t *testing.T, s *Space, c subject.Service) proclock.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if p, held, err := proclock.Holder(s.lockOf(c)); held || err != nil {
			return p
		}
		if err := pause(ctx); err != nil {
			t.Fatal("it does not come up: ", tail(s.path(string(c)+".log")))
		}
	}
}

func TestProcess(t *testing.T) {
	s := space(t)
	for _, how := range []string{"heeds", "stubborn"} {
		if _, err := s.start(subject.Runner, how); err != nil {
			t.Fatal(err)
		}
		p := lives(t, s, subject.Runner)
		names, err := s.Names(t.Context())
		if err != nil || len(names) != 2 || !strings.HasPrefix(names[0], "process/runner") {
			t.Error(names, err)
		}
		if err := s.end(t.Context(), subject.Runner, 200*time.Millisecond); err != nil {
			t.Fatal(how, err)
		}
		if err := p.Signal(syscall.SIGKILL); !errors.Is(err, proclock.ErrGone) {
			t.Errorf("%s: %v", how, err)
		}
		if err := s.end(t.Context(), subject.Runner, time.Second); err != nil {
			t.Error("a second time:", err)
		}
	}
}

// Why a process did not stay is told by its own last words.
func TestProcessThatEnds(t *testing.T) {
	s := space(t)
	p, err := s.start(subject.Runner, "fails")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := p.orGone(t.Context())
	defer stop()
	<-ctx.Done()
	if err := s.died(ctx, ctx.Err()); !strings.Contains(err.Error(), "there is no such thing") {
		t.Error(err)
	}
}

func TestProgramThatIsMissing(t *testing.T) {
	if _, err := program("no-such-service"); fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "beside ctl") {
		t.Error(err)
	}
}

// After a kill -9 of everything there is a directory, and after Teardown nothing.
func TestTeardown(t *testing.T) {
	s := space(t)
	if _, err := s.start(subject.Runner, "stubborn"); err != nil {
		t.Fatal(err)
	}
	lives(t, s, subject.Runner)
	for range 2 {
		if err := s.Teardown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if names, err := s.Names(t.Context()); err != nil || len(names) > 0 {
			t.Errorf("left: %v, %v", names, err)
		}
	}
}

// A directory that others can enter is refused: keys would lie there.
func TestDirectoryOfOthers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if err := os.Mkdir(filepath.Join(dir, "berth"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := New("x", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.makeDir(); fault.CodeOf(err) != fault.PermissionDenied {
		t.Error(err)
	}
}

// Two ctl take turns, over a directory that one of them removes meanwhile too.
func TestExclusive(t *testing.T) {
	s := space(t)
	first, err := s.exclusive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !s.same(first) {
		t.Error("it holds the lock of another file")
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if s.same(first) {
		t.Error("it takes a removed file's lock for the one there is")
	}
	first.Release()
	second, err := s.exclusive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second.Release()
}
