package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Ctl is a user at the command line: the binary, the kubeconfig, and who runs it.
type Ctl struct {
	Path       string
	Kubeconfig string
	Env        []string
	Within     []string            // a command that runs another one, as nsenter(1) does; empty: none
	Dir        string              // where it is run; empty: where the test is
	Credential *syscall.Credential // nil: the test's own user
}

// NewCtl is the ctl of $BERTH_CTL with the cluster's own kubeconfig.
func NewCtl(t *testing.T, c *Cluster) *Ctl {
	t.Helper()
	path := os.Getenv("BERTH_CTL")
	if path == "" {
		t.Fatal("BERTH_CTL is not set: run this by `make e2e`")
	}
	return &Ctl{Path: path, Kubeconfig: c.Kubeconfig}
}

// Result is what a finished command left.
type Result struct {
	Args           []string
	Stdout, Stderr string
	Code           int
	Took           time.Duration
}

// String is the whole of it, for a test's message.
func (r Result) String() string {
	return fmt.Sprintf("ctl %s: exit %d after %v\n--- stdout\n%s--- stderr\n%s", strings.Join(r.Args, " "), r.Code, r.Took.Round(time.Millisecond), r.Stdout, r.Stderr)
}

func (c *Ctl) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append(append(slices.Clone(c.Within), c.Path), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), append([]string{"KUBECONFIG=" + c.Kubeconfig}, c.Env...)...)
	cmd.Dir = c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.Credential, Setpgid: true}
	if c.Credential != nil {
		cmd.Env = append(cmd.Env, "HOME=/nonexistent")
		cmd.Dir = "/"
	}
	return cmd
}

// Run runs a command to its end, for three minutes at most.
func (c *Ctl) Run(t *testing.T, args ...string) Result {
	t.Helper()
	// Not the test's context: clean-ups run after that has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := c.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	r := Result{args, out.String(), errs.String(), 0, time.Since(start)}
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		r.Code = ee.ExitCode()
	case err != nil:
		t.Fatalf("run %s: %v", c.Path, err)
	}
	t.Logf("ctl %s: exit %d, %v", strings.Join(args, " "), r.Code, r.Took.Round(time.Millisecond))
	return r
}

// Must runs a command that has to succeed.
func (c *Ctl) Must(t *testing.T, args ...string) Result {
	t.Helper()
	r := c.Run(t, args...)
	if r.Code != 0 {
		t.Fatalf("%v", r)
	}
	return r
}

// Proc is a command that runs beside the test.
type Proc struct {
	Cmd    *exec.Cmd
	out    *buffer
	errs   *buffer
	done   chan struct{}
	Stdin  io.WriteCloser
	result Result
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// Start starts a command; when the test ends it is killed if it still runs.
func (c *Ctl) Start(t *testing.T, args ...string) *Proc {
	t.Helper()
	p := &Proc{Cmd: c.command(context.Background(), args...), out: &buffer{}, errs: &buffer{}, done: make(chan struct{})}
	p.Cmd.Stdout, p.Cmd.Stderr = p.out, p.errs
	var err error
	if p.Stdin, err = p.Cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.Path, err)
	}
	go func() {
		err := p.Cmd.Wait()
		code := 0
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			code = ee.ExitCode()
		}
		p.result = Result{args, p.out.String(), p.errs.String(), code, time.Since(start)}
		close(p.done)
	}()
	t.Cleanup(func() {
		select {
		case <-p.done:
		default:
			_ = p.Cmd.Process.Kill()
			<-p.done
		}
	})
	return p
}

// Signal sends a signal to the process.
func (p *Proc) Signal(s os.Signal) error { return p.Cmd.Process.Signal(s) }

// Output is what it has printed so far.
func (p *Proc) Output() string { return p.out.String() + p.errs.String() }

// Wait waits for its end.
func (p *Proc) Wait(t *testing.T, limit time.Duration) Result {
	t.Helper()
	select {
	case <-p.done:
		t.Logf("ctl %s: exit %d, %v", strings.Join(p.result.Args, " "), p.result.Code, p.result.Took.Round(time.Millisecond))
		return p.result
	case <-time.After(limit):
		t.Fatalf("ctl still runs after %v:\n%s", limit, p.Output())
	}
	return Result{}
}

// Running reports whether it has not ended yet.
func (p *Proc) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Lines decodes JSON Lines.
func Lines[T any](t *testing.T, s string) []T {
	t.Helper()
	var all []T
	dec := json.NewDecoder(strings.NewReader(s))
	for {
		var v T
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("not JSON Lines: %v\n%s", err, s)
		}
		all = append(all, v)
	}
}
