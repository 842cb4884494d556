// Package port listens in the place of the engaged container and carries what
// comes to the handler.
//
// A connection is refused as the handler refuses it: the kernel has accepted it
// already (the port must be open for kube-proxy and for probes by TCP), so the
// refusal is a reset, before a byte was answered. A datagram flow is one peer;
// it ends after a minute of silence.
package port

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"berth.dev/tunnel"
)

// Protocols.
const (
	TCP = "TCP"
	UDP = "UDP"
)

const openTimeout = 15 * time.Second

// Port is a container port.
type Port struct {
	Number   uint16
	Protocol string
}

// Opener opens flows to the handler: the link.
type Opener interface {
	Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
}

// Set is the ports that an agent holds.
type Set struct {
	engagement string
	opener     Opener
	log        *slog.Logger
	ctx        context.Context // of flows being opened
	cancel     context.CancelFunc

	accepting sync.WaitGroup // accept loops
	flows     sync.WaitGroup
	mu        sync.Mutex
	listeners []interface{ Close() error }
	open      map[*flow]struct{}
	closed    bool
}

// flow is one that can be cut.
type flow struct{ cut func() }

// NewSet returns an empty set.
func NewSet(engagement string, o Opener, log *slog.Logger) *Set {
	ctx, cancel := context.WithCancel(context.Background())
	return &Set{engagement: engagement, opener: o, log: log, ctx: ctx, cancel: cancel, open: map[*flow]struct{}{}}
}

// Listen listens on all ports, on all addresses, or on none.
func (s *Set) Listen(ports []Port) error {
	for _, p := range ports {
		if err := s.listen(p); err != nil {
			s.Close()
			return fmt.Errorf("listen on port %d/%s: %w", p.Number, p.Protocol, err)
		}
	}
	return nil
}

func (s *Set) listen(p Port) error {
	addr := ":" + strconv.Itoa(int(p.Number))
	if p.Protocol == UDP {
		return s.listenUDP(addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.keep(l)
	s.accepting.Go(func() { s.accept(l.(*net.TCPListener), p) })
	return nil
}

func (s *Set) keep(l interface{ Close() error }) {
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
}

// begin registers a flow that cut ends; false if the set takes no more.
func (s *Set) begin(f *flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[f] = struct{}{}
	s.flows.Add(1)
	return true
}

func (s *Set) end(f *flow) {
	s.mu.Lock()
	delete(s.open, f)
	s.mu.Unlock()
	s.flows.Done()
}

// Open is the number of open flows.
func (s *Set) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *Set) accept(l *net.TCPListener, p Port) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: what closes next makes room
			s.log.Warn("accept", "port", p.Number, "err", err)
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		f := &flow{cut: func() { reset(c) }}
		if !s.begin(f) {
			reset(c)
			continue
		}
		go func() {
			defer s.end(f)
			s.serve(c, p)
		}()
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // close sends RST
	_ = c.Close()
}

func (s *Set) header(kind tunnel.Kind, local, peer netip.AddrPort) tunnel.Header {
	return tunnel.Header{Kind: kind, Engagement: s.engagement, Dst: unmap(local), Src: unmap(peer)}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (s *Set) serve(c *net.TCPConn, p Port) {
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	stream, err := s.opener.Open(ctx, s.header(tunnel.KindTCP, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())))
	cancel()
	if err != nil {
		reset(c)
		s.log.Debug("refused", "port", p.Number, "err", err)
		return
	}
	if _, _, err := tunnel.Relay(c, stream); err != nil {
		s.log.Debug("flow ended", "port", p.Number, "err", err)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// stop ends listening.
func (s *Set) stop() {
	s.mu.Lock()
	s.closed = true
	ls := s.listeners
	s.listeners = nil
	s.mu.Unlock()
	for _, l := range ls {
		_ = l.Close()
	}
}

// Drain takes no new flows and returns when the open ones have ended, or have
// been cut because ctx has.
func (s *Set) Drain(ctx context.Context) {
	s.stop()
	done := make(chan struct{})
	go func() { s.flows.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.Close()
	<-done
}

// Close ends everything at once.
func (s *Set) Close() {
	s.stop()
	s.cancel()
	s.mu.Lock()
	for f := range s.open {
		f.cut()
	}
	s.mu.Unlock()
	s.flows.Wait()
	s.accepting.Wait()
}
