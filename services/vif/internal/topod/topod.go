// Package topod brings ports of an engaged workload's pod to the loopback address
// of the daemon container's network, where a handler finds them as the
// containers of the pod do (--to-pod).
//
// A connection goes to the manager, from there to an agent of the engagement, and
// is dialled inside of its pod. It is accepted before the pod has been asked, as
// a listener does; what the pod refuses is reset. Those that are opened one after
// another come to the pod's port in that order.
package topod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"berth.dev/tunnel"
	"berth.dev/tunnel/peers"
)

const (
	openTimeout = 15 * time.Second
	udpIdle     = 60 * time.Second
)

// Port is a port of the pod.
type Port struct {
	Number uint16
	UDP    bool
}

func (p Port) String() string {
	if p.UDP {
		return strconv.Itoa(int(p.Number)) + "/UDP"
	}
	return strconv.Itoa(int(p.Number)) + "/TCP"
}

// Opener opens a stream to the manager.
type Opener interface {
	Begin(h tunnel.Header) (tunnel.Opening, error)
}

// Table is the ports of all engagements. It may be used concurrently.
type Table struct {
	open Opener
	log  *slog.Logger

	mu sync.Mutex
	by map[string]*set
}

// set is the listeners of one engagement.
type set struct {
	engagement string
	ports      []Port
	ctx        context.Context
	cancel     context.CancelFunc
	closers    []interface{ Close() error }
	wg         sync.WaitGroup
}

// New returns an empty table.
func New(o Opener, log *slog.Logger) *Table { return &Table{open: o, log: log, by: map[string]*set{}} }

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Set listens for an engagement on ports, in the place of what it had; all or none.
func (t *Table) Set(engagement string, ports []Port) error {
	t.mu.Lock()
	old := t.by[engagement]
	t.mu.Unlock()
	if old != nil && equal(old.ports, ports) {
		return nil
	}
	t.Remove(engagement)
	if len(ports) == 0 {
		return nil
	}
	s := &set{engagement: engagement, ports: ports}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, p := range ports {
		if err := t.listen(s, p); err != nil {
			s.close()
			return fmt.Errorf("listen for the pod's port %v: %w", p, err)
		}
	}
	t.mu.Lock()
	t.by[engagement] = s
	t.mu.Unlock()
	return nil
}

func equal(a, b []Port) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Remove ends the listeners and flows of an engagement.
func (t *Table) Remove(engagement string) {
	t.mu.Lock()
	s := t.by[engagement]
	delete(t.by, engagement)
	t.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// Close ends all.
func (t *Table) Close() {
	t.mu.Lock()
	var ids []string
	for id := range t.by {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.Remove(id)
	}
}

func (s *set) close() {
	s.cancel()
	for _, c := range s.closers {
		_ = c.Close()
	}
	s.wg.Wait()
}

func (t *Table) listen(s *set, p Port) error {
	at := netip.AddrPortFrom(loopback, p.Number)
	if p.UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		s.closers = append(s.closers, conn)
		u := &peers.Table[Port]{Conn: conn, Where: func() (Port, bool) { return p, true }, Begin: func(peer *peers.Peer[Port]) func() {
			s.wg.Add(1)
			return func() {
				defer s.wg.Done()
				t.datagrams(s, p, peer)
			}
		}}
		s.wg.Go(u.Run)
		return nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.closers = append(s.closers, l)
	s.wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				select {
				case <-s.ctx.Done():
					return
				case <-time.After(50 * time.Millisecond): // out of descriptors, say
				}
				continue
			}
			o, err := t.begin(s, p) // here, which keeps the order
			if err != nil {
				t.refuse(s, p, c, err)
				continue
			}
			s.wg.Go(func() { t.serve(s, p, c, o) })
		}
	})
	return nil
}

func (t *Table) begin(s *set, p Port) (tunnel.Opening, error) {
	kind := tunnel.KindTCP
	if p.UDP {
		kind = tunnel.KindUDP
	}
	return t.open.Begin(tunnel.Header{Kind: kind, Engagement: s.engagement, Dst: netip.AddrPortFrom(loopback, p.Number)})
}

func (s *set) wait(o tunnel.Opening) (*tunnel.Stream, error) {
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	defer cancel()
	return o.Wait(ctx)
}

func (t *Table) serve(s *set, p Port, c *net.TCPConn, o tunnel.Opening) {
	stream, err := s.wait(o)
	if err != nil {
		t.refuse(s, p, c, err)
		return
	}
	defer context.AfterFunc(s.ctx, func() { stream.Reset(tunnel.CodeReset); _ = c.Close() })()
	_, _, _ = tunnel.Relay(c, stream) // its end is the handler's to judge
}

func (t *Table) refuse(s *set, p Port, c *net.TCPConn, err error) {
	t.log.Debug("the pod's port is not reached", "engagement", s.engagement, "port", p.String(), "err", err)
	_ = c.SetLinger(0)
	_ = c.Close()
}

// datagrams carries one peer's flow.
func (t *Table) datagrams(s *set, p Port, peer *peers.Peer[Port]) {
	defer context.AfterFunc(s.ctx, func() { peer.Close() })()
	var stream *tunnel.Stream
	o, err := t.begin(s, p)
	if err == nil {
		stream, err = s.wait(o)
	}
	if err != nil {
		t.log.Debug("datagrams dropped", "engagement", s.engagement, "port", p.String(), "err", err)
		return
	}
	_, _, _ = tunnel.RelayPackets(stream, peer, udpIdle)
}
