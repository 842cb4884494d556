package port

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"berth.dev/tunnel"
)

const (
	udpIdle  = 60 * time.Second
	udpQueue = 64 // datagrams of one peer that wait for its flow
)

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
	u := &udpPort{set: s, at: at, sort: sort, conn: conn.(*net.UDPConn), peers: map[netip.AddrPort]*peer{}}
	s.keep(conn)
	s.accepting.Go(u.read)
	return at, nil
}

type udpPort struct {
	set  *Set
	at   uint16
	sort Sorter // may be nil
	conn *net.UDPConn

	mu    sync.Mutex
	peers map[netip.AddrPort]*peer
}

// peer is the near end of one flow, as RelayPackets wants it: a connection of
// which one Read or Write is one datagram.
type peer struct {
	net.Conn // deadlines and addresses are not asked for before Read is
	port     *udpPort
	to       To
	addr     netip.AddrPort
	in       chan []byte
	next     []byte // has been taken from in, for Read
	once     sync.Once
	done     chan struct{}
}

func (u *udpPort) read() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := u.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an answer that nobody wanted
		}
		p := u.peer(from)
		if p == nil {
			continue
		}
		select {
		case p.in <- append([]byte{}, buf[:n]...):
		default: // full: dropped, as datagrams are
		}
	}
}

// peer is the flow of from, begun if need be: also where the port's traffic has
// become another engagement's.
func (u *udpPort) peer(from netip.AddrPort) *peer {
	to := To{u.set.engagement, u.at}
	if u.sort != nil {
		var ok bool
		if to, ok = u.sort.All(); !ok {
			return nil // came late
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.peers[from]; p != nil && p.to == to {
		return p
	} else if p != nil {
		p.Close()
	}
	p := &peer{port: u, to: to, addr: from, in: make(chan []byte, udpQueue), done: make(chan struct{})}
	f := &flow{cut: func() { p.Close() }, to: to.Engagement}
	if !u.set.begin(f) {
		return nil
	}
	u.peers[from] = p
	go func() {
		defer u.set.end(f)
		defer u.forget(p)
		u.serve(p)
	}()
	return p
}

func (u *udpPort) forget(p *peer) {
	p.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.peers[p.addr] == p {
		delete(u.peers, p.addr)
	}
}

func (u *udpPort) serve(p *peer) {
	ctx, cancel := context.WithTimeout(u.set.ctx, OpenTimeout)
	stream, err := u.set.opener.Open(ctx, p.to.Header(tunnel.KindUDP, u.conn.LocalAddr(), net.UDPAddrFromAddrPort(p.addr)))
	cancel()
	if err != nil {
		u.set.log.Debug("datagrams dropped", "err", err)
		return
	}
	if _, _, err := tunnel.RelayPackets(stream, p, udpIdle); err != nil {
		u.set.log.Debug("flow ended", "err", err)
	}
}

// WaitRead implements tunnel.ReadWaiter.
func (p *peer) WaitRead() {
	if p.next != nil {
		return
	}
	select {
	case p.next = <-p.in:
	case <-p.done:
	}
}

// Read returns the next datagram of the peer. It has one caller.
func (p *peer) Read(b []byte) (int, error) {
	p.WaitRead()
	d := p.next
	if p.next = nil; d == nil {
		return 0, net.ErrClosed
	}
	return copy(b, d), nil
}

// Write answers the peer.
func (p *peer) Write(b []byte) (int, error) { return p.port.conn.WriteToUDPAddrPort(b, p.addr) }

// Close ends the flow; the socket stays, it is everybody's.
func (p *peer) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}
