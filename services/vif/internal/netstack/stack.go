// Package netstack ends the IP flows that arrive on the TUN, with gVisor's
// network stack, and carries each as a stream of the tunnel.
//
// It promises that an application sees what it would see on the cluster's own
// network. A SYN is answered only after the far side has connected; refused is
// RST, unreachable is the ICMP message; half-close and reset pass both ways;
// datagrams keep their boundaries; an echo request is answered if the
// destination answered. While the tunnel is down packets are lost, which TCP
// survives by sending its SYN again.
//
// What is addressed to [Config.Local] is not carried: those addresses are the
// stack's own, for servers that must not take a port from the kernel (DNS).
//
// Every flow belongs to Run, which returns when all have ended.
package netstack

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

	"berth.dev/services/vif/internal/tun"
	"berth.dev/tunnel"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// openTimeout bounds how long the far side may take to connect. It is below
// the time after which a SYN's sender gives up, so that its last try counts.
const openTimeout = 30 * time.Second

const nic tcpip.NICID = 1

// Opener opens streams to the far side (tunnel.Session, or what stands for the
// session of the moment). It fails at once where there is none.
type Opener interface {
	Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
}

// Config is what a Stack is made of.
type Config struct {
	Device *tun.Device
	Opener Opener
	Local  []netip.Addr // addresses of the stack itself
	Logger *slog.Logger
}

// Stack is a network stack on a TUN.
type Stack struct {
	link   *link
	net    *stack.Stack
	opener Opener
	log    *slog.Logger
	locals map[netip.Addr]bool
	echoes *echoes
	syns   syns
	flows  atomic.Int64

	mu     sync.Mutex
	ctx    context.Context // of Run; nil before and after
	wg     sync.WaitGroup
	closed bool
}

// New makes a stack; nothing passes before Run.
func New(cfg Config) (*Stack, error) {
	s := &Stack{opener: cfg.Opener, log: cfg.Logger, locals: map[netip.Addr]bool{}}
	s.echoes = &echoes{s: s, by: map[echoKey]*echo{}}
	s.link = &link{dev: cfg.Device, log: cfg.Logger, intercept: s.intercept, spawn: s.spawn}
	s.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.configure(cfg.Local); err != nil {
		s.net.Destroy()
		return nil, err
	}
	return s, nil
}

func (s *Stack) configure(local []netip.Addr) error {
	if err := s.net.CreateNIC(nic, s.link); err != nil {
		return fmt.Errorf("create netstack's interface: %s", err)
	}
	for _, a := range local {
		s.locals[a] = true
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		if err := s.net.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: address(a).WithPrefix()}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("give netstack the address %s: %s", a, err)
		}
	}
	// Every address of the cluster is answered for.
	if err := s.net.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("make netstack promiscuous: %s", err)
	}
	if err := s.net.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("let netstack speak for others: %s", err)
	}
	s.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	if err := s.tune(); err != nil {
		return err
	}
	s.forwardTCP()
	s.forwardUDP()
	return nil
}

// tune sets the buffers. The path between application and stack has no losses
// and little delay; the buffers only have to bridge scheduling.
func (s *Stack) tune() error {
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	// Not more: an application that does not read has netstack hold it all.
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 2 << 20}
	// TIME_WAIT guards against stragglers, of which a TUN has none.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(5 * time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send, &timeWait} {
		if err := s.net.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set netstack's %T: %s", o, err)
		}
	}
	for _, o := range []any{
		tcpip.ReceiveBufferSizeOption{Min: 4 << 10, Default: 4 << 20, Max: 8 << 20}, // of datagrams
		tcpip.SendBufferSizeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20},
	} {
		if err := s.net.SetOption(o); err != nil {
			return fmt.Errorf("set netstack's %T: %s", o, err)
		}
	}
	return nil
}

// Run carries packets until ctx ends or the device fails, resets what flows
// are left and returns when they have ended. It also closes the device, as the
// only way to interrupt its reader. It may be called once.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = s.link.dev.Close() })
	defer stop()
	err := s.link.read(ctx)
	cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.net.Destroy() // aborts the endpoints, which ends their relays
	s.wg.Wait()
	if err != nil {
		return fmt.Errorf("carry packets of %s: %w", s.link.dev.Name(), err)
	}
	return nil
}

// spawn runs f in a goroutine as part of Run; false says that Run has ended.
func (s *Stack) spawn(f func(context.Context)) bool {
	ctx, ok := s.join()
	if ok {
		go func() {
			defer s.wg.Done()
			f(ctx)
		}()
	}
	return ok
}

// join makes the caller's goroutine part of Run until it calls s.wg.Done; false says
// that Run has ended.
func (s *Stack) join() (context.Context, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ctx == nil {
		return nil, false
	}
	s.wg.Add(1)
	return s.ctx, true
}

// Flows is how many TCP connections and UDP flows are being carried.
func (s *Stack) Flows() int { return int(s.flows.Load()) }

func (s *Stack) local(a netip.Addr) bool { return s.locals[a] }

// ListenTCP listens on one of the stack's own addresses.
func (s *Stack) ListenTCP(a netip.AddrPort) (net.Listener, error) {
	full, proto := fullAddress(a)
	l, err := gonet.ListenTCP(s.net, full, proto)
	if err != nil {
		return nil, fmt.Errorf("listen on %s inside netstack: %w", a, err)
	}
	return l, nil
}

// ListenUDP receives datagrams on one of the stack's own addresses.
func (s *Stack) ListenUDP(a netip.AddrPort) (net.PacketConn, error) {
	full, proto := fullAddress(a)
	c, err := gonet.DialUDP(s.net, &full, nil, proto)
	if err != nil {
		return nil, fmt.Errorf("receive on %s inside netstack: %w", a, err)
	}
	return c, nil
}

func fullAddress(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := ipv4.ProtocolNumber
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: address(a.Addr()), Port: a.Port()}, proto
}

// tell says by ICMP what became of a packet, where a real network would. quote
// is what unreachablePacket takes.
func (s *Stack) tell(src, dst netip.Addr, err error, quote []byte) {
	if why, ok := reason(err); ok {
		s.inject(unreachablePacket(src, dst, why, quote))
	}
}

// reason is the ICMP message that err stands for. Timeouts have none, and a
// tunnel that is down is a loss of packets, not news about the destination.
func reason(err error) (unreachable, bool) {
	var refused *tunnel.RefusedError
	var reset *tunnel.ResetError
	code := tunnel.Code(0)
	switch {
	case errors.As(err, &refused):
		code = refused.Code
	case errors.As(err, &reset):
		code = reset.Code
	}
	switch code {
	case tunnel.CodeRefused:
		return portUnreachable, true
	case tunnel.CodeUnreachable, tunnel.CodeNotFound:
		return hostUnreachable, true
	case tunnel.CodeDenied:
		return prohibited, true
	}
	return 0, false
}
