package tunnelserver

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/tunnel"
)

// Times of flows.
const (
	dialTimeout = 10 * time.Second
	udpIdle     = 60 * time.Second
	dnsIdle     = 30 * time.Second // queries are one-shots; sockets are not free
	envTimeout  = 10 * time.Second
)

// flow answers one request of a session and carries it to its end, with run, in a
// goroutine. What goes on by another session is asked for there before flow
// returns: so flows keep the order in which the requests came.
func (s *Server) flow(ctx context.Context, p peer, r *tunnel.Request, run func(func())) {
	h := r.Header
	switch {
	case p.agent != nil:
		s.toClient(ctx, p, r, run)
	case h.Kind == tunnel.KindRPC:
		run(func() { s.rpc(ctx, p, r) })
	case h.Kind == tunnel.KindFiles:
		s.files(ctx, p, r, run)
	case h.Engagement != "" && p.role == hub.RoleVIF && (h.Kind == tunnel.KindTCP || h.Kind == tunnel.KindUDP):
		s.toPod(ctx, p, r, run)
	case h.Engagement != "":
		r.Refuse(tunnel.CodeDenied, "flows of an engagement come from its agents")
	case !s.allowed(h.Dst.Addr()):
		r.Refuse(tunnel.CodeDenied, "not an address in the cluster")
	case h.Kind == tunnel.KindTCP:
		run(func() { s.tcp(ctx, r) })
	case h.Kind == tunnel.KindUDP:
		run(func() { s.udp(ctx, r) })
	case h.Kind == tunnel.KindEcho:
		run(func() { s.echo(ctx, r) })
	default:
		r.Refuse(tunnel.CodeInternal, "unknown kind of flow")
	}
}

// allowed keeps clients from what only the manager's own host may reach: its
// loopback, and link-local services such as a cloud's metadata, which hands out
// the node's credentials. A node-local DNS cache is link-local too, and allowed.
func (s *Server) allowed(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	return !a.IsLinkLocalUnicast() || slices.Contains(s.Resolver.Servers, a)
}

func (s *Server) tcp(ctx context.Context, r *tunnel.Request) {
	dctx, cancel := r.Context(ctx)
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(dctx, "tcp", r.Header.Dst.String())
	cancel()
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		conn.Close()
		return
	}
	n, m, err := tunnel.Relay(stream, conn.(*net.TCPConn))
	s.Log.Debug("flow ended", "flow", r.Header.String(), "sent", n, "received", m, "err", err)
}

func (s *Server) udp(ctx context.Context, r *tunnel.Request) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", r.Header.Dst.String())
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		conn.Close()
		return
	}
	idle := udpIdle
	if r.Header.Dst.Port() == 53 {
		idle = dnsIdle
	}
	_, _, err = tunnel.RelayPackets(stream, conn, idle)
	s.Log.Debug("flow ended", "flow", r.Header.String(), "err", err)
}

// through opens a request's stream onwards on another session and accepts it once
// that end has: what is refused there is refused here, with its answer. What is
// opened is carried to its end, of which the log is told.
func through(ctx context.Context, r *tunnel.Request, on *tunnel.Session, h tunnel.Header, log *slog.Logger, run func(func())) {
	o, err := on.Begin(h)
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	run(func() {
		octx, cancel := r.Context(ctx)
		octx, cancelTimeout := context.WithTimeout(octx, dialTimeout)
		far, err := o.Wait(octx)
		cancelTimeout()
		cancel()
		if err != nil {
			r.Refuse(tunnel.CodeOf(err), err.Error())
			return
		}
		near, err := r.Accept()
		if err != nil {
			far.Reset(tunnel.CodeCanceled)
			return
		}
		var n, m int64
		if h.Kind.Packets() {
			n, m, err = tunnel.RelayPackets(near, far, udpIdle)
		} else {
			n, m, err = tunnel.Relay(near, far)
		}
		log.Debug("flow ended", "flow", h.String(), "sent", n, "received", m, "err", err)
	})
}

// toClient carries an agent's flow to the client that holds its engagement. The
// agent gets the client's own answer: what the handler refuses is refused.
func (s *Server) toClient(ctx context.Context, p peer, r *tunnel.Request, run func(func())) {
	h := r.Header
	connection, own := p.connection, h.Engagement == p.engagement
	if p.role == hub.RoleBeside {
		connection, own = p.agent.Connection(h.Engagement)
	}
	if !own || (h.Kind != tunnel.KindTCP && h.Kind != tunnel.KindUDP) {
		r.Refuse(tunnel.CodeDenied, "an agent opens flows of its own engagements only")
		return
	}
	if h.Kind == tunnel.KindTCP && s.Entrances.Took(h.Engagement, h.Src) {
		r.Refuse(tunnel.CodeRefused, "the manager's own, which has seen it")
		return
	}
	// Not asked of the Lease: that may be gone while the pod's last connections
	// still come in, and the client has the last word in any case.
	vif := s.Hub.VIF(connection)
	if vif == nil {
		r.Refuse(tunnel.CodeUnreachable, errNoClient.Error())
		return
	}
	through(ctx, r, vif, h, s.Log, run)
}

// toPod carries a client's flow to a port of the pod that its own engagement may
// reach, by an agent: the same one that the volumes are of.
func (s *Server) toPod(ctx context.Context, p peer, r *tunnel.Request, run func(func())) {
	h := r.Header
	e, ok := s.Cluster.Engagement(h.Engagement)
	switch {
	case !ok || e.Connection != p.connection:
		r.Refuse(tunnel.CodeNotFound, "no engagement "+h.Engagement+" of this connection")
		return
	case !e.Reaches(h.Dst.Port(), strings.ToUpper(h.Kind.String())):
		r.Refuse(tunnel.CodeDenied, "the engagement reaches no such port of the pod")
		return
	}
	agent := s.Hub.FilesAgent(h.Engagement)
	if agent == nil {
		r.Refuse(tunnel.CodeUnreachable, "no agent of the engagement is there")
		return
	}
	through(ctx, r, agent.Session, tunnel.Header{Kind: h.Kind, Engagement: h.Engagement, Dst: h.Dst}, s.Log.With("to_pod", agent.Pod), run)
}

// files carries a client's stream to the file server in an agent of its own
// engagement, and tells that one which token to accept.
func (s *Server) files(ctx context.Context, p peer, r *tunnel.Request, run func(func())) {
	id := r.Header.Engagement
	e, ok := s.Cluster.Engagement(id)
	switch {
	case !ok || e.Connection != p.connection:
		r.Refuse(tunnel.CodeNotFound, "no engagement "+id+" of this connection")
		return
	case e.TokenHash == "":
		r.Refuse(tunnel.CodeDenied, "the engagement was made without volumes")
		return
	}
	agent := s.Hub.FilesAgent(id)
	if agent == nil {
		r.Refuse(tunnel.CodeUnreachable, "no agent of the engagement is there")
		return
	}
	through(ctx, r, agent.Session, tunnel.Header{Kind: tunnel.KindFiles, Engagement: id,
		Method: lease.Marshal(lease.FilesAccess{TokenHash: e.TokenHash, ReadOnly: e.Kind.ReadOnly()})}, s.Log.With("files_of", agent.Pod), run)
}

// rpc answers a client's calls.
func (s *Server) rpc(ctx context.Context, p peer, r *tunnel.Request) {
	var reg tunnel.Registry
	tunnel.Handle(&reg, lease.MethodEnvironment, func(ctx context.Context, q lease.EnvironmentRequest) (lease.Environment, error) {
		return s.environment(ctx, p.connection, q)
	})
	tunnel.Handle(&reg, lease.MethodFigures, func(ctx context.Context, _ struct{}) ([]lease.Figures, error) {
		return s.figures(ctx, p.connection), nil
	})
	tunnel.Handle(&reg, lease.MethodPing, func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
	if err := tunnel.ServeRPC(ctx, r, &reg); err != nil {
		s.Log.Info("call failed", "connection", p.connection, "method", r.Header.Method, "err", err)
	}
}

// environment asks any agent of the engagement, which must be the caller's own.
func (s *Server) environment(ctx context.Context, connection string, q lease.EnvironmentRequest) (lease.Environment, error) {
	e, ok := s.Cluster.Engagement(q.Engagement)
	if !ok || e.Connection != connection {
		return lease.Environment{}, &tunnel.RPCError{Code: "not_found", Message: "no engagement " + q.Engagement + " of this connection"}
	}
	ctx, cancel := context.WithTimeout(ctx, envTimeout)
	defer cancel()
	var last error
	for _, a := range s.Hub.Agents(q.Engagement) {
		env, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](ctx, a.Session, lease.MethodAgentEnv, q)
		if err == nil {
			return exclude(env, s.ExcludeEnv), nil
		}
		last = err
	}
	if last == nil {
		return lease.Environment{}, &tunnel.RPCError{Code: "unavailable", Message: "no agent of the engagement has arrived yet"}
	}
	return lease.Environment{}, &tunnel.RPCError{Code: "unavailable", Message: "the agent did not answer: " + last.Error()}
}

// figures are the manager's own, and those of the agents that serve the connection.
// An agent that does not answer, being of an older version, is left out.
func (s *Server) figures(ctx context.Context, connection string) []lease.Figures {
	ctx, cancel := context.WithTimeout(ctx, envTimeout)
	defer cancel()
	streams := 0
	if vif := s.Hub.VIF(connection); vif != nil {
		streams = vif.NumStreams()
	}
	all := []lease.Figures{lease.FiguresOf("manager", streams)}
	agents := map[*hub.Agent]struct{}{} // one may serve several engagements
	for _, id := range s.Hub.Engagements() {
		if e, ok := s.Cluster.Engagement(id); ok && e.Connection == connection {
			for _, a := range s.Hub.Agents(id) {
				agents[a] = struct{}{}
			}
		}
	}
	for a := range agents {
		got, err := tunnel.Call[struct{}, []lease.Figures](ctx, a.Session, lease.MethodFigures, struct{}{})
		if err != nil {
			s.Log.Debug("no figures of an agent", "pod", a.Pod, "err", err)
			continue
		}
		for _, f := range got {
			f.Process += " " + a.Pod
			all = append(all, f)
		}
	}
	return all
}
