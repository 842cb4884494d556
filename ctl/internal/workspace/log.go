package workspace

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// keepLog is how much of a container's output is kept for an error message.
const keepLog = 4 << 10

// tailLog keeps the end of what a container prints.
type tailLog struct {
	conn types.HijackedResponse
	done chan struct{}
	mu   sync.Mutex
	b    []byte
}

// listen attaches to a container that has not been started yet: it will find f on
// its standard input, and what it prints is kept.
func (w *Workspace) listen(ctx context.Context, id string, f files) (*tailLog, error) {
	input, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("marshal the configuration: %w", err)
	}
	conn, err := w.Engine.API.ContainerAttach(context.WithoutCancel(ctx), id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil && strings.Contains(err.Error(), "received 409") { // of Podman, which calls it a conflict of states
		return nil, fault.New(fault.FailedPrecondition, "ctl doctor", "this engine does not attach to a container before it is started, as Docker does: Berth does not run on it")
	}
	if err != nil {
		return nil, fmt.Errorf("attach to the container: %w", err)
	}
	if _, err := conn.Conn.Write(input); err != nil {
		conn.Close()
		return nil, fmt.Errorf("hand the configuration to the container: %w", err)
	}
	l := &tailLog{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		_, _ = stdcopy.StdCopy(l, l, conn.Reader) // ends with the container, or with close
	}()
	return l, nil
}

// Write implements io.Writer.
func (l *tailLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if over := len(l.b) - keepLog; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

// close stops listening; nil is fine.
func (l *tailLog) close() {
	if l == nil {
		return
	}
	l.conn.Close()
	<-l.done
}

// String is the last lines, indented.
func (l *tailLog) String() string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(l.b), []byte("\n"))
	if n := len(lines); n > 5 {
		lines = lines[n-5:]
	}
	return strings.TrimRight("    "+string(bytes.Join(lines, []byte("\n    "))), " ")
}
