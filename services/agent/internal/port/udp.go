package port

import (
	"context"
	"net"
	"time"

	"berth.dev/tunnel"
	"berth.dev/tunnel/peers"
)

const udpIdle = 60 * time.Second

// listenUDP serves one socket for all peers, and a flow for each.
//
// An unconnected socket on a wildcard address answers from the address that the
// kernel's routes prefer, which in a pod with one address is the right one.
func (s *Set) listenUDP(addr string, sort Sorter) (at uint16, err error) {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return 0, err
	}
	at = addrPort(conn.LocalAddr()).Port()
	t := &peers.Table[To]{Conn: conn.(*net.UDPConn), Begin: s.beginUDP, Where: func() (To, bool) { return To{s.engagement, at}, true }}
	if sort != nil {
		t.Where = sort.All // what comes late is nobody's
	}
	s.keep(conn)
	s.accepting.Go(t.Run)
	return at, nil
}

// beginUDP begins a flow; one that comes later for another engagement ends it.
func (s *Set) beginUDP(p *peers.Peer[To]) (carry func()) {
	f := &flow{cut: func() { p.Close() }, to: p.For.Engagement}
	if !s.begin(f) {
		return nil
	}
	return func() {
		defer s.end(f)
		s.serveUDP(p)
	}
}

func (s *Set) serveUDP(p *peers.Peer[To]) {
	ctx, cancel := context.WithTimeout(s.ctx, OpenTimeout)
	stream, err := s.opener.Open(ctx, p.For.Header(tunnel.KindUDP, p.LocalAddr(), net.UDPAddrFromAddrPort(p.Addr)))
	cancel()
	if err != nil {
		s.log.Debug("datagrams dropped", "err", err)
		return
	}
	if _, _, err := tunnel.RelayPackets(stream, p, udpIdle); err != nil {
		s.log.Debug("flow ended", "err", err)
	}
}
