package hostspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/engine"
)

// program is the path of a service's program, which lies beside ctl's own.
func program(c subject.Service) (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find ctl's own program: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), string(c))
	if fi, err := os.Stat(path); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
		return "", fault.New(fault.FailedPrecondition, "make build", "there is no program %s: on this machine itself Berth runs the programs that lie beside ctl; ctl connect --docker runs them in containers", path)
	}
	return path, nil
}

// process is one that this ctl has started.
type process struct {
	name  subject.Service
	log   string
	ended chan struct{}
}

// start starts a service in the background. It outlives ctl.
func (s *Space) start(c subject.Service, args ...string) (*process, error) {
	path, err := program(c)
	if err != nil {
		return nil, err
	}
	p := &process{c, s.path(string(c) + ".log"), make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c, err)
	}
	defer log.Close()
	cmd := exec.Command(path, append([]string{"-bus-config", s.configOf(c), "-lock", s.lockOf(c)}, args...)...)
	// The user's own BERTH_… are ctl's flags, and not the services'.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "BERTH_") })
	if host := engine.Configured(); host != "" {
		cmd.Env = append(cmd.Env, "DOCKER_HOST="+host) // a Docker context is ctl's to know
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = "/", log, log, detached()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	go func() {
		_ = cmd.Wait() // its log says more
		close(p.ended)
	}()
	return p, nil
}

// goneError says that a process has ended that was to stay.
type goneError struct {
	name subject.Service
	last string
}

func (e *goneError) Error() string {
	return fmt.Sprintf("the process %s ended at once; its last lines:\n%s", e.name, e.last)
}

// orGone is ctx, ended with a goneError when the process ends first.
func (p *process) orGone(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.ended:
			cancel(&goneError{p.name, tail(p.log)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// tail is the last lines of a log, indented.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "    " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-5):], "\n    ")
}

// end ends a process: it is told to, and killed if it has not ended within grace.
// One that does not live is fine.
func (s *Space) end(ctx context.Context, c subject.Service, grace time.Duration) error {
	if grace > 0 {
		if gone, err := s.signal(ctx, c, syscall.SIGTERM, grace); gone || err != nil {
			return err
		}
	}
	gone, err := s.signal(ctx, c, syscall.SIGKILL, killedWithin)
	if err == nil && !gone {
		err = fmt.Errorf("the process %s does not end", c)
	}
	return err
}

// killedWithin is how long the kernel may take to end a process.
const killedWithin = 5 * time.Second

// signal sends a process a signal, and waits until it has ended.
func (s *Space) signal(ctx context.Context, c subject.Service, sig syscall.Signal, limit time.Duration) (gone bool, err error) {
	p, lives, err := proclock.Holder(s.lockOf(c))
	if err != nil || !lives {
		return err == nil, err
	}
	if err := p.Signal(sig); errors.Is(err, proclock.ErrGone) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		if now, lives, err := proclock.Holder(s.lockOf(c)); err != nil || !lives || now.PID != p.PID {
			return err == nil, err
		}
		if pause(ctx) != nil {
			return false, nil
		}
	}
}
