// Package embed runs the bus's server inside a process: connector's, and that of
// tests. Nothing else links it, since the server adds some ten megabytes.
//
// It is a NATS server with JetStream on disk. What it promises:
//
//   - Nobody connects without an identity: an nkey whose public half was given
//     to Start, Add or AddGuest, proven by a signature over the server's nonce. That goes
//     for loopback and for connections inside the process too.
//   - An identity touches only the subjects of its service; see [Permissions].
//   - A fact that was acknowledged is on disk (SyncAlways), so a kill -9 loses none.
//   - The store is bounded; the oldest goes first.
//   - There is no monitoring port, no cluster port, and no signal handler.
//
// A Server's methods may be called concurrently.
package embed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// RandomPort as Options.Port lets the system choose.
const RandomPort = -1

// Options says how to run the server.
type Options struct {
	StoreDir   string         // of the streams; created if missing
	Host       string         // address to listen on; default 127.0.0.1
	Port       int            // RandomPort, or one; 0 is NATS's own, 4222
	Identities []bus.Identity // who may connect; Add, AddGuest and Remove change it
	// Patience is for how long an unknown key is waited for before it is refused, where
	// those who are being added connect at the same moment; default: not at all.
	Patience time.Duration
	Logger   *slog.Logger // default: discards
}

// Server is a running server.
type Server struct {
	srv    *server.Server
	auth   *authenticator
	guests guests
}

// Start starts the server, makes sure of its streams and returns when it takes
// connections. ctx bounds the start only: the server runs until Shutdown.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.StoreDir == "" {
		return nil, errors.New("start bus: no store directory given")
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	auth := newAuthenticator(o.Patience)
	for _, id := range o.Identities {
		if err := auth.add(id); err != nil {
			return nil, fmt.Errorf("start bus: %w", err)
		}
	}
	srv, err := server.NewServer(&server.Options{
		ServerName: "berth",
		Host:       o.Host,
		Port:       o.Port,
		NoSigs:     true,
		// Requests carry kubeconfigs and environments; the streams have limits of
		// their own (bus.EnsureStreams).
		MaxPayload:  8 << 20,
		AuthTimeout: 5,
		// A peer that vanished without a FIN is noticed within a minute.
		PingInterval: 20 * time.Second,
		MaxPingsOut:  2,

		CustomClientAuthentication: auth,
		AlwaysEnableNonce:          true,
		// Clients keep to the address they were given: the server's own view of
		// its addresses is wrong on the other side of a published port.
		Cluster: server.ClusterOpts{NoAdvertise: true},

		JetStream:              true,
		StoreDir:               o.StoreDir,
		SyncAlways:             true,
		JetStreamMaxMemory:     32 << 20,
		JetStreamMaxStore:      bus.EventsMaxBytes + bus.OutputMaxBytes + 64<<20,
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return nil, fmt.Errorf("configure bus: %w", err)
	}
	lg := &logger{log: o.Logger}
	srv.SetLoggerV2(lg, false, false, false)
	s := &Server{srv: srv, auth: auth, guests: guests{byKey: map[string]*guest{}}}
	srv.Start()
	if err := s.ready(ctx, lg); err != nil {
		s.Shutdown()
		return nil, fmt.Errorf("start bus on %s: %w", o.Host, err)
	}
	if err := s.ensureStreams(ctx); err != nil {
		s.Shutdown()
		return nil, fmt.Errorf("start bus: %w", err)
	}
	return s, nil
}

// ready waits until the server takes connections; it gives up when ctx ends.
func (s *Server) ready(ctx context.Context, lg *logger) error {
	limit := 20 * time.Second
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	for end := time.Now().Add(limit); time.Now().Before(end) && ctx.Err() == nil; {
		if s.srv.ReadyForConnections(50 * time.Millisecond) {
			return nil
		}
		// The server says only in its log that it gave up, say on a taken port.
		if why := lg.fatal(); why != "" {
			return errors.New(why)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("not ready in time")
}

// ensureStreams does so with an identity that lives for this call only.
func (s *Server) ensureStreams(ctx context.Context) error {
	seed, id, err := bus.NewIdentity("embed-setup", subject.Connector, "")
	if err != nil {
		return err
	}
	if err := s.Add(id); err != nil {
		return err
	}
	defer s.Remove(id.Name)
	conn, err := s.Connect(ctx, id, seed)
	if err != nil {
		return err
	}
	defer conn.Close()
	return bus.EnsureStreams(ctx, conn.JS)
}

// URL is where clients on this host (or in this container) connect to.
func (s *Server) URL() string { return s.srv.ClientURL() }

// Port is the port it listens on.
func (s *Server) Port() int {
	u, err := url.Parse(s.srv.ClientURL())
	if err != nil {
		return 0
	}
	var p int
	if _, err := fmt.Sscanf(u.Port(), "%d", &p); err != nil {
		return 0
	}
	return p
}

// Add admits an identity. The same identity again is no error, another key
// under a name that is taken is.
func (s *Server) Add(id bus.Identity) error { return s.auth.add(id) }

// Remove admits an identity no more, and cuts its connections. An unknown name
// is no error.
func (s *Server) Remove(name string) {
	key, ok := s.auth.remove(name)
	if !ok {
		return
	}
	// The key is out of the table before the connections are listed, so none
	// slips in between.
	list, err := s.srv.Connz(&server.ConnzOptions{Username: true, Limit: 1 << 20})
	if err != nil {
		return // only for bad options
	}
	for _, c := range list.Conns {
		if c.AuthorizedUser == key {
			_ = s.srv.DisconnectClientByID(c.Cid) // it may have gone by itself
		}
	}
}

// Connect connects to the server from within its process, past the network. The
// identity must have been added like any other.
func (s *Server) Connect(ctx context.Context, id bus.Identity, seed string, opts ...nats.Option) (*bus.Conn, error) {
	cfg := bus.Config{URL: s.URL(), Seed: seed, Identity: id.Name, Service: id.Service}
	return bus.Connect(ctx, cfg, append(slices.Clone(opts), nats.InProcessServer(s.srv))...)
}

// Shutdown stops the server and returns when its files are closed.
func (s *Server) Shutdown() {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}
