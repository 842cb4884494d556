package workspace

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

// pipe is the stream to builder through the engine, which has authenticated us:
// an exec of `builder stream` in builder's container. It works wherever the
// engine is, and nothing listens on a network.
type pipe struct {
	hijacked types.HijackedResponse
	out      *io.PipeReader
	once     sync.Once

	mu   sync.Mutex
	said strings.Builder // on its standard error
}

func openPipe(ctx context.Context, api client.APIClient, id string) (*pipe, error) {
	x, err := api.ContainerExecCreate(ctx, id, container.ExecOptions{
		Cmd: []string{"builder", "stream"}, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open a stream to builder: %w", err)
	}
	// The connection is to outlive ctx, which bounds the opening only.
	h, err := api.ContainerExecAttach(context.WithoutCancel(ctx), x.ID, container.ExecAttachOptions{})
	if err != nil {
		return nil, fmt.Errorf("open a stream to builder: %w", err)
	}
	r, w := io.Pipe()
	p := &pipe{hijacked: h, out: r}
	go func() {
		_, err := stdcopy.StdCopy(w, (*complaints)(p), h.Reader)
		p.mu.Lock()
		said := strings.TrimSpace(p.said.String())
		p.mu.Unlock()
		if err == nil && said != "" {
			err = fmt.Errorf("%s", said)
		}
		_ = w.CloseWithError(err)
	}()
	return p, nil
}

// complaints is what builder stream says when it cannot.
type complaints pipe

func (c *complaints) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said.Len() < 4096 {
		c.said.Write(b)
	}
	return len(b), nil
}

func (p *pipe) Read(b []byte) (int, error)  { return p.out.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.hijacked.Conn.Write(b) }

// Close ends the exec: its standard input ends, and so does it.
func (p *pipe) Close() error {
	p.once.Do(func() {
		p.hijacked.Close()
		_ = p.out.Close()
	})
	return nil
}
