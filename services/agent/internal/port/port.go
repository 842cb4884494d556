// Package port listens in the place of the engaged container and carries what
// comes to the handler.
//
// A connection is refused as the handler refuses it: the kernel has accepted it
// already (the port must be open for kube-proxy and for probes by TCP), so the
// refusal is a reset, before a byte was answered. A datagram flow is one peer;
// it ends after a minute of silence.
//
// Beside a container, whose ports are its own, the kernel brings a port's traffic
// to another one, which Divert listens on.
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

// Sorter deals with what does not go to the handler.
type Sorter interface {
	// Sort looks at a connection before it becomes a flow. It returns the end to
	// carry on with, or nil where it has dealt with the connection by itself.
	Sort(ctx context.Context, c *net.TCPConn) tunnel.HalfCloser
	// App carries a connection to the app, to its end: one that comes late, after
	// Retire.
	App(ctx context.Context, end tunnel.HalfCloser)
}

const (
	openTimeout = 15 * time.Second
	onTheWay    = 200 * time.Millisecond // from a connection's first packet until it is accepted
)

// Port is a container port.
type Port struct {
	Number   uint16
	Protocol string
}

// String is as it is written: 8080/TCP.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Sort looks at a connection before it becomes a flow. It returns the end to
// carry on with, or nil where it has dealt with the connection by itself, which
// it does in any case with one that comes late: after Retire.
type Sort func(ctx context.Context, c *net.TCPConn, late bool) tunnel.HalfCloser

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
	retired   bool
	switched  bool // see Switch
	to        *To
	app       []netip.Addr // see Pass
}

// To is where the flows of a port that is listened on for ever go.
type To struct {
	Engagement string
	As         uint16 // the engagement's port
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
		_, err := s.listenUDP(addr, 0)
		return err
	}
	_, err := s.listenTCP(addr, 0, nil)
	return err
}

// Divert listens on a free port, to which the traffic of p is to be brought, and
// returns it. The flows are those of the engagement's port as.
func (s *Set) Divert(p Port, as uint16, sort Sorter) (at uint16, err error) {
	if p.Protocol == UDP {
		return s.listenUDP(":0", as)
	}
	return s.listenTCP(":0", as, sort)
}

// Switch listens on a port for ever. Connections go where SetTo says last, and
// to the app while it says nothing.
func (s *Set) Switch(number uint16, sort Sorter) error {
	s.switched = true
	_, err := s.listenTCP(":"+strconv.Itoa(int(number)), 0, sort)
	return err
}

// SetTo says where new connections go; nil is the app.
func (s *Set) SetTo(to *To) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
}

// where is the engagement and port of a new flow; ok is false for the app's.
func (s *Set) where(as uint16) (to To, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.retired, s.switched && s.to == nil:
		return To{}, false
	case s.switched:
		return *s.to, true
	}
	return To{s.engagement, as}, true
}

func (s *Set) listenTCP(addr string, as uint16, sort Sorter) (at uint16, err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return 0, err
	}
	s.keep(l)
	at = addrPort(l.Addr()).Port()
	if as == 0 {
		as = at
	}
	s.accepting.Go(func() { s.accept(l.(*net.TCPListener), as, sort) })
	return at, nil
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

func (s *Set) accept(l *net.TCPListener, as uint16, sort Sorter) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: what closes next makes room
			s.log.Warn("accept", "port", as, "err", err)
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
			s.serve(c, as, sort)
		}()
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // close sends RST
	_ = c.Close()
}

func (s *Set) header(kind tunnel.Kind, to To, local netip.Addr, peer netip.AddrPort) tunnel.Header {
	return tunnel.Header{Kind: kind, Engagement: to.Engagement, Dst: netip.AddrPortFrom(local.Unmap(), to.As), Src: unmap(peer)}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (s *Set) serve(c *net.TCPConn, as uint16, sort Sorter) {
	if sort == nil && s.pass(c, as) {
		return
	}
	var end tunnel.HalfCloser = c
	to, ok := s.where(as)
	if sort != nil {
		if !ok {
			sort.App(s.ctx, c)
			return
		}
		if end = sort.Sort(s.ctx, c); end == nil {
			return
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	stream, err := s.opener.Open(ctx, s.header(tunnel.KindTCP, to, addrPort(c.LocalAddr()).Addr(), addrPort(c.RemoteAddr())))
	cancel()
	if err != nil && sort != nil {
		if now, ok := s.where(as); !ok || now != to { // the engagement ended meanwhile
			sort.App(s.ctx, end)
			return
		}
	}
	if err != nil {
		reset(c)
		s.log.Debug("refused", "port", as, "err", err)
		return
	}
	if _, _, err := tunnel.Relay(end, stream); err != nil {
		s.log.Debug("flow ended", "port", as, "err", err)
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

// Retire is for a port whose traffic has been brought elsewhere: from when it
// returns, connections that are still on their way here are the app's. The
// function that it returns takes those for a moment and then drains.
func (s *Set) Retire() (drain func(context.Context)) {
	s.mu.Lock()
	s.retired = true
	s.mu.Unlock()
	return func(ctx context.Context) {
		select {
		case <-time.After(onTheWay):
		case <-ctx.Done():
		}
		s.Drain(ctx)
	}
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
