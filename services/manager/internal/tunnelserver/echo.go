package tunnelserver

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"berth.dev/tunnel"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// echo pings for a client. It opens an unprivileged ICMP socket (Linux
// "ping socket", allowed by net.ipv4.ping_group_range), to which the kernel
// delivers only the answers to its own requests; an answer goes back to the
// client only when there was one.
func (s *Server) echo(_ context.Context, r *tunnel.Request) {
	dst := r.Header.Dst.Addr().Unmap()
	network, listen, proto := "udp4", "0.0.0.0", 1 // IANA protocol numbers
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if dst.Is6() {
		network, listen, proto, kind = "udp6", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	conn, err := icmp.ListenPacket(network, listen)
	if err != nil {
		s.Log.Warn("no ping socket: is net.ipv4.ping_group_range set for the manager's pod?", "err", err)
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		conn.Close()
		return
	}
	to := &net.UDPAddr{IP: dst.AsSlice()}
	var back sync.WaitGroup
	back.Go(func() {
		defer stream.Close()
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if u, ok := from.(*net.UDPAddr); !ok || !u.IP.Equal(to.IP) {
				continue
			}
			m, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil {
				continue
			}
			e, ok := m.Body.(*icmp.Echo)
			if !ok || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
				continue
			}
			reply := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(e.Data)), uint16(e.Seq))
			if stream.WritePacket(append(reply, e.Data...)) != nil {
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := readWithin(stream, buf)
		if err != nil || n < 2 {
			break
		}
		m := icmp.Message{Type: kind, Body: &icmp.Echo{Seq: int(binary.BigEndian.Uint16(buf)), Data: buf[2:n]}}
		b, err := m.Marshal(nil)
		if err != nil {
			continue
		}
		if _, err := conn.WriteTo(b, to); err != nil {
			stream.Reset(tunnel.CodeOf(err)) // no route: say so rather than be silent
			break
		}
	}
	conn.Close()
	back.Wait()
}

// readWithin reads a packet, or gives up when the client was silent for udpIdle.
func readWithin(s *tunnel.Stream, buf []byte) (int, error) {
	if err := s.SetReadDeadline(time.Now().Add(udpIdle)); err != nil {
		return 0, err
	}
	return s.ReadPacket(buf)
}
