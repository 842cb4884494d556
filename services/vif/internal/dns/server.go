// Package dns answers the names that processes in the daemon container's
// network ask for: the cluster's by the cluster's DNS, through the tunnel, and
// all others by the container's original name servers.
//
// It promises that what is not the cluster's is answered as without Berth, also
// while the tunnel is down, and that names of the cluster never leave it. Short
// names work with the search list in resolv.conf and without. [Zones.Plan] is
// the table of who is asked.
//
// The server listens inside netstack, on an address of the VIF's own, so that
// it takes no port from the handlers. Everything may be called concurrently.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

// concurrent bounds the queries that are being answered; more are dropped, and
// asked again by their clients.
const concurrent = 1024

// Server is a DNS server. The zero value is of no use; see New.
type Server struct {
	cluster  *cluster
	upstream *upstream
	cache    *cache
	flights  singleflight.Group
	log      *slog.Logger
	slots    chan struct{}
	ctx      context.Context // of Run
	cancel   context.CancelFunc
	epoch    atomic.Int64 // raised when what was cached is void

	mu      sync.Mutex
	z       Zones
	servers []netip.Addr
}

// New returns a server that knows no cluster yet. original are the original name
// servers, as they are when they are asked.
func New(opener Opener, original func() []netip.Addr, log *slog.Logger) *Server {
	s := &Server{
		cluster: &cluster{opener: opener}, upstream: &upstream{original, "53"},
		cache: newCache(), log: log, slots: make(chan struct{}, concurrent),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// SetCluster says what the cluster's names are and who knows them. What was
// cached is forgotten.
func (s *Server) SetCluster(z Zones, servers []netip.Addr) {
	s.mu.Lock()
	s.z, s.servers = z, servers
	s.mu.Unlock()
	s.epoch.Add(1)
	s.cache.flush()
}

// Search is the search list that belongs into resolv.conf.
func (s *Server) Search() []string {
	z, _ := s.zones()
	return z.search()
}

// Routes are the domains of the cluster's names; see Zones.
func (s *Server) Routes() []string {
	z, _ := s.zones()
	return z.routes()
}

func (s *Server) zones() (Zones, []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.z, s.servers
}

// Run serves on what it is given, which it closes, until ctx ends.
func (s *Server) Run(ctx context.Context, packets []net.PacketConn, listeners []net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	var all []*dns.Server
	for _, p := range packets {
		all = append(all, &dns.Server{PacketConn: p, Handler: s, UDPSize: dns.MaxMsgSize})
	}
	for _, l := range listeners {
		all = append(all, &dns.Server{Listener: l, Handler: s, ReadTimeout: 5 * time.Second})
	}
	for _, srv := range all {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		g.Go(func() error {
			if err := srv.ActivateAndServe(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve DNS: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			s.cancel() // end what is being answered
			select {
			case <-started: // Shutdown before would be in vain
				sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				_ = srv.ShutdownContext(sctx)
			case <-time.After(2 * time.Second):
			}
			if srv.PacketConn != nil {
				_ = srv.PacketConn.Close()
			}
			if srv.Listener != nil {
				_ = srv.Listener.Close()
			}
			return nil
		})
	}
	err := g.Wait()
	s.cancel()
	s.cluster.close()
	return err
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return
	}
	var r *dns.Msg
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r = failure(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		r = failure(q, dns.RcodeFormatError)
	default:
		r = s.resolve(s.ctx, q)
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(udpSize, opt.Do())
		size = min(max(size, int(opt.UDPSize())), udpSize)
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); !ok {
		size = dns.MaxMsgSize
	}
	r.Truncate(size)
	_ = w.WriteMsg(r) // fails for a client that is gone
}

// Probe asks the server at address, by the kernel's network, for a name that
// only the cluster's DNS can know. It returns nil when the answer came from there.
func (s *Server) Probe(ctx context.Context, address netip.AddrPort) error {
	z, servers := s.zones()
	q := new(dns.Msg)
	q.SetQuestion("kubernetes.default.svc."+z.Domain+".", dns.TypeA)
	var err error
	for ctx.Err() == nil {
		c := dns.Client{Timeout: clusterTimeout + 500*time.Millisecond}
		var r *dns.Msg
		if r, _, err = c.ExchangeContext(ctx, q, address.String()); err == nil {
			if r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError {
				return nil
			}
			err = errors.New(dns.RcodeToString[r.Rcode])
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("resolve %s: the cluster's DNS servers %v did not answer through the tunnel (%w)", q.Question[0].Name, servers, err)
}
