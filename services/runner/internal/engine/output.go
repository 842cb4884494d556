package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Attach copies what a container without a TTY writes from now on to stdout and
// stderr, until it ends or ctx does; the channel is closed then. Called before
// the start, it misses nothing, and the container finds input on its standard
// input, which ends there.
//
// The writers must not block for long: the engine stops the container's own
// writes when an attached reader lags behind.
func (e *Engine) Attach(ctx context.Context, id string, input []byte, stdout, stderr io.Writer) (<-chan struct{}, error) {
	h, err := e.API.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: len(input) > 0, Stdout: true, Stderr: true})
	if err != nil {
		return nil, Fault(err, "attach to container %s", id)
	}
	if len(input) > 0 {
		if _, err = h.Conn.Write(input); err == nil {
			err = h.CloseWrite()
		}
		if err != nil {
			h.Close()
			return nil, Fault(err, "write to container %s", id)
		}
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, h.Close)
	go func() {
		defer close(done)
		defer stop()
		defer h.Close()
		_, _ = stdcopy.StdCopy(stdout, stderr, h.Reader) // ends with the container: nothing to say
	}()
	return done, nil
}

// LastLines keeps the last lines that were written to it. It may be written to
// by several goroutines.
type LastLines struct {
	mu    sync.Mutex
	lines []string
	part  []byte
}

// Limits of LastLines: enough for a panic's head, little enough for a fact.
const (
	lastLines  = 12
	lineLength = 400
)

// Write implements io.Writer.
func (l *LastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			break
		}
		l.add(l.part[:i])
		l.part = l.part[i+1:]
	}
	if len(l.part) > lineLength {
		l.part = l.part[:lineLength]
	}
	return len(p), nil
}

func (l *LastLines) add(line []byte) {
	s := strings.TrimRight(string(line), "\r ")
	if s == "" {
		return
	}
	if len(s) > lineLength {
		s = s[:lineLength]
	}
	l.lines = append(l.lines, s)
	if len(l.lines) > lastLines {
		l.lines = l.lines[1:]
	}
}

// String is what explains an exit: the last line logged as an error if there is
// one, else the last three lines.
func (l *LastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	if len(l.part) > 0 {
		lines = append(append([]string(nil), lines...), string(l.part))
	}
	for i := len(lines) - 1; i >= 0; i-- {
		var rec struct{ Level, Msg, Err string }
		if json.Unmarshal([]byte(lines[i]), &rec) == nil && rec.Level == "ERROR" {
			return strings.TrimSuffix(rec.Msg+": "+rec.Err, ": ")
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
