package netstack

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"berth.dev/tunnel"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// halfOpen bounds the connections that wait for the far side. What comes
// beyond it is dropped and tried again by its sender.
const halfOpen = 2048

// syns remembers the sequence number of each SYN that waits for the far side:
// an ICMP error is believed only if it quotes it.
type syns struct {
	mu sync.Mutex
	by map[stack.TransportEndpointID]uint32
}

func (s *syns) put(id stack.TransportEndpointID, seq uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil || len(s.by) >= halfOpen {
		// Full of what nobody took: a SYN that the forwarder dropped leaves its
		// number behind. Those who wait lose an ICMP message at worst.
		s.by = map[stack.TransportEndpointID]uint32{}
	}
	s.by[id] = seq
}

func (s *syns) take(id stack.TransportEndpointID) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := s.by[id]
	delete(s.by, id)
	return seq
}

func (s *Stack) forwardTCP() {
	f := tcp.NewForwarder(s.net, 0, halfOpen, func(r *tcp.ForwarderRequest) { // in a goroutine of its own
		ctx, ok := s.join()
		if !ok {
			r.Complete(false)
			return
		}
		defer s.wg.Done()
		s.connect(ctx, r)
	})
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		if s.local(addrPort(id.LocalAddress, 0).Addr()) {
			return false // no server listens there: netstack answers with RST
		}
		h := header.TCP(pkt.TransportHeader().Slice())
		if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return f.HandlePacket(id, pkt)
		}
		s.syns.put(id, h.SequenceNumber())
		return f.HandlePacket(id, pkt)
	})
}

// connect holds the SYN until the far side has answered, then relays.
func (s *Stack) connect(ctx context.Context, r *tcp.ForwarderRequest) {
	id := r.ID()
	src, dst := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	stream, err := s.opener.Open(octx, tunnel.Header{Kind: tunnel.KindTCP, Dst: dst, Src: src})
	cancel()
	seq := s.syns.take(id)
	if err != nil {
		s.refuse(r, src, dst, seq, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { stream.Reset(tunnel.CodeCanceled) })
	defer stop()
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil { // the application has given up meanwhile
		stream.Reset(tunnel.CodeCanceled)
		return
	}
	s.flows.Add(1)
	defer s.flows.Add(-1)
	_, _, err = tunnel.Relay(&tcpConn{ep: ep, wq: &wq}, stream)
	if err != nil {
		s.log.Debug("connection broke", "dst", dst.String(), "err", err)
	}
}

// refuse ends an attempt as the destination's network would.
func (s *Stack) refuse(r *tcp.ForwarderRequest, src, dst netip.AddrPort, seq uint32, err error) {
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) && refused.Code == tunnel.CodeRefused {
		r.Complete(true)
		return
	}
	r.Complete(false)
	s.tell(src.Addr(), dst.Addr(), err, quote(header.TCPProtocolNumber, src, dst, seq))
}
