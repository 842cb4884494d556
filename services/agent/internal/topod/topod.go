// Package topod carries the flows that come from the handler to the pod's own
// ports (--to-pod): to its loopback address, as the containers of the pod reach
// each other, or to the pod's for an app that listens on nothing else. Which ports
// may be reached is the manager's to say, by the engagement.
package topod

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"berth.dev/services/agent/internal/probe"
	"berth.dev/tunnel"
	"berth.dev/tunnel/turn"
)

const (
	dialTimeout = 10 * time.Second
	udpIdle     = 60 * time.Second
	turnWait    = 500 * time.Millisecond // for those before to connect, which inside of the pod is at once
)

// Ports are those of the pod. The zero value is ready.
type Ports struct {
	lines turn.Lines[line]
}

// line is what flows have in common that keep their order.
type line struct {
	engagement string
	kind       tunnel.Kind
	port       uint16
}

// Take returns what answers a request for a flow and carries it to its end. Of the
// flows of one port each connects after those that were taken before it.
func (p *Ports) Take(ctx context.Context, r *tunnel.Request) (serve func()) {
	h := r.Header
	place := p.lines.Join(line{h.Engagement, h.Kind, h.Dst.Port()})
	return func() {
		defer place.Done()
		carry(ctx, r, place)
	}
}

func carry(ctx context.Context, r *tunnel.Request, place *turn.Turn[line]) {
	h := r.Header
	place.Wait(ctx, turnWait)
	dctx, cancel := r.Context(ctx)
	dctx, cancelTimeout := context.WithTimeout(dctx, dialTimeout)
	defer cancel()
	defer cancelTimeout()
	if h.Kind == tunnel.KindUDP {
		var d net.Dialer
		conn, err := d.DialContext(dctx, "udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(h.Dst.Port()))))
		if err != nil {
			r.Refuse(tunnel.CodeOf(err), err.Error())
			return
		}
		place.Done()
		stream, err := r.Accept()
		if err != nil {
			_ = conn.Close()
			return
		}
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		_, _, _ = tunnel.RelayPackets(stream, conn, udpIdle)
		return
	}
	conn, err := probe.Dial(dctx, h.Dst.Port(), own())
	place.Done()
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_, _, _ = tunnel.Relay(stream, conn) // its end is the handler's to judge
}

// own is the pod's address.
func own() netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().IsGlobalUnicast() {
				return ip.Unmap()
			}
		}
	}
	return netip.Addr{}
}
