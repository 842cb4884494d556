// Package hostmount has the volumes of an engagement mounted on this machine, for
// a handler that is a command: below one directory, each at its own path. FUSE is
// telemount's; it is started here as a child (`telemount mount`), from the program
// that the daemon container holds, without a file on this machine.
//
// A mount is its user's alone. It ends with [Mount.Close], with this process
// however that ends (the child sees the end of its stdin), and if the child is
// killed by its guard. What a machine that lost all three at once has left,
// [Sweep] finds.
package hostmount

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
)

// freshPrefix begins the names of directories that are made here.
const freshPrefix = "berth-mount-"

// Fresh names a directory for this user's mounts that is not there yet: it is made
// with the mount and goes with it.
func Fresh() string {
	return filepath.Join(home(), freshPrefix+strings.ToLower(rand.Text()[:10]))
}

// home is where a user's things live for as long as he is logged in, or the
// machine runs.
func home() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		if i, err := os.Stat(d); err == nil && i.IsDir() {
			return d
		}
	}
	return os.TempDir()
}

// CheckDir tells whether a directory that the user named can be a mount point: an
// empty one, or none yet in a directory that is there.
func CheckDir(dir string) error {
	es, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if i, err := os.Stat(filepath.Dir(dir)); err != nil || !i.IsDir() {
			return fault.New(fault.InvalidArgument, "mkdir -p "+filepath.Dir(dir), "--mount %s: there is no folder %s", dir, filepath.Dir(dir))
		}
		return nil
	case err != nil:
		return fault.New(fault.InvalidArgument, "--mount true", "--mount %s: %v", dir, err)
	case len(es) > 0:
		return fault.New(fault.InvalidArgument, "--mount true", "--mount %s: the folder is not empty, and what is in it would be hidden", dir)
	}
	return nil
}

// Mount is a child that mounts, or has mounted.
type Mount struct {
	Dir string
	Pin string // of the child's key, for OpenEngagement.VolumesPin

	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	stderr *tail
	ended  chan struct{}
	once   sync.Once
	closed chan struct{}
}

// Start starts the child, from telemount's program, for a mount at dir.
func Start(program []byte, dir string) (*Mount, error) {
	m := &Mount{Dir: dir, stderr: &tail{}, ended: make(chan struct{}), closed: make(chan struct{})}
	cmd, done, err := prepare(program, "mount", "--dir", dir)
	if err != nil {
		return nil, err
	}
	defer done()
	cmd.Stderr = m.stderr
	m.cmd = cmd
	if m.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Not StdoutPipe: what waits for the child's end would close it under a reader.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, m.out = w, bufio.NewScanner(r)
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fault.New(fault.FailedPrecondition, "--mount false", "start what mounts the volumes on this machine: %v", err)
	}
	go func() {
		_ = cmd.Wait()
		close(m.ended)
	}()
	a, err := m.answer()
	if err != nil {
		m.Close()
		return nil, err
	}
	m.Pin = a.Pin
	return m, nil
}

// answer is a line of the child's: its pin, or that all is mounted.
func (m *Mount) answer() (a struct {
	Pin     string   `json:"pin"`
	Mounted []string `json:"mounted"`
	Error   string   `json:"error"`
}, err error) {
	if !m.out.Scan() {
		return a, fault.New(fault.Unavailable, "--mount false", "what mounts the volumes on this machine has ended: %s", m.stderr)
	}
	if err := json.Unmarshal(m.out.Bytes(), &a); err != nil {
		return a, fmt.Errorf("read what telemount says: %w", err)
	}
	if a.Error != "" {
		return a, fault.New(fault.FailedPrecondition, "--mount false", "the volumes cannot be mounted on this machine: %s", strings.TrimSpace(a.Error))
	}
	return a, nil
}

// Mount mounts the volumes. It returns when they are there.
func (m *Mount) Mount(ctx context.Context, v command.RemoteVolumes) error {
	stop := context.AfterFunc(ctx, func() { _ = m.in.Close() })
	defer stop()
	if err := json.NewEncoder(m.in).Encode(v); err != nil {
		return fault.New(fault.Unavailable, "--mount false", "what mounts the volumes on this machine has ended: %s", m.stderr)
	}
	_, err := m.answer()
	return err
}

// Lost is closed when the child has ended without having been told to.
func (m *Mount) Lost() <-chan struct{} {
	lost := make(chan struct{})
	go func() {
		select {
		case <-m.ended:
			select {
			case <-m.closed:
			default:
				close(lost)
			}
		case <-m.closed:
		}
	}()
	return lost
}

// closeWithin is for how long the child may take to unmount; its guard does it
// when it is killed then.
const closeWithin = 5 * time.Second

// Close unmounts, and removes the directory if it was made. Twice is once.
func (m *Mount) Close() {
	m.once.Do(func() {
		close(m.closed)
		_ = m.in.Close()
		select {
		case <-m.ended:
		case <-time.After(closeWithin):
			_ = m.cmd.Process.Kill()
			<-m.ended
		}
	})
}

// tail is the end of what the child says on stderr.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 1 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-tailSize):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
