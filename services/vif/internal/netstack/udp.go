package netstack

import (
	"context"
	"errors"
	"net"
	"time"

	"berth.dev/tunnel"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	udpIdle    = 60 * time.Second
	udpDNSIdle = 10 * time.Second // a query and its answer, a source port each
	udpFlows   = 8192
)

func (s *Stack) forwardUDP() {
	f := udp.NewForwarder(s.net, func(r *udp.ForwarderRequest) bool {
		if s.flows.Load() >= udpFlows {
			return true // lost
		}
		// The endpoint queues what arrives until the far side has answered.
		var wq waiter.Queue
		ep, err := r.CreateEndpoint(&wq)
		if err != nil {
			return true
		}
		id, conn := r.ID(), &udpConn{gonet.NewUDPConn(&wq, ep), ep, &wq}
		s.flows.Add(1)
		if !s.spawn(func(ctx context.Context) { s.datagrams(ctx, id, conn) }) {
			s.flows.Add(-1)
			_ = conn.Close()
		}
		return true
	})
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		if s.local(addrPort(id.LocalAddress, 0).Addr()) {
			return false // netstack answers with port unreachable
		}
		return f.HandlePacket(id, pkt)
	})
}

// udpConn is the application's end of a UDP flow, for tunnel.RelayPackets.
type udpConn struct {
	*gonet.UDPConn
	ep tcpip.Endpoint
	wq *waiter.Queue
}

var _ tunnel.ReadWaiter = (*udpConn)(nil)

// WaitRead waits for a datagram, an error or the end.
func (c *udpConn) WaitRead() {
	const events = waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp
	if c.ep.Readiness(events) != 0 {
		return
	}
	entry, ready := waiter.NewChannelEntry(events)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	if c.ep.Readiness(events) == 0 {
		<-ready
	}
}

// datagrams carries one UDP flow.
func (s *Stack) datagrams(ctx context.Context, id stack.TransportEndpointID, conn net.Conn) {
	defer s.flows.Add(-1)
	defer conn.Close()
	src, dst := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	stream, err := s.opener.Open(octx, tunnel.Header{Kind: tunnel.KindUDP, Dst: dst, Src: src})
	cancel()
	if err == nil {
		stop := context.AfterFunc(ctx, func() { stream.Reset(tunnel.CodeCanceled) })
		idle := udpIdle
		if dst.Port() == 53 {
			idle = udpDNSIdle
		}
		_, _, err = tunnel.RelayPackets(stream, conn, idle)
		stop()
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return
	}
	s.tell(src.Addr(), dst.Addr(), err, quote(header.UDPProtocolNumber, src, dst, 0))
}
