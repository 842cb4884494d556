// Package peers makes a flow of the datagrams of each peer of a UDP socket, for
// whoever listens on a port and carries what comes to it through a tunnel.
//
// The socket is one for all peers, and answers by it; a [Peer] is the near end of
// one flow, as tunnel.RelayPackets wants it. What a flow does not take in time is
// dropped, as datagrams are.
package peers

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// queue is how many datagrams of one peer wait for its flow.
const queue = 64

// Table is the peers of a socket. For may be any comparable value that flows differ
// in though their peer is the same: where they go.
type Table[For comparable] struct {
	// Conn is the socket, whose end is the table's.
	Conn *net.UDPConn
	// Where says for a datagram that has come what its flow is for; ok is false where
	// it is for nobody. A peer's flow that is for something else ends then.
	Where func() (f For, ok bool)
	// Begin makes what carries a peer's flow, to its end; nil: there is to be none.
	// It is called with the table locked, what it returns in a goroutine of its own.
	Begin func(p *Peer[For]) (carry func())

	mu sync.Mutex
	by map[netip.AddrPort]*Peer[For]
}

// Peer is the near end of one flow: a connection of which one Read or Write is one
// datagram. It has one reader.
type Peer[For comparable] struct {
	net.Conn // the socket, of which nothing is used but its address
	Addr     netip.AddrPort
	For      For

	table *Table[For]
	in    chan []byte
	next  []byte // has been taken from in, for Read
	once  sync.Once
	done  chan struct{}
}

// Run reads datagrams until the socket is closed. Flows are ended by who carries them.
func (t *Table[For]) Run() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := t.Conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an answer that nobody wanted
		}
		p := t.peer(from)
		if p == nil {
			continue
		}
		select {
		case p.in <- append([]byte{}, buf[:n]...):
		default: // full
		}
	}
}

// peer is the flow of from, begun if need be; nil: there is none.
func (t *Table[For]) peer(from netip.AddrPort) *Peer[For] {
	f, ok := t.Where()
	if !ok {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.by[from]; p != nil && p.For == f {
		return p
	} else if p != nil {
		_ = p.Close()
		delete(t.by, from)
	}
	p := &Peer[For]{Conn: t.Conn, table: t, Addr: from, For: f, in: make(chan []byte, queue), done: make(chan struct{})}
	carry := t.Begin(p)
	if carry == nil {
		return nil
	}
	if t.by == nil {
		t.by = map[netip.AddrPort]*Peer[For]{}
	}
	t.by[from] = p
	go func() {
		defer t.forget(p)
		carry()
	}()
	return p
}

func (t *Table[For]) forget(p *Peer[For]) {
	_ = p.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by[p.Addr] == p {
		delete(t.by, p.Addr)
	}
}

// WaitRead implements tunnel.ReadWaiter.
func (p *Peer[For]) WaitRead() {
	if p.next != nil {
		return
	}
	select {
	case p.next = <-p.in:
	case <-p.done:
	}
}

// Read returns the next datagram of the peer.
func (p *Peer[For]) Read(b []byte) (int, error) {
	p.WaitRead()
	d := p.next
	if p.next = nil; d == nil {
		return 0, net.ErrClosed
	}
	return copy(b, d), nil
}

// Write answers the peer.
func (p *Peer[For]) Write(b []byte) (int, error) {
	return p.table.Conn.WriteToUDPAddrPort(b, p.Addr)
}

// Close ends the flow; the socket stays, it is everybody's.
func (p *Peer[For]) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}
