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
)

const (
	dialTimeout = 10 * time.Second
	udpIdle     = 60 * time.Second
)

// Serve answers a request for a flow and carries it to its end.
func Serve(ctx context.Context, r *tunnel.Request) {
	h := r.Header
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
