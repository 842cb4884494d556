// Package port listens in the place of the engaged container and carries what
// comes to the handler.
//
// A connection is refused as the handler refuses it: the kernel has accepted it
// already (the port must be open for kube-proxy and for probes by TCP), so the
// refusal is a reset, before a byte was answered. A datagram flow is one peer;
// it ends after a minute of silence.
//
// Connections of one client go on in the order in which they came, unless it takes
// a client's word to know where to.
//
// Beside a container, whose ports are its own, the kernel brings a port's traffic
// to another one, which Divert listens on; a Sorter says where it goes from there.
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

	"berth.dev/services/agent/internal/peek"
	"berth.dev/tunnel"
	"berth.dev/tunnel/turn"
)

// Protocols.
const (
	TCP = "TCP"
	UDP = "UDP"
)

// Sorter says where the traffic of a port goes that is the app's own.
type Sorter interface {
	// Sort looks at a connection before it becomes a flow. It returns the end to
	// carry on with, and where to; or what deals with the connection by itself, to
	// its end.
	Sort(ctx context.Context, c *net.TCPConn) (end peek.End, to To, itself func())
	// All is where goes what is told from nothing else; ok is false where that is
	// the app.
	All() (to To, ok bool)
	// App carries a connection to the app, to its end.
	App(ctx context.Context, end peek.End)
}

// OpenTimeout is how long a flow to the handler may take to come about.
const OpenTimeout = 15 * time.Second

// Port is a container port.
type Port struct {
	Number   uint16
	Protocol string
}

// String is as it is written: 8080/TCP.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Opener opens flows to the handler: the link.
type Opener interface {
	Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
	// Begin is Open without waiting for the answer.
	Begin(h tunnel.Header) (tunnel.Opening, error)
}

// Set is the ports that an agent holds.
type Set struct {
	engagement string // of all flows, without a Sorter
	opener     Opener
	log        *slog.Logger
	ctx        context.Context // of flows being opened
	cancel     context.CancelFunc
	lines      turn.Lines[line]

	accepting sync.WaitGroup // accept loops
	flows     sync.WaitGroup
	mu        sync.Mutex
	listeners []interface{ Close() error }
	open      map[*flow]struct{}
	quiet     chan struct{} // closed when no flow is open; nil while nobody waits
	closed    bool
	app       []netip.Addr // see Pass
}

// To is where flows go.
type To struct {
	Engagement string
	As         uint16 // the engagement's port
}

// Header asks for a flow from peer, which has connected to local.
func (t To) Header(kind tunnel.Kind, local, peer net.Addr) tunnel.Header {
	return tunnel.Header{Kind: kind, Engagement: t.Engagement, Dst: netip.AddrPortFrom(addrPort(local).Addr(), t.As), Src: addrPort(peer)}
}

// line is what connections have in common that keep their order.
type line struct {
	at     uint16
	client netip.Addr
}

// A connection waits that long for its turn at most: only a process that gets no
// time needs as much. Of the time that it takes to look at a connection the next one
// waits for a part that is enough for what a client says right after connecting.
const (
	turnWait = 500 * time.Millisecond
	lookWait = 20 * time.Millisecond
)

// flow is one that can be cut.
type flow struct {
	cut func()
	to  string // engagement; empty while it is not known, and where it is the app
}

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
		_, err := s.listenUDP(addr, nil)
		return err
	}
	_, err := s.listenTCP(addr, nil)
	return err
}

// Divert listens on a port, 0 for a free one, to which the traffic of another is
// brought. It returns the port that it listens on.
func (s *Set) Divert(protocol string, number uint16, sort Sorter) (at uint16, err error) {
	addr := ":" + strconv.Itoa(int(number))
	if protocol == UDP {
		return s.listenUDP(addr, sort)
	}
	return s.listenTCP(addr, sort)
}

func (s *Set) listenTCP(addr string, sort Sorter) (at uint16, err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return 0, err
	}
	s.keep(l)
	at = addrPort(l.Addr()).Port()
	s.accepting.Go(func() { s.accept(l.(*net.TCPListener), at, sort) })
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
	if len(s.open) == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
	s.mu.Unlock()
	s.flows.Done()
}

// Quiet waits until no flow is open, and reports whether that is so: false where
// ctx has ended before.
func (s *Set) Quiet(ctx context.Context) bool {
	s.mu.Lock()
	if len(s.open) == 0 {
		s.mu.Unlock()
		return true
	}
	if s.quiet == nil {
		s.quiet = make(chan struct{})
	}
	quiet := s.quiet
	s.mu.Unlock()
	select {
	case <-quiet:
		return true
	case <-ctx.Done():
		return false
	}
}

// bind says whose a flow is.
func (s *Set) bind(f *flow, engagement string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.to = engagement
}

// Cut resets the flows of an engagement.
func (s *Set) Cut(engagement string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.open {
		if f.to == engagement {
			f.cut()
		}
	}
}

// Open is the number of open flows.
func (s *Set) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *Set) accept(l *net.TCPListener, at uint16, sort Sorter) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: what closes next makes room
			s.log.Warn("accept", "port", at, "err", err)
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
		place := s.lines.Join(line{at, addrPort(c.RemoteAddr()).Addr()})
		go func() {
			defer s.end(f)
			defer place.Done()
			s.serve(f, c, at, sort, place)
		}()
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // close sends RST
	_ = c.Close()
}

func (s *Set) serve(f *flow, c *net.TCPConn, at uint16, sort Sorter, place *turn.Turn[line]) {
	var end peek.End = c
	to := To{s.engagement, at}
	if sort != nil {
		looked := time.AfterFunc(lookWait, place.Done)
		var itself func()
		end, to, itself = sort.Sort(s.ctx, c)
		looked.Stop()
		if itself != nil {
			place.Done()
			itself()
			return
		}
	} else if app := s.apps(); len(app) > 0 {
		place.Done()
		s.pass(c, at, app)
		return
	}
	s.bind(f, to.Engagement)
	place.Wait(s.ctx, turnWait)
	opening, err := s.opener.Begin(to.Header(tunnel.KindTCP, c.LocalAddr(), c.RemoteAddr()))
	place.Done()
	var stream *tunnel.Stream
	if err == nil {
		ctx, cancel := context.WithTimeout(s.ctx, OpenTimeout)
		stream, err = opening.Wait(ctx)
		cancel()
	}
	if err != nil && sort != nil {
		if now, ok := sort.All(); !ok || now != to { // the engagement ended meanwhile
			s.bind(f, "")
			sort.App(s.ctx, end)
			return
		}
	}
	if err != nil {
		peek.New(end).Reset(tunnel.CodeRefused)
		s.log.Debug("refused", "port", to.As, "err", err)
		return
	}
	if _, _, err := tunnel.Relay(end, stream); err != nil {
		s.log.Debug("flow ended", "port", to.As, "err", err)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		p = a.AddrPort()
	case *net.UDPAddr:
		p = a.AddrPort()
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
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
