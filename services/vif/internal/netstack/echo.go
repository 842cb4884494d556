package netstack

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"berth.dev/tunnel"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	echoIdle  = 30 * time.Second // ping's default interval is one second
	echoFlows = 256
	echoQueue = 16 // requests that wait for the stream to open
)

// echoKey is one run of ping: the kernel gives each a number.
type echoKey struct {
	src, dst netip.Addr
	id       uint16
}

// echoes sends echo requests to the far side, one stream for each run of ping,
// and answers those that the destination answered. A netstack that answers for
// any address by itself would say that everything lives.
type echoes struct {
	s  *Stack
	mu sync.Mutex
	by map[echoKey]*echo
}

type echo struct {
	key   echoKey
	queue chan []byte // sequence number and payload
	quote []byte      // of the first request, for ICMP errors
}

// intercept looks at a packet before netstack does.
func (s *Stack) intercept(head, rest []byte) bool {
	switch head[0] >> 4 {
	case 4:
		h := header.IPv4(head)
		n := int(h.HeaderLength())
		dst := netip.AddrFrom4([4]byte(head[16:20]))
		if n < header.IPv4MinimumSize || len(head) < n {
			return true
		}
		if dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return true
		}
		if h.TransportProtocol() != header.ICMPv4ProtocolNumber || s.local(dst) {
			return false
		}
		if h.More() || h.FragmentOffset() != 0 {
			return true // whole, netstack would answer it by itself
		}
		if len(head) < n+header.ICMPv4MinimumSize || header.ICMPv4(head[n:]).Type() != header.ICMPv4Echo {
			return false
		}
		return s.echoes.request(netip.AddrFrom4([4]byte(head[12:16])), dst, head, n, rest)
	case 6:
		if len(head) < header.IPv6MinimumSize {
			return true
		}
		h := header.IPv6(head)
		src, dst := netip.AddrFrom16([16]byte(head[8:24])), netip.AddrFrom16([16]byte(head[24:40]))
		if dst.IsMulticast() || src.IsLinkLocalUnicast() {
			return true // the kernel looks for neighbours and routers
		}
		if s.local(dst) {
			return false
		}
		const n = header.IPv6MinimumSize
		switch h.NextHeader() {
		case uint8(header.ICMPv6ProtocolNumber):
			if len(head) < n+header.ICMPv6MinimumSize || header.ICMPv6(head[n:]).Type() != header.ICMPv6EchoRequest {
				return false
			}
			return s.echoes.request(src, dst, head, n, rest)
		case header.IPv6FragmentHeader:
			return len(head) > n && head[n] == uint8(header.ICMPv6ProtocolNumber)
		}
		return false
	}
	return true
}

// request takes an echo request; its layout is the same in both ICMPs.
func (e *echoes) request(src, dst netip.Addr, head []byte, n int, rest []byte) bool {
	icmp := head[n:]
	key := echoKey{src, dst, binary.BigEndian.Uint16(icmp[4:])}
	packet := make([]byte, 0, len(icmp)-6+len(rest))
	packet = append(append(packet, icmp[6:]...), rest...)
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.by[key]
	if f == nil {
		if len(e.by) >= echoFlows {
			return true
		}
		f = &echo{key: key, queue: make(chan []byte, echoQueue), quote: append([]byte(nil), head[:n+8]...)}
		if e.s.spawn(func(ctx context.Context) { e.run(ctx, f) }) {
			e.by[key] = f
		}
	}
	select {
	case f.queue <- packet:
	default: // lost, as on any network that is too slow
	}
	return true
}

func (e *echoes) forget(f *echo) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.by, f.key)
}

// run carries one run of ping.
func (e *echoes) run(ctx context.Context, f *echo) {
	defer e.forget(f)
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	stream, err := e.s.opener.Open(octx, tunnel.Header{Kind: tunnel.KindEcho, Dst: netip.AddrPortFrom(f.key.dst, 0), Src: netip.AddrPortFrom(f.key.src, 0)})
	cancel()
	if err != nil {
		e.s.tell(f.key.src, f.key.dst, err, f.quote)
		return
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Reset(tunnel.CodeCanceled) })
	defer stop()
	gone := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(gone)
		buf := make([]byte, 64<<10)
		for {
			n, err := stream.ReadPacket(buf)
			if err != nil {
				if ctx.Err() == nil {
					e.s.tell(f.key.src, f.key.dst, err, f.quote)
				}
				return
			}
			if n >= 2 {
				e.s.inject(echoReply(f.key.src, f.key.dst, f.key.id, binary.BigEndian.Uint16(buf), buf[2:n]))
			}
		}
	})
	idle := time.NewTimer(echoIdle)
	defer idle.Stop()
	for {
		select {
		case p := <-f.queue:
			if err := stream.WritePacket(p); err != nil {
				stream.Reset(tunnel.CodeCanceled)
				return
			}
			idle.Reset(echoIdle)
		case <-idle.C:
			stream.Reset(tunnel.CodeCanceled)
			return
		case <-gone:
			return
		}
	}
}
