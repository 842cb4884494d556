package remote

import (
	"context"
	"fmt"
	"io"

	"berth.dev/bus/buildstream"

	"github.com/moby/buildkit/session/sshforward"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Agents forwards the caller's ssh agents of those names to BuildKit.
type Agents struct {
	Peer  *Peer
	Names []string
}

// Register implements session.Attachable.
func (a Agents) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, a) }

// nameOf is the agent that a call means.
func (a Agents) nameOf(name string) (string, error) {
	if name == "" {
		name = sshforward.DefaultID
	}
	for _, n := range a.Names {
		if n == name {
			return n, nil
		}
	}
	return "", status.Errorf(codes.NotFound, "no ssh agent %q was given: --docker-build-opt ssh=%s", name, name)
}

// agent passes on what came from an agent.
func (p *Peer) agent(f buildstream.Frame) {
	p.mu.Lock()
	w := p.agents[f.ID]
	if f.Kind == buildstream.KindAgentClose {
		delete(p.agents, f.ID)
	}
	p.mu.Unlock()
	switch {
	case w == nil:
	case f.Kind == buildstream.KindAgentClose && len(f.Payload) > 0:
		_ = w.CloseWithError(fmt.Errorf("ssh agent: %s", f.Payload))
	case f.Kind == buildstream.KindAgentClose:
		_ = w.Close()
	default:
		_, _ = w.Write(f.Payload) // an agent's answers are small, and BuildKit takes them at once
	}
}

// ForwardAgent implements sshforward.SSHServer.
func (a Agents) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	name := ""
	if md, ok := metadata.FromIncomingContext(stream.Context()); ok {
		if v := md[sshforward.KeySSHID]; len(v) > 0 {
			name = v[0]
		}
	}
	name, err := a.nameOf(name)
	if err != nil {
		return err
	}
	p := a.Peer
	r, w := io.Pipe()
	p.mu.Lock()
	p.next++
	id := p.next
	p.agents[id] = w
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.agents, id)
		p.mu.Unlock()
		_ = r.Close()
		_ = p.conn.Send(buildstream.KindAgentClose, id)
	}()
	if err := p.conn.Send(buildstream.KindAgentOpen, id, []byte(name)); err != nil {
		return err
	}
	return sshforward.Copy(stream.Context(), &agentConn{r: r, p: p, id: id}, stream, nil)
}

// CheckAgent implements sshforward.SSHServer.
func (a Agents) CheckAgent(_ context.Context, r *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	_, err := a.nameOf(r.ID)
	return &sshforward.CheckAgentResponse{}, err
}

// agentConn is a connection to an agent.
type agentConn struct {
	r  *io.PipeReader
	p  *Peer
	id uint32
}

func (c *agentConn) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *agentConn) Write(b []byte) (int, error) {
	if err := c.p.conn.Send(buildstream.KindAgentData, c.id, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *agentConn) Close() error { return c.r.Close() }
