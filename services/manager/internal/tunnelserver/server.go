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
//   - an agent shows a token that only kubelet hands out, bound to its pod,
//     which must carry the engagement's label.
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
	"berth.dev/services/manager/internal/hub"
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
	Log            *slog.Logger

	sessions sync.WaitGroup
}

// peer is who a session was authenticated as.
type peer struct {
	role       string
	connection string // of a client; for an agent that of its engagement
	pod, uid   string // of an agent
	engagement string
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
	s.serve(ctx, conn)
}

// Wait returns when every session has ended.
func (s *Server) Wait() { s.sessions.Wait() }

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	var p peer
	auth := func(ctx context.Context, h tunnel.Hello, pin tunnel.Pin) (*tunnel.Welcome, error) {
		var err error
		if p, err = s.authenticate(ctx, h, pin); err != nil {
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
	if p.role == hub.RoleAgent {
		log = log.With("engagement", p.engagement, "pod", p.pod)
		remove := s.Hub.AddAgent(p.engagement, &hub.Agent{Session: session, Pod: p.pod, UID: p.uid})
		defer remove()
	} else {
		log = log.With("connection", p.connection)
		remove := s.Hub.AddClient(p.connection, p.role, session)
		defer remove()
	}
	log.Info("tunnel up", "client", hello.Client)
	var flows sync.WaitGroup
	for {
		req, err := session.Accept(ctx)
		if err != nil {
			break
		}
		flows.Go(func() { s.flow(ctx, p, req) })
	}
	session.Close()
	flows.Wait()
	log.Info("tunnel down", "err", fmt.Sprint(session.Err()))
}

func denied(format string, args ...any) error {
	return &tunnel.RPCError{Code: "permission_denied", Message: fmt.Sprintf(format, args...)}
}

func (s *Server) authenticate(ctx context.Context, h tunnel.Hello, pin tunnel.Pin) (peer, error) {
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
		return peer{role: h.Role, pod: name, uid: uid, engagement: engagement, connection: e.Connection}, nil
	}
	return peer{}, &tunnel.RPCError{Code: "invalid_argument", Message: fmt.Sprintf("unknown role %q", h.Role)}
}

func (s *Server) welcome(ctx context.Context, p peer) *tunnel.Welcome {
	w := &tunnel.Welcome{ServerVersion: s.Version, InstallationID: s.InstallationID}
	if p.role == hub.RoleAgent {
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
