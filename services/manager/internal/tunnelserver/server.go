// Package tunnelserver is the manager's end of every tunnel: it lets clients
// and agents in, carries clients' flows into the cluster, and hands agents'
// flows to the client that holds the engagement.
//
// The outer HTTP is plain and proves nothing, since the API server that it
// usually came through has taken the caller's proof away; all trust is in the
// TLS inside, where the manager shows the key that is published as its pin, and
//
//   - a client shows a key that is listed in a live connection Lease, which the
//     API server let its owner write;
//   - an agent in the place of a container shows a token that only kubelet
//     hands out, bound to its pod, which must carry the engagement's label;
//   - an agent beside a container shows such a token, or, in a pod that was
//     there before it, a proof made for it and comes from the pod's address.
package tunnelserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/discovery"
	"berth.dev/services/manager/internal/entrance"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/proof"
	"berth.dev/tunnel"
)

// Cluster is what the server asks about leases and pods.
type Cluster interface {
	// Connection returns the spec of a connection's Lease while it lives.
	Connection(ctx context.Context, id string) (lease.ConnectionSpec, error)
	// Engagement returns an engagement by its id while its Lease is there.
	Engagement(id string) (lease.EngagementSpec, bool)
	// PodOf verifies an agent's token and returns its pod, with the engagement
	// that the pod is marked with.
	PodOf(ctx context.Context, token string) (name, uid, engagement string, err error)
	// Beside verifies who an agent beside a container says it is, by its token
	// and the address it comes from, and returns its pod's UID.
	Beside(ctx context.Context, id lease.AgentID, token string, from netip.Addr) (uid string, err error)
}

// Server serves the tunnel endpoint.
type Server struct {
	Identity       *tunnel.Identity
	Version        string
	InstallationID string
	Resolver       discovery.Resolver
	Discovery      *discovery.Discovery
	Cluster        Cluster
	Hub            *hub.Hub
	Entrances      *entrance.Observer
	ExcludeEnv     []string // variables that never leave the cluster: patterns of path.Match
	Log            *slog.Logger

	sessions sync.WaitGroup
}

// peer is who a session was authenticated as.
type peer struct {
	role       string
	connection string // of a client; for an agent that of its engagement
	pod        string // of an agent
	engagement string
	agent      *hub.Agent // of an agent
}

// ServeHTTP upgrades one request and serves its session to the end. ctx of the
// request ends with the server.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.sessions.Add(1)
	defer s.sessions.Done()
	ctx := r.Context()
	conn, err := tunnel.Upgrade(w, r)
	if err != nil {
		s.Log.Debug("not a tunnel request", "err", err)
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		s.Log.Debug("a caller without an address", "err", err)
	}
	s.serve(ctx, conn, from.Addr().Unmap())
}

// Wait returns when every session has ended.
func (s *Server) Wait() { s.sessions.Wait() }

func (s *Server) serve(ctx context.Context, conn net.Conn, from netip.Addr) {
	var p peer
	auth := func(ctx context.Context, h tunnel.Hello, pin tunnel.Pin) (*tunnel.Welcome, error) {
		var err error
		if p, err = s.authenticate(ctx, h, pin, from); err != nil {
			s.Log.Warn("tunnel refused", "role", h.Role, "id", h.ID, "client", h.Client, "err", err)
			return nil, err
		}
		return s.welcome(ctx, p), nil
	}
	session, hello, _, err := tunnel.Serve(ctx, conn, s.Identity, auth, tunnel.Config{Logger: s.Log})
	if err != nil {
		s.Log.Debug("tunnel handshake failed", "err", err)
		return
	}
	defer session.Close()
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()

	log := s.Log.With("role", p.role)
	switch p.role {
	case hub.RoleAgent:
		log = log.With("engagement", p.engagement, "pod", p.pod)
		p.agent.Session = session
		defer s.Hub.AddAgent(p.engagement, p.agent)()
	case hub.RoleBeside:
		log = log.With("pod", p.agent.Namespace+"/"+p.agent.Pod, "agent", p.agent.Name)
		p.agent.Session = session
		defer s.Hub.AddBeside(p.agent)()
	default:
		log = log.With("connection", p.connection)
		defer s.Hub.AddClient(p.connection, p.role, session)()
	}
	log.Info("tunnel up", "client", hello.Client)
	var flows sync.WaitGroup
	for {
		req, err := session.Accept(ctx)
		if err != nil {
			break
		}
		s.flow(ctx, p, req, flows.Go)
	}
	session.Close()
	flows.Wait()
	log.Info("tunnel down", "err", fmt.Sprint(session.Err()))
}

func denied(format string, args ...any) error {
	return &tunnel.RPCError{Code: "permission_denied", Message: fmt.Sprintf(format, args...)}
}

func (s *Server) authenticate(ctx context.Context, h tunnel.Hello, pin tunnel.Pin, from netip.Addr) (peer, error) {
	switch h.Role {
	case hub.RoleVIF, hub.RoleConnector:
		spec, err := s.Cluster.Connection(ctx, h.ID)
		if err != nil {
			return peer{}, err
		}
		for _, known := range spec.Pins {
			if known == string(pin) {
				return peer{role: h.Role, connection: h.ID}, nil
			}
		}
		return peer{}, denied("the key is not one of connection %s", h.ID)
	case hub.RoleAgent:
		name, uid, engagement, err := s.Cluster.PodOf(ctx, h.Token)
		if err != nil {
			return peer{}, err
		}
		if engagement == "" {
			return peer{}, denied("pod %s is not engaged", name)
		}
		e, ok := s.Cluster.Engagement(engagement)
		if !ok {
			return peer{}, &tunnel.RPCError{Code: "not_found", Message: "engagement " + engagement + " has ended"}
		}
		return peer{role: h.Role, pod: name, engagement: engagement, connection: e.Connection, agent: &hub.Agent{Pod: name, UID: uid}}, nil
	case hub.RoleBeside:
		id, err := lease.Unmarshal[lease.AgentID](h.ID)
		if err != nil {
			return peer{}, &tunnel.RPCError{Code: "invalid_argument", Message: err.Error()}
		}
		uid, err := s.Cluster.Beside(ctx, id, h.Token, from)
		if err != nil {
			return peer{}, err
		}
		return peer{role: h.Role, pod: id.Pod, agent: &hub.Agent{
			Namespace: id.Namespace, Pod: id.Pod, UID: uid, Name: id.Name, Container: id.Container, Divert: id.Divert, Filters: id.Filters, CopyFilters: id.CopyFilters, Sidecar: !proof.Is(h.Token)}}, nil
	}
	return peer{}, &tunnel.RPCError{Code: "invalid_argument", Message: fmt.Sprintf("unknown role %q", h.Role)}
}

func (s *Server) welcome(ctx context.Context, p peer) *tunnel.Welcome {
	w := &tunnel.Welcome{ServerVersion: s.Version, InstallationID: s.InstallationID}
	if p.agent != nil {
		return w
	}
	w.ClusterDomain, w.DNS = s.Resolver.Domain, s.Resolver.Servers
	subnets, err := s.Discovery.Subnets(ctx)
	if err != nil {
		s.Log.Error("subnets cannot be discovered", "connection", p.connection, "err", err)
	}
	// A resolver outside of every subnet (a node-local cache) is routed by itself.
	w.Subnets = append([]netip.Prefix{}, subnets...)
	for _, a := range s.Resolver.Servers {
		inside := false
		for _, n := range subnets {
			inside = inside || n.Contains(a)
		}
		if !inside {
			w.Subnets = append(w.Subnets, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return w
}

var errNoClient = errors.New("the client's tunnel is not up")
