package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// component is one process that noded keeps running. Its fields above mu are
// set before it starts and not changed; the others are guarded by mu.
type component struct {
	name  string
	argv  []string
	after []*component                // must be ready first
	ready func(context.Context) error // probes it; nil: running is enough

	mu       sync.Mutex
	pid      int       // 0 while it is down
	started  time.Time // the last start
	starts   int
	lastExit string
}

// componentStatus is a component as `noded status` shows it.
type componentStatus struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
	Log      string    `json:"log"`
}

func (c *component) logFile() string { return filepath.Join(logDir, c.name+".log") }

func (c *component) status() componentStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return componentStatus{Name: c.name, PID: c.pid, Started: c.started, Restarts: max(0, c.starts-1),
		LastExit: c.lastExit, Log: c.logFile()}
}

const (
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 5 * time.Second
	settled      = 10 * time.Second // a process that lived this long starts a new series
)

// keep runs the component until ctx ends, then terminates it, killing it if it
// takes longer than grace.
func (c *component) keep(ctx context.Context, grace time.Duration) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := c.once(ctx, grace)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.pid, c.lastExit = 0, fmt.Sprintf("%s: %v", time.Now().Format(time.TimeOnly), err)
		c.mu.Unlock()
		slog.Warn("component ended, starting it again", "component", c.name, "err", err, "log", c.logFile())
		if time.Since(began) > settled {
			backoff = firstBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// once runs the process to its end.
func (c *component) once(ctx context.Context, grace time.Duration) error {
	log, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	// In a group of its own: what the engine sends to the container's
	// processes reaches noded, which stops them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.mu.Lock()
	c.pid, c.started = cmd.Process.Pid, time.Now()
	c.starts++
	c.mu.Unlock()
	err = cmd.Wait()
	if err == nil {
		return fmt.Errorf("exit status 0")
	}
	return err
}

// awaitReady polls the component's probe until it succeeds or ctx ends.
func (c *component) awaitReady(ctx context.Context) error {
	for c.ready != nil {
		err := c.ready(ctx)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", c.name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return ctx.Err()
}
